"""Which profile accepts a batch, and the error message if none does."""

import pytest
from rcnn_backend.engines.profiles import ShapeRange, choose_profile, from_json, to_json
from rcnn_backend.errors import InvalidInputError

SMALL = {"input": ShapeRange((1, 3, 32, 32), (1, 3, 320, 320), (8, 3, 320, 320))}
LARGE = {"input": ShapeRange((1, 3, 352, 32), (4, 3, 800, 1344), (8, 3, 1344, 1344))}


@pytest.mark.parametrize(
    ("shape", "profile"),
    [((1, 3, 32, 32), 0), ((8, 3, 320, 320), 0), ((1, 3, 352, 320), 1), ((8, 3, 1344, 1344), 1)],
)
def test_the_profile_that_takes_the_shape(shape: tuple[int, ...], profile: int) -> None:
    assert choose_profile([SMALL, LARGE], {"input": shape}) == profile


@pytest.mark.parametrize("shape", [(9, 3, 320, 320), (1, 3, 320, 352), (1, 1, 320, 320), (3, 320, 320)])
def test_what_no_profile_takes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError) as error:
        choose_profile([SMALL, LARGE], {"input": shape})
    assert str(error.value).startswith(
        f"the TensorRT plan does not accept this shape: input is {list(shape)}; profile 0: [1, 3, 32, 32] to "
        "[8, 3, 320, 320], profile 1: [1, 3, 352, 32] to [8, 3, 1344, 1344]. Send "
    )


def test_of_one_profile_only_the_tensors_that_do_not_fit_are_told() -> None:
    profile = {"a": ShapeRange((1, 10), (1, 10), (8, 10)), "b": ShapeRange((1, 4), (1, 4), (8, 4))}
    with pytest.raises(InvalidInputError, match=r"shape: b is \[9, 4\]; profile 0: \[1, 4\] to \[8, 4\]\. "):
        choose_profile([profile], {"a": (8, 10), "b": (9, 4)})


@pytest.mark.parametrize(
    ("other", "overlaps"),
    [
        (ShapeRange((8, 3, 320, 320), (8, 3, 320, 320), (9, 3, 352, 352)), True),
        (ShapeRange((9, 3, 32, 32), (9, 3, 32, 32), (9, 3, 320, 320)), False),
        (ShapeRange((1, 3, 32, 352), (1, 3, 32, 352), (8, 3, 320, 352)), False),
    ],
)
def test_ranges_overlap_when_they_do_on_every_axis(other: ShapeRange, overlaps: bool) -> None:
    assert SMALL["input"].overlaps(other) == other.overlaps(SMALL["input"]) == overlaps


def test_a_manifest_keeps_them() -> None:
    assert to_json([SMALL]) == [{"input": ["1x3x32x32", "1x3x320x320", "8x3x320x320"]}]
    assert from_json(to_json([SMALL, LARGE])) == [SMALL, LARGE]
