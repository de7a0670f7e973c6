"""Triton's model-repository API over HTTP: lists the loaded models and unloads one."""

import contextlib
import http.client
import json
from collections.abc import Mapping

FAILURES = (OSError, http.client.HTTPException, ValueError)  # no answer, a refusal, or no JSON


def model_states(url: str, headers: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """``READY``, ``UNLOADING``, ... by name and version, for each model that was ever loaded.

    Args:
        url: ``host:port`` of the HTTP endpoint.
        headers: the headers that open the API.

    Raises:
        OSError, HTTPException, ValueError: the server does not give an answer (``FAILURES``).
    """
    index = json.loads(_post(url, "/v2/repository/index", headers))
    return {(each["name"], each["version"]): each["state"] for each in index if each.get("state")}


def unload(url: str, model: str, headers: Mapping[str, str]) -> None:
    """Unloads the model, which Triton does once the model's requests have been answered.

    Raises:
        OSError, HTTPException: the server does not answer or refuses.
    """
    _post(url, f"/v2/repository/models/{model}/unload", headers)


def _post(url: str, path: str, headers: Mapping[str, str]) -> bytes:
    """The answer's body. The connection is closed at once, because Triton waits for open ones when it ends."""
    with contextlib.closing(http.client.HTTPConnection(url, timeout=5)) as connection:
        connection.request("POST", path, headers={**headers, "Connection": "close"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise http.client.HTTPException(f"{path}: {answer.status}")
        return answer.read()
