"""The target of an export: the engine that runs the networks, and the precision they compute in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rcnn_backend.contract.manifest import PlanOptions
from rcnn_backend.engines.profiles import Profile

from rcnn_export.engines.precision import FP32, INT8, INT8_IN_FP16, PRECISIONS, Precision

MAX, PERCENTILE = "max", "percentile"
METHODS = (MAX, PERCENTILE)  # of calibration
ONNX, CUDNN, AOTI, TENSORRT = "onnx", "cudnn", "aoti", "tensorrt"
ENGINE_FILES = {ONNX: "model.onnx", CUDNN: "model.cudnn.pt2", AOTI: "model.pt2", TENSORRT: "model.plan"}
TRITON_BACKENDS = {ONNX: "onnxruntime", CUDNN: "pytorch", AOTI: "pytorch", TENSORRT: "tensorrt"}
NUM_CALIBRATION_PICTURES = 300


def precision_of(engine: str, name: str) -> Precision:
    """The precision of that name for the engine."""
    return INT8_IN_FP16 if engine == CUDNN and name == INT8.name else PRECISIONS[name]


@dataclass(frozen=True)
class ApGoal:
    """The AP that INT8 may cost. As many layers stay in FP32 as this needs.

    Attributes:
        most_loss: points of AP50:95 below FP32, for boxes and, if they are scored, for masks or keypoints.
        annotations: a COCO instances file.
        pictures: the folder that its file names are relative to.
    """

    most_loss: float
    annotations: Path
    pictures: Path


@dataclass(frozen=True)
class Calibration:
    """How an INT8 export chooses its scales.

    Attributes:
        folder: contains pictures like those that will be sent.
        num_pictures: the largest number of them to use.
        method: one of METHODS.
        keep_float: layers that stay in FP32, by the names that rcnn-verify --sensitivity shows; a module's name
            means all layers in it.
        ap_goal: decides which other layers stay in FP32; by default none.
    """

    folder: Path
    num_pictures: int = NUM_CALIBRATION_PICTURES
    method: str = METHODS[0]
    keep_float: Sequence[str] = ()
    ap_goal: ApGoal | None = None


@dataclass(frozen=True)
class EngineOptions:
    """The engine, the precision and, for TensorRT plans, how they are built.

    Attributes:
        engine: ONNX, CUDNN, AOTI or TENSORRT.
        precision: of the networks.
        profiles: of the TensorRT plans, by step; by default those of ``plan_profiles``.
        plan: how TensorRT builds the plans.
        calibration: of an INT8 export; otherwise None.
    """

    engine: str = ONNX
    precision: Precision = FP32
    profiles: Mapping[str, Sequence[Profile]] = field(default_factory=dict)
    plan: PlanOptions = field(default_factory=PlanOptions)
    calibration: Calibration | None = None

    @property
    def is_for_gpu(self) -> bool:
        """Whether the engine is made to run on a GPU."""
        return self.engine in (CUDNN, TENSORRT) or (self.engine == AOTI and torch.cuda.is_available())


DEFAULT_ENGINE = EngineOptions()
