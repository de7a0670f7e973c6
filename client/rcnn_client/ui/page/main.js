// The page: sends a picture and draws its detections; the slider and the classes filter the last answer.

import { ApiError, convertToPng, detect, keepToken, listModels, readInfo } from "./api.js";
import { setUpCamera } from "./camera.js";
import { draw } from "./draw.js";
import { showClasses, showInfo, showList, showTiming } from "./panel.js";

const element = (id) => document.getElementById(id);
const threshold = element("threshold");
const RETRY_MS = 3000; // until the server answers

let info = null; // about the chosen model
let picture = null; // the file
let shown = null; // { bitmap, answer, name } of the picture on the canvas
let running = new AbortController();
let again = start; // what "Try again" does
const unwanted = new Set(); // classes that are switched off

function say(text) {
  element("status").textContent = text;
}

function complain(error, retry) {
  if (error.name === "AbortError") return;
  say("");
  again = retry;
  element("error-text").textContent = error.message;
  element("error").hidden = false;
  element("retry").hidden = !retry;
  element("token-form").hidden = error.status !== 401;
}

function forgive() {
  element("error").hidden = element("token-form").hidden = true;
}

// 1. The models on the server.
async function start() {
  try {
    const models = await listModels();
    if (!models.length) throw new ApiError("The server has no detector. Serve one with rcnn-serve.", 404);
    forgive();
    element("model").replaceChildren(...models.map((name) => new Option(name)));
    element("model").disabled = false;
    await chooseModel();
  } catch (error) {
    complain(error, start);
    if (error.status !== 401) setTimeout(() => info === null && again === start && start(), RETRY_MS);
  }
}

async function chooseModel() {
  info = null;
  try {
    info = await readInfo(element("model").value);
    forgive();
    showInfo(info);
    say(picture ? "" : "Ready.");
    if (picture) await show(picture);
  } catch (error) {
    complain(error, chooseModel);
  }
}

// 2. A picture.
async function show(file) {
  picture = file;
  running.abort();
  running = new AbortController();
  const { signal } = running;
  clear();
  if (info === null) return; // shown as soon as the model is known
  say(`Looking at ${file.name} …`);
  try {
    // with the slider's lowest score, so that moving it needs no other answer
    const answer = await detect(info.model, file, threshold.min, info.has_masks, signal);
    const bitmap = await decode(file, answer.orientation, signal);
    if (signal.aborted) return;
    forgive();
    shown = { bitmap, answer, name: file.name.replace(/\.[^.]*$/, "") };
    element("canvas").hidden = false;
    element("drop").classList.add("filled");
    element("save-picture").disabled = element("save-json").disabled = false;
    showClasses(answer.detections, info, unwanted, render);
    showTiming(answer.timing);
    render();
  } catch (error) {
    complain(error, error.status === 400 ? null : () => show(file));
  }
}

// The upright picture. Browsers turn JPEGs by their EXIF orientation, other formats not always, and decode fewer formats.
async function decode(file, orientation, signal) {
  const isTurned = orientation === 1 || file.type === "image/jpeg";
  const bitmap = isTurned && (await createImageBitmap(file).catch(() => null));
  return bitmap || createImageBitmap(await convertToPng(file, signal));
}

function clear() {
  shown = null;
  forgive();
  element("drop").classList.remove("filled");
  element("hint").hidden = false;
  for (const id of ["canvas", "classes", "table-scroll", "timing"]) element(id).hidden = true;
  element("save-picture").disabled = element("save-json").disabled = true;
}

// 3. The detections to show.
function wanted() {
  return shown.answer.detections.filter((each) => each.score > threshold.value && !unwanted.has(each.class_name));
}

function render() {
  element("threshold-value").textContent = Number(threshold.value).toFixed(2);
  if (!shown) return;
  const detections = wanted();
  draw(element("canvas"), shown.bitmap, detections, info);
  element("hint").hidden = true;
  showList(detections, info);
  const names = detections.slice(0, 20).map((each) => `${each.class_name} ${each.score.toFixed(2)}`);
  const count = `${detections.length || "No"} object${detections.length === 1 ? "" : "s"}`;
  element("canvas").setAttribute("aria-label", [`${count} in ${shown.name}`, ...names].join(", "));
  say(`${detections.length} of ${shown.answer.detections.length} objects are shown.`);
}

function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

element("save-picture").addEventListener("click", () => {
  const { name } = shown;
  element("canvas").toBlob((blob) => download(blob, `${name}-detections.png`), "image/png");
});
element("save-json").addEventListener("click", () => {
  const content = { ...shown.answer, score_thresh: Number(threshold.value), detections: wanted() };
  delete content.timing;
  download(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }), `${shown.name}.json`);
});

let isWaiting = false;
threshold.addEventListener("input", () => {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => {
    isWaiting = false;
    render();
  });
});
element("model").addEventListener("change", chooseModel);
element("retry").addEventListener("click", () => again());
element("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepToken(element("token").value);
  again();
});

// 4. Ways to choose a picture.
function take(files) {
  if (files.length) show(files[0]);
}

element("file").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) element("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else complain(new Error("This is not a file. Save the picture first, then drop its file."), null);
});
setUpCamera(show, (text) => complain(new Error(text), null), (isOpen) => {
  element("canvas").hidden = isOpen || !shown;
  element("hint").hidden = isOpen || Boolean(shown);
});

start();
