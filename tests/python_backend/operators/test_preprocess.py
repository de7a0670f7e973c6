"""The resize, normalisation and padding are GeneralizedRCNNTransform's."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from rcnn_backend.contract.parameters import PreprocessParameters, read_parameters
from rcnn_backend.devices import Cpu
from rcnn_backend.errors import InvalidInputError, RepositoryError
from rcnn_backend.operators.preprocess import padded_size_hw, preprocess, preprocess_requests, warm_up
from torchvision.models.detection.transform import GeneralizedRCNNTransform

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def parameters(
    min_size: int = 800,
    max_size: int = 1333,
    fixed: list[int] | None = None,
    padded: list[list[int]] | None = None,
) -> PreprocessParameters:
    return PreprocessParameters(min_size, max_size, fixed, MEAN, STD, 32, 50_000_000, padded or [])


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


LYING, UPRIGHT, SQUARE = [800, 1344], [1344, 800], [1344, 1344]


@pytest.mark.parametrize(
    ("sizes_hw", "expected_hw"),
    [
        ([(800, 1066)], (800, 1344)),
        ([(800, 1333)], (800, 1344)),
        ([(1066, 800)], (1344, 800)),
        ([(800, 800)], (800, 1344)),  # equal areas, landscape and portrait: the first is used
        ([(800, 1066), (1066, 800)], (1344, 1344)),
        ([(801, 1066)], (1344, 1344)),
        ([(800, 1345)], (800, 1376)),  # fits in none
    ],
)
def test_the_smallest_padded_size_that_fits(
    sizes_hw: list[tuple[int, int]], expected_hw: tuple[int, int]
) -> None:
    assert padded_size_hw(sizes_hw, parameters(padded=[SQUARE, LYING, UPRIGHT])) == expected_hw


def test_without_padded_sizes_the_padding_is_torchvision_s() -> None:
    assert padded_size_hw([(800, 1066), (700, 1088)], parameters()) == (800, 1088)


@pytest.mark.parametrize("fixed", [None, [96, 160]])
def test_padded_sizes_change_nothing_but_the_padding(fixed: list[int] | None) -> None:
    images = [picture(100, 150), picture(64, 80)]
    exact, exact_sizes = preprocess(images, parameters(96, 160, fixed))
    padded, padded_sizes = preprocess(images, parameters(96, 160, fixed, padded=[[64, 64], [128, 192]]))
    assert exact.shape == (2, 3, 96, 160)
    assert padded.shape == (2, 3, 128, 192)
    np.testing.assert_array_equal(padded_sizes, exact_sizes)
    np.testing.assert_array_equal(padded[:, :, :96, :160], exact)
    assert not padded[:, :, 96:].any()
    assert not padded[:, :, :, 160:].any()


@pytest.mark.parametrize("padded", [[], [[64, 96], [96, 64]], [[64, 96], [96, 96]]])
def test_requests_together_are_as_each_by_itself(padded: list[list[int]]) -> None:
    lying, upright, square = picture(40, 60), picture(60, 40), picture(50, 50)
    requests = [[lying], [upright], [square, lying], [lying, upright], [square], [lying], [picture(20, 80)]]
    limits = parameters(64, 96, padded=padded)
    results = preprocess_requests(requests, limits)
    assert len(results) == len(requests)
    for (batch, image_sizes), images in zip(results, requests, strict=True):
        expected, expected_sizes = preprocess(images, limits)
        np.testing.assert_array_equal(batch, expected)
        np.testing.assert_array_equal(image_sizes, expected_sizes)
        assert batch.flags.c_contiguous


def test_requests_of_one_size_are_one_batch() -> None:
    requests = [[picture(40, 60)], [picture(60, 40)], [picture(40, 50), picture(40, 44)]]
    lying, upright, others = preprocess_requests(requests, parameters(64, 96, padded=[[64, 96]]))
    assert [batch.shape for batch, _ in (lying, upright, others)] == [
        (1, 3, 64, 96), (1, 3, 96, 64), (2, 3, 64, 96),
    ]  # fmt: skip
    assert lying[0].base is others[0].base
    assert lying[0].base is not upright[0].base


def test_warm_up_runs_on_a_cpu() -> None:
    warm_up(parameters(), Cpu())


@pytest.mark.parametrize(
    "padded", [[[800, 1333]], [[0, 32]], [[-32, 32]], [[64.0, 64]], [[32]], [800, 1344], None, "800x1344"]
)
def test_invalid_padded_sizes_are_refused(padded: object) -> None:
    values = dataclasses.asdict(parameters()) | {"padded_sizes_hw": padded}
    given = {name: {"string_value": json.dumps(value)} for name, value in values.items()}
    expected = r"^p/config.pbtxt: padded_sizes_hw is .*positive multiple of size_divisible, 32"
    with pytest.raises(RepositoryError, match=expected):
        read_parameters(PreprocessParameters, {"name": "p", "parameters": given})
    given["padded_sizes_hw"] = {"string_value": "[[800, 1344]]"}
    read = read_parameters(PreprocessParameters, {"name": "p", "parameters": given})
    assert read == parameters(padded=[LYING])
