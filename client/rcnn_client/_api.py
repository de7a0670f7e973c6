"""The public names, which `rcnn_client` re-exports."""

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
    QueueFullError,
    RcnnError,
    ServerError,
    ServerUnavailableError,
)
from ._images import ImageInput
from ._info import DetectorInfo
from ._masks import MaskCrop
from ._options import DetectOptions
from ._results import Result
from ._tracking import Tracker

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
    "MaskCrop",
    "ModelNotFoundError",
    "NotADetectorError",
    "QueueFullError",
    "RcnnError",
    "Result",
    "ServerError",
    "ServerUnavailableError",
    "TLSConfig",
    "Tracker",
    "draw_detections",
]
