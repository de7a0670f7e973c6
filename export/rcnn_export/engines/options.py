"""What the networks are exported to: the engine that runs them, and the precision they compute in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rcnn_backend.contract.manifest import PlanOptions
from rcnn_backend.engines.profiles import Profile

from rcnn_export.engines.precision import FP32, Precision

ONNX, AOTI, TENSORRT = "onnx", "aoti", "tensorrt"
ENGINE_FILES = {ONNX: "model.onnx", AOTI: "model.pt2", TENSORRT: "model.plan"}
TRITON_BACKENDS = {ONNX: "onnxruntime", AOTI: "pytorch", TENSORRT: "tensorrt"}


@dataclass(frozen=True)
class EngineOptions:
    """The engine, the precision and, of TensorRT plans, how they are built.

    Attributes:
        engine: ONNX, AOTI or TENSORRT.
        precision: of the networks.
        profiles: of the TensorRT plans, by step; by default those of ``plan_profiles``.
        plan: how TensorRT builds the plans.
    """

    engine: str = ONNX
    precision: Precision = FP32
    profiles: Mapping[str, Sequence[Profile]] = field(default_factory=dict)
    plan: PlanOptions = field(default_factory=PlanOptions)

    @property
    def is_for_gpu(self) -> bool:
        """Whether the engine runs on a GPU only."""
        return self.engine == TENSORRT or (self.engine == AOTI and torch.cuda.is_available())


DEFAULT_ENGINE = EngineOptions()
