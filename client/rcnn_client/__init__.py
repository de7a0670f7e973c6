"""Sends pictures to a two-stage detector on a Triton server and gets boxes: NumPy and Pillow, no torch.

>>> with Detector("localhost:8001") as detector:
...     for detection in detector.detect("photo.jpg", score_thresh=0.5):
...         print(detection.class_name, detection.score, detection.box)
"""

from ._client import Detector
from ._detections import Detection, Detections
from ._draw import draw_detections
from ._errors import (
    BatchError,
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

__all__ = [
    "BatchError",
    "DeadlineExceededError",
    "Detection",
    "Detections",
    "Detector",
    "DetectorClosedError",
    "ImageInput",
    "InvalidImageError",
    "InvalidParameterError",
    "ModelNotFoundError",
    "NotADetectorError",
    "RcnnError",
    "ServerError",
    "ServerUnavailableError",
    "draw_detections",
]
