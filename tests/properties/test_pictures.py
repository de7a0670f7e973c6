"""Pictures of any size and mode are turned upright, resized, normalised and padded as in Pillow and torchvision."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps
from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.devices import Cpu, Device
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.operators.preprocess import preprocess
from rcnn_client._orientation import upright, upright_size
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from . import reference
from .cases import CASES, cases

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
sides = st.integers(1, 48)
pictures_hw = st.tuples(sides, sides) | st.sampled_from([(1, 1), (1, 4000), (4000, 1), (3, 400)])


@st.composite
def pixels(draw: st.DrawFn, channels: int = 3) -> np.ndarray:
    """uint8 [h, w, channels], made of a few values that are repeated."""
    values = np.frombuffer(draw(st.binary(min_size=1, max_size=97)), np.uint8)
    return np.resize(values, (*draw(pictures_hw), channels))


@st.composite
def pictures_to_resize(draw: st.DrawFn) -> dict[str, Any]:
    limit = st.integers(1, 80)
    fixed = draw(st.none() | st.tuples(limit, limit))
    return {
        "images": draw(st.lists(pixels(), min_size=1, max_size=3)),
        "parameters": PreprocessParameters(
            draw(limit),
            draw(limit),
            fixed and list(fixed),
            MEAN,
            STD,
            draw(st.sampled_from([32, 1, 5])),
            10**8,
        ),
    }


def check_preprocess(
    device: Device, images: list[np.ndarray], parameters: PreprocessParameters, atol: float
) -> None:
    fixed = parameters.fixed_size_hw
    with device.active():
        uploaded = [device.upload(image) for image in images]
        if not fixed and any(_vanishes(image, parameters) for image in images):
            with pytest.raises(InvalidInputError, match="too elongated"):
                preprocess(uploaded, parameters)
            return
        batch, sizes = device.download(list(preprocess(uploaded, parameters)))
    transform = GeneralizedRCNNTransform(
        parameters.min_size,
        parameters.max_size,
        MEAN,
        STD,
        parameters.size_divisible,
        fixed_size=fixed and tuple(fixed[::-1]),
    )
    tensors = [reference.tensor(image, device).permute(2, 0, 1) / 255 for image in images]
    expected, _ = transform.eval()(tensors)
    np.testing.assert_array_equal(sizes[:, :2], expected.image_sizes)
    np.testing.assert_array_equal(sizes[:, 2:], [image.shape[:2] for image in images])
    np.testing.assert_allclose(batch, expected.tensors.cpu().numpy(), rtol=0, atol=atol)


def _vanishes(image: np.ndarray, parameters: PreprocessParameters) -> bool:
    """Whether a side would have no pixel, for which torch raises."""
    height, width = image.shape[:2]
    scale = min(parameters.min_size / min(height, width), parameters.max_size / max(height, width))
    try:
        torch.nn.functional.interpolate(
            torch.zeros(1, 1, height, width), scale_factor=scale, recompute_scale_factor=True
        )
    except RuntimeError:
        return True
    return False


@cases(CASES["preprocess"])
@given(pictures_to_resize())
def test_preprocess(drawn: dict[str, Any]) -> None:
    check_preprocess(Cpu(), **drawn, atol=2e-6)


MODES = [("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "TIFF"),
         ("RGB", "TIFF"), ("L", "BMP"), ("P", "GIF"), ("RGB", "WEBP")]  # fmt: skip


@cases(CASES["decode"])
@given(pixels(), st.sampled_from(MODES), st.integers(0, 9))
def test_any_picture_is_upright_rgb(drawn: np.ndarray, mode_and_format: tuple[str, str], turn: int) -> None:
    """Grey, palette, one-bit, and with alpha; orientations that EXIF defines, and others."""
    mode, file_format = mode_and_format
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    if file_format in ("PNG", "WEBP", "TIFF"):
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.Orientation] = turn
    buffer = io.BytesIO()
    Image.fromarray(drawn).convert(mode).save(buffer, file_format, **options)
    with Image.open(buffer) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), 10**8), np.asarray(expected))
    with Image.open(buffer) as image:
        assert upright_size(image) == expected.size
        np.testing.assert_array_equal(np.asarray(upright(image).convert("RGB")), np.asarray(expected))
