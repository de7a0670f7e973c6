"""Sends pictures to a two-stage detector on a Triton server and gets boxes, masks and keypoints, without torch.

>>> with Detector("localhost:8001") as detector:
...     for detection in detector.detect("photo.jpg", score_thresh=0.5):
...         print(detection.class_name, detection.score, detection.box)

`rcnn_client.aio` has the same `Detector` for asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import the public names when one is first used: the import takes a second, and `--help` needs none of them."""
    api = import_module("._api", __name__)
    if name != "__all__" and name not in api.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))
