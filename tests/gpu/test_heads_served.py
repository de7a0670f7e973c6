"""Mask R-CNN and Keypoint R-CNN on a GPU, in process and served: every stage of rcnn-verify agrees with torchvision."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("cupy")
if not importlib.util.find_spec("pytriton"):
    pytest.skip("needs the pip-installed tritonserver", allow_module_level=True)

from PIL import Image
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
    repository = tmp_path / "models"
    export_repository(detector, repository, sample, options=EngineOptions(engine, precision))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted((SAMPLES / "pictures").glob("*.jpg")):  # a GPU decodes JPEGs a little differently
        Image.open(path).save(pictures / f"{path.stem}.png")
    arguments = ["--repository", str(repository), "--name", sample, "--images", str(pictures)]
    for fused in ("off", "on"):
        with running_server(repository, models=[sample], fused=fused) as server:
            answered = ["--server", server.grpc_url, "--batch", "1", "3", "8"]
            assert verify.main(arguments + answered) == verify.HOLDS
