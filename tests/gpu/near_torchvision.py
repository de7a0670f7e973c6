"""Checks that pipelines with torch's engines agree with torchvision, for the sample detector in any precision."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rcnn_backend.contract.chain_types import pyramid
from rcnn_backend.pipeline import Pipeline
from torchvision.models.detection import FasterRCNN

PICTURES = sorted((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))
STRIDE = 32


def assert_features_near(
    model: FasterRCNN, pipeline: Pipeline, sides: Iterable[int], largest_error: float
) -> None:
    """Checks the features of two pictures of each shape, in landscape and portrait format.

    Args:
        sides: the heights of the pictures in strides.
        largest_error: relative to the largest magnitude of a level.
    """
    for side in sides:
        network_input = torch.rand(2, 3, STRIDE * side, STRIDE * (47 - side))
        with torch.no_grad():
            expected = model.backbone(network_input)
        with pipeline.device.active():
            values = pipeline.device.upload(network_input.numpy().astype(pipeline.input_dtype))
            found = pipeline.engines["rpn"].run({"input": values})
            features = pipeline.device.download(pyramid(found))
        # Not strict: torchvision's last level is not used for pooling.
        for ours, theirs in zip(features, expected.values(), strict=False):
            error = np.abs(ours.astype(np.float32) - theirs.numpy()).max() / theirs.abs().max().item()
            assert error < largest_error, f"{tuple(network_input.shape)}: {error:.1e} of the largest"


def assert_detections_near(model: FasterRCNN, pipeline: Pipeline, batch: int) -> None:
    """Checks three runs: without a graph, during the capture, and as a CUDA graph."""
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in PICTURES[:batch]]
    tensors = [torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 for pixels in pictures]
    with torch.no_grad():
        expected = model(tensors)
    for _ in range(3):
        found = pipeline.detect(pictures)
        for image, theirs in enumerate(expected):
            sure = int((theirs["scores"] > 0.3).sum())
            np.testing.assert_array_equal(found.labels[image, :sure], theirs["labels"][:sure].numpy())
            np.testing.assert_allclose(found.boxes[image, :sure], theirs["boxes"][:sure].numpy(), atol=0.5)
            np.testing.assert_allclose(found.scores[image, :sure], theirs["scores"][:sure].numpy(), atol=0.02)


def assert_sizes_take_no_more_memory(pipeline: Pipeline) -> None:
    """Checks that no sizes take more memory than batches of the largest pictures, which ``warm_up`` runs."""
    with pipeline.device.active():
        pipeline.warm_up(4)
    before = torch.cuda.memory_reserved()
    parameters = pipeline.preprocess_parameters
    for height, width in ((parameters.max_size, parameters.min_size), (200, 200), (300, 200)):
        for batch in (1, 4, 3):
            for _ in range(2):
                pipeline.detect([np.zeros((height, width, 3), np.uint8)] * batch)
    assert torch.cuda.memory_reserved() <= 1.02 * before
