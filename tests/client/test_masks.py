"""Masks pasted as in torchvision, their run-length codes and their outlines."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from rcnn_client import Detections, MaskCrop
from rcnn_client._outlines import encode_rle, trace_polygons
from rcnn_client._run_lengths import decode_rle
from scipy.ndimage import binary_fill_holes
from torchvision.models.detection.roi_heads import paste_masks_in_image


def detections(probabilities, boxes, size_hw) -> Detections:
    count = len(boxes)
    return Detections(
        np.asarray(boxes, np.float32),
        np.linspace(0.9, 0.1, count, dtype=np.float32),
        np.ones(count, np.int64),
        ["cat"] * count,
        np.asarray(probabilities, np.float16),
        size_hw,
    )


def torchvisions(found: Detections, thresh: float) -> np.ndarray:
    probabilities = torch.from_numpy(found.mask_probabilities.astype(np.float32))[:, None]
    pasted = paste_masks_in_image(probabilities, torch.from_numpy(found.boxes), found.image_size_hw)
    return (pasted[:, 0] > thresh).numpy()


def blob() -> np.ndarray:
    """A round object that fills most of its box."""
    y, x = np.mgrid[:28, :28]
    return 1 / (1 + np.exp(((y - 13) ** 2 + (x - 14) ** 2 - 140) / 20))


def random_masks(kind: str, count: int, random: np.random.Generator) -> np.ndarray:
    if kind == "noise":
        return random.random((count, 28, 28))
    if kind == "sure":
        return random.random((count, 28, 28)) > 0.5
    if kind == "ties":
        return random.choice([0, 0.25, 0.5, 0.75, 1], (count, 28, 28))
    return np.repeat(blob()[None], count, axis=0)


@pytest.mark.parametrize("kind", ["noise", "sure", "ties", "blob"])
@pytest.mark.parametrize("thresh", [0.5, 0.3])
def test_pasted_as_by_torchvision(kind, thresh):
    random = np.random.default_rng(3)
    for size_hw in ((1, 1), (7, 300), (211, 97), (240, 320)):
        height, width = size_hw
        corners = np.sort(random.uniform(-9, 1.1, (9, 2, 2)) * (width, height), axis=1).reshape(9, 4)
        boxes = np.clip(corners, 0, np.tile((width, height), 2))
        beyond = boxes + np.array((-3, -2, 2, 3))
        boxes = np.concatenate((boxes, boxes.round(), beyond))
        found = detections(random_masks(kind, len(boxes), random), boxes, size_hw)
        masks, expected = found.masks(thresh), torchvisions(found, thresh)
        assert masks.dtype == np.bool_ and masks.shape == expected.shape
        # a processor without fused multiply-add may round a tie to the other side
        assert (masks != expected).sum() <= 1e-5 * masks.size


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 1, 1], (0, 0, 2, 2)),  # torchvision pastes into two pixels here, not one
        ([5, 5, 5, 5], (5, 5, 6, 6)),  # no width and no height
        ([0, 0, 28, 28], (0, 0, 29, 29)),  # the padded box is 31 pixels wide, not 30
        ([-40, -40, -20, -20], None),
        ([90, 90, 120, 130], None),
    ],
)
def test_a_mask_of_ones_by_hand(box, expected):
    found = detections(np.ones((1, 28, 28)), [box], (60, 80))
    by_hand = np.zeros((60, 80), np.bool_)
    if expected:
        left, top, right, bottom = expected
        by_hand[top:bottom, left:right] = True
    assert np.array_equal(found.masks()[0], by_hand)
    (crop,) = found.mask_crops()
    assert crop.mask.sum() == by_hand.sum() and crop.top >= 0 and crop.left >= 0


def test_nothing_found():
    found = detections(np.zeros((0, 28, 28)), np.zeros((0, 4)), (30, 40))
    assert found.masks().shape == (0, 30, 40)
    assert found.rle() == found.polygons() == list(found.mask_crops()) == []


def test_detections_without_masks_say_so():
    found = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), [])
    for method in (found.masks, found.mask_crops, found.rle, found.polygons):
        with pytest.raises(ValueError, match="no masks; detect with a Mask R-CNN"):
            method()


@pytest.mark.parametrize("thresh", [-0.1, 1.5, float("nan")])
def test_a_threshold_outside_its_range(thresh):
    with pytest.raises(ValueError, match=r"mask_thresh is .*, expected a number from 0 to 1"):
        detections(blob()[None], [[0, 0, 9, 9]], (20, 20)).rle(thresh)


SHAPES = {
    "nothing": ["....", "...."],
    "all": ["##", "##", "##"],
    "first and last": ["#..", "...", "..#"],
    "whole columns": ["##.", "##.", "##."],
    "a ring": ["####", "#..#", "####"],
    "corners that touch": ["##..", "##..", "..##"],
    "the other corners": ["..#", "##.", "##."],
    "two parts": ["#.#", "#.#"],
    "a dot in a ring": ["#####", "#...#", "#.#.#", "#...#", "#####"],
}


def picture(rows: list[str]) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def coco_encoded(mask: np.ndarray) -> dict:
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("margin", [0, 3])
def test_run_lengths_equal_those_of_coco(rows, margin):
    mask = picture(rows)
    full = np.pad(mask, margin)
    assert encode_rle(MaskCrop(mask, margin, margin), full.shape) == coco_encoded(full)


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("margin", [0, 3])
def test_run_lengths_read(rows, margin):
    full = np.pad(picture(rows), margin)
    mask, top, left = decode_rle(coco_encoded(full)["counts"], full.shape)
    if full.any():
        assert mask.any(axis=0)[[0, -1]].all() and mask.any(axis=1)[[0, -1]].all()
    again = np.zeros_like(full)
    again[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    assert np.array_equal(again, full)


def test_run_lengths_of_noise_and_of_long_runs():
    random = np.random.default_rng(0)
    for density in (1e-5, 0.01, 0.5, 0.999):
        full = random.random((500, 700)) < density
        code = encode_rle(MaskCrop(full, 0, 0), full.shape)
        assert code == coco_encoded(full)
        assert np.array_equal(coco_mask.decode(code), full)
        mask, top, left = decode_rle(code["counts"], full.shape)
        assert np.array_equal(full[top:, left:][: mask.shape[0], : mask.shape[1]], mask)
        assert mask.sum() == full.sum()


def test_run_lengths_of_detections():
    found = detections(random_masks("blob", 2, None), [[3, 4, 70, 50], [-5, 10, 90, 200]], (60, 80))
    assert found.rle() == [coco_encoded(mask) for mask in found.masks()]


def filled(polygons: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    if not polygons:
        return np.zeros(size_hw, np.bool_)
    codes = coco_mask.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *size_hw)
    return coco_mask.decode(coco_mask.merge(codes)).astype(np.bool_)


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
def test_outlines_enclose_the_mask(rows):
    full = np.pad(picture(rows), 2)
    polygons = trace_polygons(MaskCrop(full[2:-2, 2:-2], 2, 2))
    assert np.array_equal(filled(polygons, full.shape), binary_fill_holes(full, np.ones((3, 3))))
    for polygon in polygons:  # every point is a corner, and every side is horizontal or vertical
        sides = np.abs(np.diff(polygon, axis=0, append=polygon[:1])) > 0
        assert (sides.sum(axis=1) == 1).all() and (sides != np.roll(sides, 1, axis=0)).all()


def test_outlines_by_hand():
    (square,) = trace_polygons(MaskCrop(np.ones((2, 3), np.bool_), 10, 20))
    assert square.dtype == np.float32
    assert square.tolist() == [[20, 10], [23, 10], [23, 12], [20, 12]]
    assert len(trace_polygons(MaskCrop(picture(SHAPES["corners that touch"]), 0, 0))) == 2
    assert len(trace_polygons(MaskCrop(picture(SHAPES["the other corners"]), 0, 0))) == 2
    outer, dot = trace_polygons(MaskCrop(picture(SHAPES["a dot in a ring"]), 0, 0))
    assert outer.tolist() == [[0, 0], [5, 0], [5, 5], [0, 5]] and dot.min() == 2 and dot.max() == 3


@pytest.mark.parametrize("seed", range(3))
def test_outlines_of_noise(seed):
    full = np.random.default_rng(seed).random((40, 30)) < 0.4
    polygons = trace_polygons(MaskCrop(full, 0, 0))
    assert np.array_equal(filled(polygons, full.shape), binary_fill_holes(full, np.ones((3, 3))))


def test_a_hundred_masks_on_twelve_megapixels():
    """Time and memory for 100 masks: codes and outlines never take more bytes than a few pictures."""
    size_hw, random = (3000, 4000), np.random.default_rng(0)
    boxes = np.sort(random.random((100, 2, 2)) * (4000, 3000), axis=1).reshape(100, 4)
    found = detections(np.repeat(blob()[None], 100, axis=0), boxes, size_hw)
    for method, limit_s in (
        (found.masks, 3),
        (found.rle, 3),
        (found.polygons, 3),
    ):  # 0.5, 0.3 and 0.3 s if nothing else runs
        start = time.perf_counter()
        method()
        assert time.perf_counter() - start < limit_s
    largest = found[np.argsort(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))[-3:]]
    tracemalloc.start()
    largest.rle(), largest.polygons()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 12e6
