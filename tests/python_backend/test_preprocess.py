"""The resize, normalisation and padding are GeneralizedRCNNTransform's."""

import numpy as np
import pytest
import torch
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.parameters import PreprocessParameters
from rcnn_backend.preprocess import preprocess
from torchvision.models.detection.transform import GeneralizedRCNNTransform

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def parameters(
    min_size: int = 800, max_size: int = 1333, fixed: list[int] | None = None
) -> PreprocessParameters:
    return PreprocessParameters(min_size, max_size, fixed, MEAN, STD, 32, 50_000_000)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def torchvision_input(
    images: list[np.ndarray], transform: GeneralizedRCNNTransform
) -> tuple[np.ndarray, list]:
    batch, _ = transform.eval()([torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images])
    return batch.tensors.numpy(), batch.image_sizes


@pytest.mark.parametrize(
    "sizes_hw",
    [
        [(480, 640)], [(1000, 1333)], [(64, 48)], [(1, 1)], [(800, 800)], [(600, 1800)], [(1700, 300)],
        [(333, 500), (500, 333), (64, 48)],
    ],
)  # fmt: skip
def test_equals_torchvision(sizes_hw: list[tuple[int, int]]) -> None:
    images = [picture(*size) for size in sizes_hw]
    batch, image_sizes = preprocess(images, parameters())
    expected, expected_sizes = torchvision_input(images, GeneralizedRCNNTransform(800, 1333, MEAN, STD))
    assert batch.shape == expected.shape
    np.testing.assert_allclose(batch, expected, atol=2e-6)
    np.testing.assert_array_equal(image_sizes[:, :2], expected_sizes)
    np.testing.assert_array_equal(image_sizes[:, 2:], sizes_hw)


def test_small_detectors_and_fixed_sizes() -> None:
    images = [picture(100, 150)]
    for ours, theirs in [
        (parameters(320, 640), GeneralizedRCNNTransform(320, 640, MEAN, STD)),
        (parameters(fixed=[96, 160]), GeneralizedRCNNTransform(320, 640, MEAN, STD, fixed_size=(160, 96))),
    ]:
        expected, _ = torchvision_input(images, theirs)
        np.testing.assert_allclose(preprocess(images, ours)[0], expected, atol=2e-6)


def test_padding_is_zero() -> None:
    batch, image_sizes = preprocess([picture(480, 640), picture(640, 480)], parameters())
    height, width = image_sizes[0, :2].astype(int)
    assert not batch[0, :, height:].any()
    assert not batch[0, :, :, width:].any()


def test_too_elongated_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="9000x1 pixels is too elongated"):
        preprocess([picture(1, 9000)], parameters())
