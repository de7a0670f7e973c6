"""Triton's model-repository API over HTTP: which models are loaded, and unloading one."""

import contextlib
import http.client
import json
from collections.abc import Mapping

FAILURES = (OSError, http.client.HTTPException, ValueError)  # no answer, a refusal, or no JSON


def model_states(url: str, headers: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """``READY``, ``UNLOADING``, ... by name and version, for each model that was loaded once.

    Args:
        url: ``host:port`` of the HTTP endpoint.
        headers: what opens the API.

    Raises:
        OSError, HTTPException, ValueError: the server does not tell (``FAILURES``).
    """
    index = json.loads(_post(url, "/v2/repository/index", headers))
    return {(each["name"], each["version"]): each["state"] for each in index if each.get("state")}


def unload(url: str, model: str, headers: Mapping[str, str]) -> None:
    """Unloads the model, which ends once its requests have been answered.

    Raises:
        OSError, HTTPException: the server does not do so.
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
