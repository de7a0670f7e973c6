"""Sends pictures to a two-stage detector on a Triton server and gets boxes: NumPy and Pillow, no torch.

>>> with Detector("localhost:8001") as detector:
...     for detection in detector.detect("photo.jpg", score_thresh=0.5):
...         print(detection.class_name, detection.score, detection.box)

`rcnn_client.aio` has the same `Detector` for asyncio.
"""

from ._client import Detector
from ._connection import TLSConfig
from ._detections import Detection, Detections
from ._draw import draw_detections
from ._errors import (
    AccessDeniedError,
    BatchError,
    CertificateError,
    DeadlineExceededError,
    DetectorClosedError,
    InvalidImageError,
    InvalidParameterError,
    ModelNotFoundError,
    NotADetectorError,
    RcnnError,
    ServerError,
    ServerUnavailableError,
)
from ._images import ImageInput
from ._info import DetectorInfo
from ._options import DetectOptions
from ._results import Result

__all__ = [
    "AccessDeniedError",
    "BatchError",
    "CertificateError",
    "DeadlineExceededError",
    "DetectOptions",
    "Detection",
    "Detections",
    "Detector",
    "DetectorClosedError",
    "DetectorInfo",
    "ImageInput",
    "InvalidImageError",
    "InvalidParameterError",
    "ModelNotFoundError",
    "NotADetectorError",
    "RcnnError",
    "Result",
    "ServerError",
    "ServerUnavailableError",
    "TLSConfig",
    "draw_detections",
]
