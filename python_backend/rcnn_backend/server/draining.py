"""Lets a tritonserver answer the requests that it has accepted before it is told to end.

On SIGTERM, Triton 24.10 refuses the next step of every ensemble request that is in progress. So the
models are unloaded first: new requests are then refused, those in flight are completed, and the
server reports that it is not ready.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence

from rcnn_backend.server.repository_api import FAILURES, model_states, unload

POLL_S = 0.05


def drain(url: str, models: Sequence[str], headers: Mapping[str, str], timeout_s: float) -> bool:
    """Unloads ``models`` and waits for their requests. Returns whether all were answered in time.

    Args:
        url: ``host:port`` of the HTTP endpoint.
        headers: the headers that open the model-repository API.
    """
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(*FAILURES):
        for model in models:
            unload(url, model, headers)
        while time.monotonic() < deadline:
            states = model_states(url, headers)
            if not any(name in models and state == "UNLOADING" for (name, _), state in states.items()):
                return True
            time.sleep(POLL_S)
    return False
