"""What the networks are exported to: the engine that runs them, and the precision they compute in."""

from dataclasses import dataclass

ONNX, AOTI = "onnx", "aoti"
ENGINE_FILES = {ONNX: "model.onnx", AOTI: "model.pt2"}
TRITON_BACKENDS = {ONNX: "onnxruntime", AOTI: "pytorch"}

FP32, FP16 = "fp32", "fp16"


@dataclass(frozen=True)
class EngineOptions:
    """Boxes and scores are computed in FP32 in either precision."""

    engine: str = ONNX
    precision: str = FP32


DEFAULT_ENGINE = EngineOptions()
