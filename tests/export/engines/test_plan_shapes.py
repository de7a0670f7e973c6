"""The profiles of both plans that --shapes gives."""

import re

import pytest
from rcnn_backend.engines.profiles import ShapeRange
from rcnn_export.detector.load import Detector
from rcnn_export.engines.plan_shapes import parse_shapes, plan_profiles
from rcnn_export.errors import ExportError

pytestmark = pytest.mark.xdist_group("export")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x320x320,4x800x1344,8x1344x1344", ((1, 320, 320), (4, 800, 1344), (8, 1344, 1344))),
        ("1x320x320,8x640x640", ((1, 320, 320), (8, 640, 640), (8, 640, 640))),
        ("2x320x416", ((2, 320, 416),) * 3),
    ],
)
def test_three_two_or_one_shape(text: str, expected: tuple[tuple[int, ...], ...]) -> None:
    assert parse_shapes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "320x320", "1x320x320,", "0x32x32", "1x2x3,1x2x3,1x2x3,1x2x3", "1x32xa"]
)
def test_no_shapes(text: str) -> None:
    with pytest.raises(
        ValueError, match="is not a list of one to three BATCHxHEIGHTxWIDTH such as 1x320x320,"
    ):
        parse_shapes(text)


@pytest.mark.parametrize("text", ["8x32x32,4x64x64,8x96x96", "1x32x32,9x64x64,8x96x96"])
def test_shapes_out_of_order(text: str) -> None:
    with pytest.raises(ValueError, match="the smallest, the best and the largest, none larger than the next"):
        parse_shapes(text)


def profiles(digits: Detector, *texts: str) -> dict:
    return plan_profiles(digits.model, [parse_shapes(text) for text in texts])


def test_one_profile_of_each_plan(digits: Detector) -> None:
    """The digits detector has at most 150 proposals, with 64 channels each."""
    found = profiles(digits, "1x320x320,4x320x416,8x416x416")
    assert found["rpn"] == [{"input": ((1, 3, 320, 320), (4, 3, 320, 416), (8, 3, 416, 416))}]
    assert found["header"] == [
        {
            "roialigned_feature": ((1, 15, 64, 7, 7), (4, 150, 64, 7, 7), (8, 150, 64, 7, 7)),
            "proposals": ((1, 15, 4), (4, 150, 4), (8, 150, 4)),
        }
    ]


def test_the_default_profile_fits_the_sizes_that_the_transform_makes(digits: Detector) -> None:
    """Sides are resized to 384 to 768 and padded to a multiple of 32; a narrow picture can have a side of only 32."""
    assert (digits.model.transform.min_size, digits.model.transform.max_size) == ((384,), 768)
    (profile,) = plan_profiles(digits.model)["rpn"]
    assert profile["input"] == ((1, 3, 32, 32), (4, 3, 384, 768), (8, 3, 768, 768))


def test_the_header_has_a_profile_for_each_range_of_batches(digits: Detector) -> None:
    found = profiles(digits, "1x320x320", "2x320x320,4x320x320", "3x352x320,5x352x320,8x416x416")
    assert [profile["proposals"] for profile in found["header"]] == [
        ShapeRange((1, 15, 4), (1, 150, 4), (1, 150, 4)),
        ShapeRange((2, 15, 4), (5, 150, 4), (8, 150, 4)),
    ]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["1x300x320"], "--shapes 1x300x320,1x300x320,1x300x320: pictures are padded to multiples of 32"),
        (
            ["1x320x320,2x416x416", "2x416x416,8x416x416"],
            "--shapes 1x320x320,2x416x416,2x416x416 and 2x416x416,8x416x416,8x416x416 overlap: .* Begin one above",
        ),
        (
            ["2x320x320"],
            "no --shapes takes a batch of 1, and Triton makes batches of every size up to the largest, 2",
        ),
        (["1x320x320", "4x320x320"], "no --shapes takes a batch of 2"),
    ],
)
def test_shapes_that_are_no_profiles(digits: Detector, texts: list[str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        profiles(digits, *texts)


def test_options_of_plans_need_plans(capsys: pytest.CaptureFixture[str]) -> None:
    from rcnn_export.commands.export import main

    model = ["--model", "rcnn_export.digits.detector:digits_detector", "--weights", "random"]
    assert main(["faster_rcnn", *model, "--shapes", "1x320x320"]) == 1
    assert re.search(
        "--shapes, .* are options of TensorRT: they need --engine tensorrt", capsys.readouterr().err
    )
