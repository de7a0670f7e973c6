"""Lets a tritonserver answer the requests that it has accepted before it is told to end.

On SIGTERM, Triton 24.10 refuses the next step of every ensemble request that it is working on. So the
whole models are unloaded first: then new requests are refused, those in flight run to their
end, and the server tells that it is not ready.
"""

import contextlib
import http.client
import json
import time
from collections.abc import Mapping, Sequence

POLL_S = 0.05


def drain(url: str, models: Sequence[str], headers: Mapping[str, str], timeout_s: float) -> bool:
    """Unloads ``models`` and waits for their requests; whether all were answered in time.

    Args:
        url: ``host:port`` of the HTTP endpoint.
        headers: what opens the model-repository API.
    """
    deadline = time.monotonic() + timeout_s
    try:
        for model in models:
            _post(url, f"/v2/repository/models/{model}/unload", headers)
        while time.monotonic() < deadline:
            index = json.loads(_post(url, "/v2/repository/index", headers))
            if not any(each["name"] in models and each.get("state") == "UNLOADING" for each in index):
                return True
            time.sleep(POLL_S)
    except (OSError, http.client.HTTPException, ValueError):
        pass
    return False


def _post(url: str, path: str, headers: Mapping[str, str]) -> bytes:
    """The answer's body; the connection is closed at once, for Triton's end waits for open ones."""
    with contextlib.closing(http.client.HTTPConnection(url, timeout=5)) as connection:
        connection.request("POST", path, headers={**headers, "Connection": "close"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise http.client.HTTPException(f"{path}: {answer.status}")
        return answer.read()
