"""The masks of detections, pasted into their pictures, as COCO's compressed run-length codes.

Shapes: B images, D detections per image (padded), n detections in one image; a mask has h x w values and E edges.

The pixels of a picture are numbered column by column. An edge is the number of a pixel at which a mask begins, or of the
first pixel after the mask. The pasted picture itself is never made.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.contract.parameters import RleParameters
from rcnn_backend.devices import Array, Device
from rcnn_backend.operators.detections import resize_boxes
from rcnn_backend.operators.overrides import read_number

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
PADDING = 1  # width of the border of zeros around a mask, as in torchvision's RoIHeads
ROUNDING = 1e-5  # an interpolated value may exceed the range of its two source values by this much


def encode_rles(
    masks: Array,
    detected_boxes: Float,
    num_detections: npt.NDArray[np.int32],
    image_sizes: Float,
    parameters: Sequence[RleParameters],
) -> npt.NDArray[np.object_]:
    """torchvision's ``paste_masks_in_image``, the threshold, and pycocotools' ``encode``, for a batch.

    Args:
        masks: float16 [B, M, h, w], probabilities in the frame of each box; M is enough for the image with the most
            detections. CuPy arrays are pasted on their GPU.
        detected_boxes: float32 [B, D, 4], x1, y1, x2, y2 in pixels of the resized images; on the host, like the
            next two arguments.
        num_detections: int32 [B, 1].
        image_sizes: float32 [B, 4]: resized height and width, height and width as sent.
        parameters: the threshold of each image.

    Returns:
        bytes [B, D]: ``counts`` of masks that have the size of the picture as sent; empty from ``num_detections`` on.
    """
    rles = np.full(detected_boxes.shape[:2], b"", np.object_)
    for image, count in enumerate(num_detections[:, 0].tolist()):
        height, width = image_sizes[image, 2:].astype(int).tolist()
        boxes = resize_boxes(detected_boxes[image, :count], image_sizes[image])
        pasted = paste_masks(masks[image, :count], boxes, (height, width), parameters[image].mask_thresh)
        for place, edges in enumerate(pasted):
            rles[image, place] = compress(run_lengths(edges, height * width))
    return rles


def paste_masks(
    masks: Array, boxes: Float, image_size_hw: tuple[int, int], mask_thresh: float
) -> Iterator[Int]:
    """The edges [E] of each of n masks, in any order; pixels above the threshold belong to the mask.

    Args:
        boxes: float32 [n, 4] in pixels of the picture.
    """
    frames = expand_boxes(boxes, masks.shape[-1])
    if not isinstance(masks, np.ndarray):
        from rcnn_backend.operators.gpu.rles import find_edges as find_edges_on_gpu  # needs CuPy

        yield from find_edges_on_gpu(masks, frames, image_size_hw, mask_thresh)
        return
    for mask, frame in zip(masks, frames, strict=True):
        yield find_edges(mask, frame, image_size_hw, mask_thresh)


def expand_boxes(boxes: Float, mask_width: int) -> Int:
    """The frames of padded masks [n, 4]: the boxes, enlarged about their centres and truncated to whole pixels."""
    scale = np.float32((mask_width + 2 * PADDING) / mask_width)
    first, second = boxes[:, :2], boxes[:, 2:]
    half, centre = (second - first) * np.float32(0.5), (second + first) * np.float32(0.5)
    half = half * scale
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.int64)


def find_edges(
    mask: npt.NDArray[np.float16], frame: Int, image_size_hw: tuple[int, int], mask_thresh: float
) -> Int:
    """The edges [E] of one mask [h, w].

    The pixels between two rows of the mask form a strip. A pixel's value is between the interpolated values above and
    below it. So in most columns of a strip, all pixels are on the same side of the threshold. Only the other columns
    are interpolated.
    """
    x1, y1, x2, y2 = frame.tolist()
    padded = np.pad(mask.astype(np.float32), PADDING)  # [h + 2, w + 2]
    height, width = image_size_hw
    rows, columns = _sample(y1, y2, height, padded.shape[0]), _sample(x1, x2, width, padded.shape[1])
    if not len(rows.before) or not len(columns.before):
        return np.zeros(0, np.int64)
    thresh = np.float32(mask_thresh)
    along_x = _between(
        padded[:, columns.before], padded[:, columns.after], columns.weight
    )  # [h + 2, columns]
    tops = (
        columns.start + np.arange(len(columns.before))
    ) * height  # the number of each column's highest pixel
    edges = []
    above = np.zeros(len(tops), np.bool_)  # whether the pixels above the strip belong to the mask
    starts = np.searchsorted(rows.before, np.arange(len(padded) + 1)).tolist()
    for row, (start, stop) in enumerate(itertools.pairwise(starts)):
        if start == stop:
            continue
        first, second = along_x[row], along_x[min(row + 1, len(padded) - 1)]
        lowest, highest = np.minimum(first, second), np.maximum(first, second)
        highest_pixels = lowest > thresh
        lowest_pixels = highest_pixels.copy()
        mixed = np.flatnonzero((lowest <= thresh + ROUNDING) & (highest > thresh - ROUNDING))
        if len(mixed):
            weight = rows.weight[start:stop, None]
            strip = _between(first[mixed], second[mixed], weight) > thresh  # [strip's rows, mixed columns]
            changed, column = np.nonzero(strip[1:] != strip[:-1])
            edges.append(tops[mixed[column]] + (rows.start + start + 1 + changed))
            highest_pixels[mixed], lowest_pixels[mixed] = strip[0], strip[-1]
        edges.append(tops[highest_pixels != above] + (rows.start + start))
        above = lowest_pixels
    edges.append(tops[above] + (rows.start + len(rows.before)))
    return np.concatenate(edges)


class _Axis(NamedTuple):
    """The positions of the pixels of one axis between the values of a mask."""

    start: int  # the first pixel, in the picture
    before: Int  # [pixels], index of the value before each pixel, ascending
    after: Int  # [pixels], index of the value after it
    weight: Float  # [pixels], weight of the value after it


def _sample(first: int, last: int, size: int, num_values: int) -> _Axis:
    """The positions of the pixels from ``first`` to ``last``, clipped to the picture, between ``num_values`` values.

    Follows torch's ``area_pixel_compute_source_index`` with its float32 scale and a single rounding.
    """
    count = max(last - first + 1, 1)
    start, stop = max(first, 0), min(first + count, size)
    centres = np.arange(start - first, stop - first) + 0.5
    positions = np.maximum(float(np.float32(num_values / count)) * centres - 0.5, 0).astype(np.float32)
    before = np.minimum(positions.astype(np.int64), num_values - 1)
    weight = np.minimum(positions - before.astype(np.float32), np.float32(1))
    return _Axis(start, before, np.minimum(before + 1, num_values - 1), weight)


def _between(before: Float, after: Float, weight: Float) -> Float:
    """The weighted mean of two values, rounded as in torch, with a fused multiply-add."""
    share = (1 - weight).astype(np.float64)
    return (before * share + after * weight).astype(np.float32)


def run_lengths(edges: Int, num_pixels: int) -> Int:
    """The lengths of the runs, alternately outside and inside the mask, starting outside."""
    # A mask that continues from the end of a column into the next one ends and begins at the same pixel.
    ends, times = np.unique(edges, return_counts=True)
    lengths = np.diff(ends[times == 1], prepend=0, append=num_pixels)
    return lengths[:-1] if len(lengths) > 1 and lengths[-1] == 0 else lengths


def compress(lengths: Int) -> bytes:
    """COCO's text for run lengths. From the fourth length on, the length two places before is subtracted. A character
    holds 5 bits, the lowest bits first.
    """
    rest = lengths.astype(np.int64)
    rest[3:] -= lengths[1:-2]
    digits = []
    is_open = np.ones(len(rest), np.bool_)
    while is_open.any():
        low, rest = rest & 0x1F, rest >> 5  # arithmetic: the sign stays
        goes_on = np.where(low & 0x10, rest != -1, rest != 0)
        digits.append(np.where(is_open, 48 + low + 0x20 * goes_on, 0))
        is_open &= goes_on
    text = np.stack(digits, axis=1).astype(np.uint8)  # [runs, characters]
    return bytes(text[text > 0])


def warm_up(device: Device) -> None:
    """Compiles the kernels that ``encode_rles`` runs on a GPU."""
    if device.is_gpu:
        from rcnn_backend.operators.gpu import rles as gpu  # needs CuPy

        gpu.warm_up()


def override(parameters: RleParameters, request: Mapping[str, Any]) -> RleParameters:
    """The parameters, with the ``mask_thresh`` of a request if it has one.

    Raises:
        InvalidInputError: the value has the wrong type or is out of range.
    """
    if "mask_thresh" not in request:
        return parameters
    return dataclasses.replace(parameters, mask_thresh=read_number(request, "mask_thresh", highest=1.0))
