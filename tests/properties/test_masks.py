"""Masks are pasted as in torchvision and encoded as in pycocotools, on the server and in the client, for any boxes."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from rcnn_backend.contract.parameters import RleParameters
from rcnn_backend.devices import Cpu, Device
from rcnn_backend.operators.rles import compress, encode_rles, run_lengths
from rcnn_client import Detections
from rcnn_client._run_lengths import decode_counts, decode_rle
from torchvision.models.detection.roi_heads import paste_masks_in_image

from .cases import BATCH, CASES, cases
from .strategies import FINITE, array_of, boxes, thresholds

PROBABILITIES = (np.arange(256) % 65 / 64).astype(np.float16)
MAX_SIDE = np.float32(500)  # torchvision computes the whole mask, inside the picture or not
ROUNDING = 1e-6  # of an interpolated probability: a pixel this near the threshold may be on either side
pictures_hw = st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.sampled_from([(1, 400), (400, 1)])


@st.composite
def masks_in_boxes(draw: st.DrawFn) -> dict[str, Any]:
    """Square masks of one picture, and the positions of their boxes in it."""
    side = draw(st.integers(1, 14))
    corner, end = np.split(draw(boxes(BATCH, table=FINITE)), 2, axis=1)
    return {
        "masks": draw(array_of(PROBABILITIES, BATCH, side, side)),
        "boxes": np.concatenate([corner, end.clip(corner, corner + MAX_SIDE)], axis=1),
        "size_hw": draw(pictures_hw),
        "thresh": draw(thresholds),
    }


def encode(
    device: Device, masks: np.ndarray, boxes: np.ndarray, size_hw: tuple[int, int], thresh: float
) -> list[bytes]:
    with device.active():
        sizes = np.array([[*size_hw, *size_hw]], np.float32)
        counts = np.array([[len(boxes)]], np.int32)
        (rles,) = encode_rles(device.upload(masks[None]), boxes[None], counts, sizes, [RleParameters(thresh)])
    return list(rles)


def check_masks(
    device: Device, masks: np.ndarray, boxes: np.ndarray, size_hw: tuple[int, int], thresh: float
) -> None:
    """Compares with torchvision's pasting and the client's encoding, which run on the CPU, whatever the device."""
    rles = encode(device, masks, boxes, size_hw, thresh)
    decoded = np.array([coco_mask.decode({"size": list(size_hw), "counts": rle}) for rle in rles], np.bool_)
    # torchvision cannot paste outside the picture.
    meets = (boxes[:, :2] < size_hw[::-1]).all(axis=1) & (boxes[:, 2:] >= 0).all(axis=1)
    probabilities = torch.from_numpy(masks[meets].astype(np.float32))[:, None]
    pasted = paste_masks_in_image(probabilities, torch.from_numpy(boxes[meets]), size_hw)[:, 0].numpy()
    differs = decoded[meets] != (pasted > np.float32(thresh))
    assert (np.abs(pasted[differs] - thresh) <= ROUNDING).all()
    assert rles == [coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in decoded]

    ones = np.ones(len(boxes), np.float32)
    client = Detections(boxes, ones, ones.astype(np.int64), ["cat"] * len(boxes), masks, size_hw)
    assert [each["counts"] for each in client.rle(thresh)] == [rle.decode() for rle in rles]


@cases(CASES["masks"], a_call=BATCH)
@given(masks_in_boxes())
def test_masks(drawn: dict[str, Any]) -> None:
    check_masks(Cpu(), **drawn)


@cases(CASES["run_lengths"])
@given(pictures_hw.flatmap(lambda size_hw: array_of(np.arange(8) % 3 == 0, *size_hw)))
def test_run_lengths(mask: np.ndarray) -> None:
    """Converts runs to text, text to runs, and text to a mask."""
    expected = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    columns = np.pad(mask.T.ravel(), (1, 0))
    runs = run_lengths(np.flatnonzero(columns[1:] != columns[:-1]), mask.size)
    assert compress(runs) == expected
    assert decode_counts(expected.decode()) == runs.tolist()
    crop = decode_rle(expected.decode(), mask.shape)
    whole = np.zeros_like(mask)
    height, width = crop.mask.shape
    whole[crop.top : crop.top + height, crop.left : crop.left + width] = crop.mask
    np.testing.assert_array_equal(whole, mask)
