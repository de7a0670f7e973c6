"""Detections as regions of Label Studio: percentages, labels, run-length codes, polygons."""

import numpy as np
import pytest
from rcnn_client import Detections
from rcnn_client._masks import MaskCrop
from rcnn_client._outlines import trace_polygons
from rcnn_client.ui.label_studio.brush import encode_brush
from rcnn_client.ui.label_studio.config import Control
from rcnn_client.ui.label_studio.polygons import simplify
from rcnn_client.ui.label_studio.regions import make_regions


def decode(code: list[int]) -> list[int]:
    """The values of a code, decoded as by rle-pack 2: a header of 53 bits, then runs and single values."""
    bits = iter(np.unpackbits(np.array(code, np.uint8)).tolist())

    def read(count: int) -> int:
        return int("".join(str(next(bits)) for _ in range(count)), 2)

    num, word, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < num:
        is_run = read(1)
        count = read(sizes[read(2)]) + 1
        values += [read(word)] * count if is_run else [read(word) for _ in range(count)]
    assert len(values) == num
    return values


def control(kind, labels, name="tag", score_thresh=0.5, point_thresh=None):
    return Control(kind, name, "photo", "url", labels, score_thresh, point_thresh)


@pytest.fixture
def found():
    """A dog at the left, and a cat with a lower score, in a picture of 200x100 pixels."""
    return Detections(
        np.array([[20, 10, 60, 90], [100, 50, 150, 75]], np.float32),
        np.array([0.875, 0.5], np.float32),
        np.array([1, 2]),
        ["dog", "cat"],
        image_size_hw=(100, 200),
        keypoints=np.array([[[40, 25, 1], [50, 80, 1]]] * 2, np.float32),
        keypoint_scores=np.array([[3, -2], [1, 1]], np.float32),
        keypoint_names=["nose", "tail"],
    )


def test_rectangles(found):
    controls = [control("rectanglelabels", {"dog": "Hund", "cat": "Katze"}, score_thresh=0.5)]
    (region,) = make_regions(found, controls, (100, 200))  # the cat's score is not above 0.5
    assert len(region.pop("id")) == 10
    assert region == {
        "from_name": "tag",
        "to_name": "photo",
        "type": "rectanglelabels",
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "score": 0.875,
        "value": {"x": 10, "y": 10, "width": 20, "height": 80, "rotation": 0, "rectanglelabels": ["Hund"]},
    }
    controls = [control("rectanglelabels", {"cat": "cat"}, score_thresh=0.1)]
    (region,) = make_regions(found, controls, (100, 200))
    assert region["value"]["rectanglelabels"] == ["cat"] and region["value"]["width"] == 25


@pytest.mark.parametrize("size_hw", [(11, 22), (39, 151), (800, 1333)])
def test_nothing_lies_outside_the_picture(found, size_hw):
    height, width = size_hw
    found.boxes[0] = 0, 0, np.nextafter(np.float32(width), np.float32(np.inf)), height
    found.keypoints[0, 0, :2] = np.nextafter(np.float32([width, height]), np.float32(np.inf))
    controls = [control("rectanglelabels", {"dog": "dog"}), control("keypointlabels", {"nose": "nose"})]
    box, point = make_regions(found, controls, size_hw)
    assert [box["value"][edge] for edge in ("x", "y", "width", "height")] == [0, 0, 100, 100]
    assert (point["value"]["x"], point["value"]["y"]) == (100, 100)


def test_keypoints_belong_to_their_rectangle(found):
    points = control("keypointlabels", {"nose": "Nase", "tail": "tail"}, "points", point_thresh=-2)
    box, nose = make_regions(found, [control("rectanglelabels", {"dog": "dog"}), points], (100, 200))
    assert nose["value"] == {"x": 20, "y": 25, "width": 0.5, "keypointlabels": ["Nase"]}
    assert nose["parentID"] == box["id"] and nose["from_name"] == "points"
    everything = control("keypointlabels", {"nose": "nose", "tail": "tail"}, score_thresh=0.1)
    alone = make_regions(found, [everything], (100, 200))
    assert len(alone) == 4 and not any("parentID" in region for region in alone)


def test_masks_as_brush_and_as_polygons(found):
    left = np.zeros((100, 200), np.uint8)
    left[20:60, 30:50] = 1
    left[80:85, 30:40] = 1
    left[90:91, 30:31] = 1  # too thin for a polygon
    probabilities = np.zeros((2, 28, 28), np.float16)
    masked = Detections(
        found.boxes, found.scores, found.labels, found.class_names, probabilities, (100, 200), mask_thresh=0.5
    )
    labels = {"dog": "dog", "cat": "cat"}
    both = [control(kind, labels, kind, 0.1) for kind in ("brushlabels", "polygonlabels")]
    assert make_regions(masked, both, (100, 200)) == []  # no pixel is above the threshold

    crops = [MaskCrop(left[10:95, 20:60].astype(bool), 10, 20), MaskCrop(np.zeros((0, 0), bool), 0, 0)]
    object.__setattr__(masked, "mask_crops", lambda: iter(crops))
    brush, large, small = make_regions(masked, both, (100, 200))
    assert brush["value"]["format"] == "rle" and brush["value"]["brushlabels"] == ["dog"]
    pixels = np.reshape(decode(brush["value"]["rle"]), (100, 200, 4))
    np.testing.assert_array_equal(pixels, np.repeat(left[..., None] * 255, 4, axis=2))
    corners = [[15, 20], [25, 20], [25, 60], [15, 60]]
    assert large["value"] == {"points": corners, "closed": True, "polygonlabels": ["dog"]}
    assert small["value"]["points"] == [[15, 80], [20, 80], [20, 85], [15, 85]]


def test_run_lengths_of_every_size():
    random = np.random.default_rng(0)
    for _ in range(30):
        height, width = random.integers(1, 30, 2)
        top, left = random.integers(0, height), random.integers(0, width)
        mask = random.random((height - top, width - left)) < random.random()
        full = np.zeros((height, width), np.int64)
        full[top:, left:] = 255 * mask
        assert decode(encode_brush(MaskCrop(mask, top, left), (height, width))) == np.repeat(full, 4).tolist()
    # The longest run is 16384 pixels, which are 65536 values. The mask is the last pixel.
    for num_pixels in (16384, 16385, 16386, 40000):
        values = decode(encode_brush(MaskCrop(np.ones((1, 1), bool), 0, num_pixels - 1), (1, num_pixels)))
        assert values == [0] * (4 * num_pixels - 4) + [255] * 4


def test_a_code_by_hand():
    # 4 values of 255 in a picture of one pixel: 4 in 32 bits, 8 - 1, each size minus 1, then 1, 00, 4 - 1, 255.
    bits = f"{4:032b}" + "00111" + "0010" + "0011" + "0111" + "1111" + "1" + "00" + "011" + "11111111"
    code = encode_brush(MaskCrop(np.ones((1, 1), bool), 0, 0), (1, 1))
    assert "".join(f"{byte:08b}" for byte in code) == bits.ljust(72, "0")


def test_polygons_have_few_corners_and_keep_their_form():
    y, x = np.mgrid[:200, :300]
    disc = (y - 100) ** 2 + (x - 150) ** 2 < 80**2
    (outline,) = trace_polygons(MaskCrop(disc, 5, 7))
    kept = simplify(outline, 1.0)
    assert 12 < len(kept) < 40 < len(outline)
    radii = np.hypot(kept[:, 0] - 157, kept[:, 1] - 105)
    assert np.abs(radii - 80).max() < 2
    square = np.array([[0, 0], [9, 0], [9, 9], [0, 9]], np.float32)
    np.testing.assert_array_equal(simplify(square, 1.0), square)
    sliver = np.array([[0, 0], [9, 0], [9, 1], [0, 1]], np.float32)
    assert len(simplify(sliver, 1.0)) < 3
