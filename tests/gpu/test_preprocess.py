"""The GPU's resize, normalisation and padding are GeneralizedRCNNTransform's."""

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
import torch  # noqa: E402
from rcnn_backend.contract.parameters import PreprocessParameters  # noqa: E402
from rcnn_backend.errors import InvalidInputError  # noqa: E402
from rcnn_backend.operators.gpu.preprocess import preprocess  # noqa: E402
from rcnn_backend.operators.preprocess import preprocess as preprocess_on_cpu  # noqa: E402
from rcnn_backend.operators.preprocess import preprocess_requests  # noqa: E402
from torchvision.models.detection.transform import GeneralizedRCNNTransform  # noqa: E402

pytestmark = pytest.mark.gpu
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
    batch, _ = transform.eval()([torch.from_numpy(image).cuda().permute(2, 0, 1) / 255 for image in images])
    return batch.tensors.cpu().numpy(), batch.image_sizes


@pytest.mark.parametrize(
    "sizes_hw",
    [
        [(480, 640)], [(1000, 1333)], [(64, 48)], [(1, 1)], [(800, 800)], [(600, 1800)], [(1700, 300)],
        [(333, 500), (500, 333), (64, 48)], [(480, 640)] * 9,
    ],
)  # fmt: skip
def test_equals_torchvision(sizes_hw: list[tuple[int, int]]) -> None:
    images = [picture(*size) for size in sizes_hw]
    batch, image_sizes = preprocess([cupy.asarray(image) for image in images], parameters())
    expected, expected_sizes = torchvision_input(images, GeneralizedRCNNTransform(800, 1333, MEAN, STD))
    np.testing.assert_allclose(batch.get(), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(image_sizes.get()[:, :2], expected_sizes)
    np.testing.assert_array_equal(image_sizes.get()[:, 2:], sizes_hw)
    half, _ = preprocess([cupy.asarray(image) for image in images], parameters(), np.float16)
    np.testing.assert_allclose(half.get(), expected, rtol=1e-3, atol=1e-5)


def test_equals_the_cpu() -> None:
    images = [picture(100, 150), picture(97, 61)]
    for changed in (parameters(320, 640), parameters(fixed=[96, 160])):
        expected, expected_sizes = preprocess_on_cpu(images, changed)
        batch, image_sizes = preprocess([cupy.asarray(image) for image in images], changed)
        np.testing.assert_allclose(batch.get(), expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(image_sizes.get(), expected_sizes)


def test_interpolation_is_torch_s() -> None:
    """Without normalisation and at every scale, within two units in the last place of 255."""
    plain = PreprocessParameters(1, 1, None, [0, 0, 0], [1 / 255] * 3, 1, 10**9)
    for size_hw, resized_hw in [((37, 53), (801, 1203)), ((801, 1203), (37, 53)), ((479, 640), (599, 800))]:
        image = picture(*size_hw)
        fixed = PreprocessParameters(**{**vars(plain), "fixed_size_hw": list(resized_hw)})
        batch, _ = preprocess([cupy.asarray(image)], fixed)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(image).cuda().permute(2, 0, 1)[None].float(), resized_hw, mode="bilinear"
        )
        np.testing.assert_allclose(batch.get(), expected.cpu().numpy(), rtol=0, atol=3.1e-5)


def test_a_planar_picture_and_a_crop_copy_nothing() -> None:
    planar = cupy.asarray(np.ascontiguousarray(picture(120, 90).transpose(2, 0, 1)))
    wide = cupy.asarray(picture(120, 200))
    views = [planar.transpose(1, 2, 0), wide[10:100, 20:180]]
    batch, _ = preprocess(views, parameters(100, 200))
    expected, _ = preprocess_on_cpu([view.get() for view in views], parameters(100, 200))
    np.testing.assert_allclose(batch.get(), expected, rtol=0, atol=1e-5)


def test_a_batch_of_more_than_one_launch_holds() -> None:
    images = [picture(20 + number, 30) for number in range(100)]
    batch, image_sizes = preprocess([cupy.asarray(image) for image in images], parameters(32, 64))
    expected, expected_sizes = preprocess_on_cpu(images, parameters(32, 64))
    np.testing.assert_allclose(batch.get(), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(image_sizes.get(), expected_sizes)


@pytest.mark.parametrize("padded", [[], [[64, 96], [96, 96]]])
def test_requests_together_are_the_cpu_s(padded: list[list[int]]) -> None:
    """CuPy pictures are preprocessed on the GPU, whatever size they are padded to."""
    lying, upright = picture(40, 60), picture(60, 40)
    requests = [[lying], [upright], [lying, upright], [lying], [picture(20, 80)]]
    limits = PreprocessParameters(64, 96, None, MEAN, STD, 32, 10**8, padded)
    results = preprocess_requests([[cupy.asarray(image) for image in images] for images in requests], limits)
    assert len(results) == len(requests)
    for (batch, image_sizes), images in zip(results, requests, strict=True):
        expected, expected_sizes = preprocess_on_cpu(images, limits)
        assert isinstance(batch, cupy.ndarray)
        assert batch.flags.c_contiguous
        np.testing.assert_allclose(batch.get(), expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(image_sizes.get(), expected_sizes)


def test_bad_pictures_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="9000x1 pixels is too elongated"):
        preprocess([cupy.zeros((1, 9000, 3), np.uint8)], parameters())
    with pytest.raises(ValueError, match=r"uint8 \(3, 8, 8\): expected uint8 \[height, width, 3\]"):
        preprocess([cupy.zeros((3, 8, 8), np.uint8)], parameters())
