"""Lets a tritonserver answer the requests that it has accepted before it is told to end.

On SIGTERM, Triton 24.10 refuses the next step of every ensemble request that it is working on. So the
whole models are unloaded first: then new requests are refused, those in flight run to their
end, and the server tells that it is not ready.
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
        headers: what opens the model-repository API.
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
