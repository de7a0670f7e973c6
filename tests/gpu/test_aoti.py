"""A detector compiled by AOTInductor on a GPU answers as torchvision does, whatever the size of the pictures."""

from pathlib import Path

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from rcnn_backend.contract.chain_types import pyramid  # noqa: E402
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.pipeline import Pipeline  # noqa: E402
from rcnn_export.detector.load import Detector  # noqa: E402
from rcnn_export.engines.options import AOTI, EngineOptions  # noqa: E402
from rcnn_export.engines.precision import FP16  # noqa: E402
from rcnn_export.repository.write import export_repository  # noqa: E402

pytestmark = pytest.mark.gpu
PICTURES = sorted((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))
STRIDE = 32


@pytest.fixture(scope="module")
def pipeline(digits: Detector, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The sample detector in FP16."""
    repository = tmp_path_factory.mktemp("repository")
    export_repository(digits, repository, "digits", options=EngineOptions(AOTI, FP16))
    return Pipeline.load(repository, "digits", Gpu(0))


def test_features_of_every_size_are_torchs(digits: Detector, pipeline: Pipeline) -> None:
    """The FPN doubles each level; where it takes a wrong pixel, the error is as large as the features."""
    for side in range(3, 45):
        network_input = torch.rand(2, 3, STRIDE * side, STRIDE * (47 - side))
        with torch.no_grad():
            expected = digits.model.backbone(network_input)
        with pipeline.device.active():
            found = pipeline.engines["rpn"].run(
                {"input": cupy.asarray(network_input.numpy().astype(np.float16))}
            )
            features = [feature.get().astype(np.float32) for feature in pyramid(found)]
        for ours, theirs in zip(features, expected.values(), strict=False):  # the last is not pooled from
            error = np.abs(ours - theirs.numpy()).max() / theirs.abs().max().item()
            assert error < 0.02, f"{tuple(network_input.shape)}: {error:.3f} of the largest"


@pytest.mark.parametrize("batch", [1, 4])
def test_detections_are_near_torchvisions(digits: Detector, pipeline: Pipeline, batch: int) -> None:
    """Three times: each call by itself, the call that is captured, its CUDA graph."""
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in PICTURES[:batch]]
    tensors = [torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 for pixels in pictures]
    with torch.no_grad():
        expected = digits.model(tensors)
    for _ in range(3):
        found = pipeline.detect(pictures)
        for image, theirs in enumerate(expected):
            sure = int((theirs["scores"] > 0.3).sum())
            np.testing.assert_array_equal(found.labels[image, :sure], theirs["labels"][:sure].numpy())
            np.testing.assert_allclose(found.boxes[image, :sure], theirs["boxes"][:sure].numpy(), atol=0.5)
            np.testing.assert_allclose(found.scores[image, :sure], theirs["scores"][:sure].numpy(), atol=0.02)


def test_more_sizes_take_no_more_memory(pipeline: Pipeline) -> None:
    """Than batches of the largest pictures, which ``warm_up`` runs."""
    with pipeline.device.active():
        pipeline.warm_up(4)
    before = torch.cuda.memory_reserved()
    parameters = pipeline.preprocess_parameters
    for height, width in ((parameters.max_size, parameters.min_size), (200, 200), (300, 200)):
        for batch in (1, 4, 3):
            for _ in range(2):
                pipeline.detect([np.zeros((height, width, 3), np.uint8)] * batch)
    assert torch.cuda.memory_reserved() <= 1.02 * before
