"""Mask R-CNN and Keypoint R-CNN on a GPU, in process and served, beside torchvision: every stage of rcnn-verify holds."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("cupy")
if not importlib.util.find_spec("pytriton"):
    pytest.skip("needs the pip-installed tritonserver", allow_module_level=True)

from rcnn_backend.server.local_server import running_server
from rcnn_export.commands import verify
from rcnn_export.detector.load import load_detector
from rcnn_export.engines.options import AOTI, ONNX, EngineOptions
from rcnn_export.engines.precision import FP16, FP32, Precision
from rcnn_export.repository.write import export_repository

pytestmark = pytest.mark.gpu

SAMPLES = Path(__file__).resolve().parents[2] / "export" / "samples"


@pytest.mark.parametrize("sample", ["digits_mask", "digits_keypoint"])
@pytest.mark.parametrize(
    ("engine", "precision"), [(ONNX, FP32), (AOTI, FP16)], ids=["onnx-fp32", "aoti-fp16"]
)
def test_equals_torchvision(sample: str, engine: str, precision: Precision, tmp_path: Path) -> None:
    detector = load_detector(
        f"rcnn_export.digits.detector:{sample}_detector",
        str(SAMPLES / f"{sample}.safetensors"),
        labels=SAMPLES / "labels.txt",
    )
    export_repository(detector, tmp_path, sample, options=EngineOptions(engine, precision))
    arguments = ["--repository", str(tmp_path), "--name", sample, "--images", str(SAMPLES / "pictures")]
    for fused in ("off", "on"):
        with running_server(tmp_path, models=[sample], fused=fused) as server:
            answered = ["--server", server.grpc_url, "--batch", "1", "3", "8"]
            assert verify.main(arguments + answered) == verify.HOLDS
