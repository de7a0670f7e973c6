"""Run-length codes of pasted masks, compared with torchvision's pasting, pycocotools' encoding and the client's code."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from rcnn_backend.contract.parameters import RleParameters
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.rles import compress, encode_rles, override, run_lengths
from rcnn_client import Detections
from torchvision.models.detection.roi_heads import paste_masks_in_image

HALF = RleParameters(0.5)


def blob(size_hw: tuple[int, int] = (28, 28)) -> np.ndarray:
    """A round object that fills most of its box."""
    y, x = (np.arange(size) / size - 0.5 for size in size_hw)
    return 1 / (1 + np.exp(40 * (np.hypot(*np.meshgrid(y, x, indexing="ij")) - 0.4)))


def random_masks(kind: str, count: int, size_hw: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    masks = {
        "noise": random.random((count, *size_hw)),
        "sure": random.random((count, *size_hw)) > 0.5,
        "ties": random.choice([0, 0.25, 0.5, 0.75, 1], (count, *size_hw)),
        "blob": np.repeat(blob(size_hw)[None], count, axis=0),
    }
    return masks[kind].astype(np.float16)


def random_boxes(size_hw: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Boxes [27, 4] inside the picture, on whole pixels, and across its border."""
    height, width = size_hw
    corners = np.sort(random.uniform(-9, 1.1, (9, 2, 2)) * (width, height), axis=1).reshape(9, 4)
    boxes = np.clip(corners, 0, np.tile((width, height), 2))
    return np.concatenate((boxes, boxes.round(), boxes + np.array((-3, -2, 2, 3)))).astype(np.float32)


def encode(
    masks: np.ndarray, boxes: np.ndarray, size_hw: tuple[int, int], thresh: float = 0.5
) -> list[bytes]:
    """The run-length codes of one image's detections, all of which are real."""
    counts = np.array([[len(boxes)]], np.int32)
    sizes = np.array([[*size_hw, *size_hw]], np.float32)
    (rles,) = encode_rles(masks[None], boxes[None], counts, sizes, [RleParameters(thresh)])
    return list(rles)


def decode(rle: bytes, size_hw: tuple[int, int]) -> np.ndarray:
    return coco_mask.decode({"size": list(size_hw), "counts": rle}).astype(np.bool_)


def torchvisions(masks: np.ndarray, boxes: np.ndarray, size_hw: tuple[int, int], thresh: float) -> np.ndarray:
    probabilities = torch.from_numpy(masks.astype(np.float32))[:, None]
    pasted = paste_masks_in_image(probabilities, torch.from_numpy(boxes), size_hw)
    return (pasted[:, 0] > thresh).numpy()


@pytest.mark.parametrize("kind", ["noise", "sure", "ties", "blob"])
@pytest.mark.parametrize("thresh", [0.5, 0.3, 0.0, 1.0])
def test_torchvisions_pasting_and_the_clients(kind: str, thresh: float) -> None:
    random = np.random.default_rng(3)
    for size_hw in ((1, 1), (7, 300), (211, 97), (240, 320)):
        boxes = random_boxes(size_hw, random)
        masks = random_masks(kind, len(boxes), (28, 28), random)
        rles = encode(masks, boxes, size_hw, thresh)
        decoded = np.array([decode(rle, size_hw) for rle in rles])
        expected = torchvisions(masks, boxes, size_hw, thresh)
        # a processor without fused multiply-add may round a tie in the other direction
        assert (decoded != expected).sum() <= 1e-5 * expected.size
        scores, labels = np.ones(len(boxes), np.float32), np.ones(len(boxes), np.int64)
        client = Detections(boxes, scores, labels, ["cat"] * len(boxes), masks, size_hw)
        assert [rle.decode() for rle in rles] == [own["counts"] for own in client.rle(thresh)]
        assert rles == [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in decoded]


@pytest.mark.parametrize("mask_size_hw", [(28, 28), (14, 14), (56, 56), (1, 1), (14, 28)])
def test_masks_of_other_sizes(mask_size_hw: tuple[int, int]) -> None:
    random, size_hw = np.random.default_rng(1), (90, 120)
    boxes = random_boxes(size_hw, random)
    masks = random_masks("noise", len(boxes), mask_size_hw, random)
    decoded = np.array([decode(rle, size_hw) for rle in encode(masks, boxes, size_hw)])
    assert (decoded != torchvisions(masks, boxes, size_hw, 0.5)).sum() <= 1e-5 * decoded.size


@pytest.mark.parametrize(
    ("box", "size_hw", "counts"),
    [
        ([0, 0, 1, 1], (3, 4), [0, 2, 1, 2, 7]),  # torchvision's frame of one pixel is two pixels wide
        ([1, 1, 1, 1], (3, 4), [4, 1, 7]),  # no width and no height
        ([-90, -90, 90, 90], (3, 4), [0, 12]),  # it continues from column to column
        ([0, -90, 1, 90], (3, 4), [0, 6, 6]),
        ([3, -90, 9, 90], (3, 4), [6, 6]),  # to the last pixel
        ([-40, -40, -20, -20], (3, 4), [12]),
        ([90, 90, 120, 130], (3, 4), [12]),
    ],
)
def test_a_sure_mask_by_hand(box: list[float], size_hw: tuple[int, int], counts: list[int]) -> None:
    (rle,) = encode(np.ones((1, 28, 28), np.float16), np.array([box], np.float32), size_hw)
    expected = coco_mask.frPyObjects({"size": list(size_hw), "counts": counts}, *size_hw)
    assert rle == expected["counts"]


def test_each_image_has_its_own_size_threshold_and_count() -> None:
    random = np.random.default_rng(5)
    boxes = np.tile(np.array([[3, 4, 70, 50], [-5, 10, 90, 200]], np.float32), (3, 1, 1))
    masks = np.stack([random_masks("noise", 2, (28, 28), random) for _ in range(3)])
    sizes = np.array([[60, 80, 60, 80], [33, 44, 33, 44], [9, 9, 9, 9]], np.float32)
    parameters = [HALF, RleParameters(0.3), HALF]
    rles = encode_rles(masks, boxes, np.array([[2], [1], [0]], np.int32), sizes, parameters)
    assert (rles.shape, rles.dtype) == ((3, 2), np.object_)
    assert rles[0].tolist() == encode(masks[0], boxes[0], (60, 80))
    assert rles[1].tolist() == [encode(masks[1], boxes[1], (33, 44), 0.3)[0], b""]
    assert rles[2].tolist() == [b"", b""]


def test_values_that_are_no_numbers_belong_to_no_mask() -> None:
    masks = np.full((1, 28, 28), np.nan, np.float16)
    assert encode(masks, np.array([[0, 0, 9, 9]], np.float32), (10, 10)) == [compress(np.array([100]))]


def test_run_lengths_of_noise_and_of_long_runs() -> None:
    random = np.random.default_rng(0)
    for density in (0, 1e-5, 0.01, 0.5, 0.999, 1):
        full = random.random((500, 700)) < density
        columns = np.pad(full.T.ravel(), (1, 0))
        edges = random.permutation(np.flatnonzero(columns[1:] != columns[:-1]))
        expected = coco_mask.encode(np.asfortranarray(full, np.uint8))["counts"]
        assert compress(run_lengths(edges, full.size)) == expected


def test_a_hundred_masks_on_twelve_megapixels() -> None:
    size_hw, random = (3000, 4000), np.random.default_rng(0)
    corners = np.sort(random.random((100, 2, 2)) * (4000, 3000), axis=1).reshape(100, 4)
    masks, boxes = np.repeat(blob()[None], 100, axis=0).astype(np.float16), corners.astype(np.float32)
    start = time.perf_counter()
    rles = encode(masks, boxes, size_hw)
    assert time.perf_counter() - start < 1.5  # 0.15 s on an idle machine
    assert sum(map(len, rles)) < 1e6
    noise = random_masks("noise", 1, (28, 28), random)  # every pixel is interpolated
    tracemalloc.start()
    encode(noise, np.array([[0, 0, 4000, 3000]], np.float32), size_hw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 12e6


def test_a_request_gives_its_own_threshold() -> None:
    assert override(HALF, {}) is HALF
    assert override(HALF, {"mask_thresh": "0.3", "unrelated": 1}) == RleParameters(0.3)
    for value in ("high", 1.5, -0.1, "nan", None):
        with pytest.raises(InvalidInputError, match=r"mask_thresh is .*: expected a number from 0 to 1"):
            override(HALF, {"mask_thresh": value})
