"""The package opens large pictures without changing Pillow's limits for the rest of the process."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.operators.picture_files import FORMATS, open_picture

IMPORTS = """
import re, warnings
from PIL import Image, ImageFile
before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
import rcnn_backend.operators.openvino_operators, rcnn_backend.pipeline, rcnn_client.aio
assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before, Image.MAX_IMAGE_PIXELS
about_pillow = [entry for entry in warnings.filters if entry[3] and re.match(entry[3], "PIL.Image")]
assert not about_pillow, about_pillow
"""

STEP = """
import sys, unittest.mock, warnings
sys.modules["triton_python_backend_utils"] = unittest.mock.MagicMock()
from rcnn_backend.steps.step import Step
Step({"model_config": '{"output": []}', "model_name": "any", "model_instance_kind": "CPU", "model_instance_device_id": "0"})
warnings.warn_explicit("odd file", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")
"""


def encode(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(24 * 32, dtype=np.uint8).reshape(24, 32) % 251).save(buffer, kind, **options)
    return buffer.getvalue()


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.PIPE, text=True).stderr


def test_imports_leave_pillow_and_the_warnings_as_they_are() -> None:
    run_python(IMPORTS)


def test_a_step_of_the_server_logs_no_warning_of_pillow() -> None:
    assert "odd file" not in run_python(STEP)


@pytest.mark.parametrize(
    ("kind", "options"),
    [*((kind, {}) for kind in FORMATS), ("TIFF", {"compression": "tiff_lzw"})],
)
def test_only_the_models_limit_counts(kind: str, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(kind, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(data, 24 * 32).shape == (24, 32, 3)
    with pytest.raises(InvalidInputError, match="32x24 pixels, more than the 767"):
        decode_image(data, 24 * 32 - 1)
    with pytest.raises(Image.DecompressionBombError):  # the caller's own pictures keep the caller's limit
        Image.open(io.BytesIO(data))


def test_only_the_formats_that_were_named_are_opened() -> None:
    assert open_picture(encode("PNG"), ("PNG",)).size == (32, 24)
    for data in (encode("PNG"), b"\xff\xd8\xffno picture", b""):
        with pytest.raises(UnidentifiedImageError):
            open_picture(data, ("JPEG",))
