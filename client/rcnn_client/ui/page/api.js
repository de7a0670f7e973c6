// Calls to this page's own server; each throws an ApiError with the server's sentence.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // HTTP status; 0 if nothing answered
  }
}

// A link may carry the token behind #token=, which browsers do not send.
const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  keepToken(given);
  history.replaceState(null, "", location.pathname);
}

export function keepToken(token) {
  sessionStorage.setItem("token", token);
}

async function call(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("rcnn-ui does not answer. Is it still running?", 0);
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new ApiError(answer.error ?? `${response.status} ${response.statusText}`, response.status);
  }
  return response;
}

export const listModels = async () => (await (await call("/models")).json()).models;

export const readInfo = async (model) => (await call(`/models/${encodeURIComponent(model)}`)).json();

export async function detect(model, picture, scoreThresh, hasMasks, signal) {
  const query = new URLSearchParams({ model, score_thresh: scoreThresh, timing: 1, rle: Number(hasMasks) });
  return (await call(`/detect?${query}`, { method: "POST", body: picture, signal })).json();
}

export async function convertToPng(picture, signal) {
  return (await call("/picture", { method: "POST", body: picture, signal })).blob();
}
