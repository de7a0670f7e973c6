"""A keypoint header's heatmaps -> keypoints.

Shapes: n detections, P keypoints per detection; B images, D detections per image (padded). Boxes are (x1, y1, x2, y2)
and keypoints (x, y, visibility), both in pixels.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.devices import Array, Device

Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]
A = -0.75  # coefficient of the cubic convolution, as in torch
STRIP_PIXELS = 1 << 17  # resized heatmaps are computed in strips of rows with about this many pixels in all


def heatmaps_to_keypoints(heatmaps: Array, boxes: Array) -> tuple[Array, Array]:
    """torchvision's ``heatmaps_to_keypoints``: the position of the maximum of each heatmap, resized to its box.

    The interpolation is bicubic, in float32. Among equal values, the first in row-major order is used. NaN counts as
    the largest value, as in torch.

    Args:
        heatmaps: float32 or float16 [n, P, h, w], logits in the frame of each box.
        boxes: float32 [n, 4], finite. A side shorter than one pixel counts as one pixel.

    Returns:
        The keypoints, float32 [n, P, 3], in the same pixels as the boxes and with a visibility of 1; and their scores,
        float32 [n, P], the largest values. For CuPy arrays, they are computed on the arrays' GPU.
    """
    if not isinstance(heatmaps, np.ndarray):
        from rcnn_backend.operators.gpu import keypoints as gpu  # needs CuPy

        return gpu.heatmaps_to_keypoints(heatmaps, boxes)
    keypoints = np.ones((*heatmaps.shape[:2], 3), np.float32)
    scores = np.empty(heatmaps.shape[:2], np.float32)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], np.float32(1))  # [n, 2]: width, height
    sizes = np.ceil(sides)
    for detection, (width, height) in enumerate(sizes.astype(np.int64)):
        heatmap = heatmaps[detection].astype(np.float32, copy=False)
        pixels, scores[detection] = resized_argmax(heatmap, height, width)
        keypoints[detection, :, 0] = pixels % width
        keypoints[detection, :, 1] = pixels // width
    centres = keypoints[..., :2] + np.float32(0.5)
    keypoints[..., :2] = centres * (sides / sizes)[:, None] + boxes[:, None, :2]
    return keypoints, scores


def resize_keypoints(keypoints: Array, image_sizes: Array) -> Array:
    """Keypoints of the resized images -> pixels of the images as sent (torchvision's ``resize_keypoints``).

    Args:
        keypoints: float32 [B, D, P, 3], NumPy or CuPy. The visibility does not change.
        image_sizes: float32 [B, 4]: resized height and width, original height and width.
    """
    ratios = image_sizes[:, [3, 2]] / image_sizes[:, [1, 0]]  # [B, 2]: x, y
    resized = keypoints.copy()
    resized[..., :2] *= ratios[:, None, None]
    return resized


def warm_up(device: Device, dtype: npt.DTypeLike = np.float32) -> None:
    """Compiles the kernel that ``heatmaps_to_keypoints`` runs on a GPU for heatmaps of this type."""
    if device.is_gpu:
        from rcnn_backend.operators.gpu import keypoints as gpu  # needs CuPy

        gpu.warm_up(dtype)


@np.errstate(invalid="ignore")  # NaN and inf are handled as in torch
def resized_argmax(heatmap: Float, height: int, width: int) -> tuple[Int, Float]:
    """The maxima of resized heatmaps [P, h, w]: their pixel numbers [P] in row-major order, and their values [P].

    Both directions are resized by matrix products. The rows are computed in strips, each from only the samples it needs.
    """
    rows, columns = resample(heatmap.shape[1], height), resample(heatmap.shape[2], width)
    # Heatmaps with NaN or inf are not resized by a product, in which 0 * NaN and 0 * inf would spread everywhere.
    broken = np.flatnonzero(~np.isfinite(heatmap).all(axis=(1, 2)))
    wide = heatmap @ columns.matrix.T  # [P, h, width]
    if len(broken):
        wide[broken] = (heatmap[broken][..., columns.taps] * columns.weights).sum(axis=-1)
    strip_rows = max(1, STRIP_PIXELS // (len(heatmap) * width))
    best, values = [], []  # of each strip: [P]
    for top in range(0, height, strip_rows):
        strip = slice(top, top + strip_rows)
        taps = rows.taps[strip]
        sampled = slice(taps[0, 0], taps[-1, -1] + 1)
        resized = rows.matrix[strip, sampled] @ wide[:, sampled]  # [P, strip, width]
        if len(broken):
            resized[broken] = (wide[broken][:, taps] * rows.weights[strip, :, None]).sum(axis=2)
        flat = resized.reshape(len(heatmap), -1)
        places = flat.argmax(axis=1)
        best.append(top * width + places)
        values.append(flat[np.arange(len(flat)), places])
    winners, keypoints = np.argmax(values, axis=0), np.arange(len(heatmap))  # the first among equal strips
    return np.array(best)[winners, keypoints], np.array(values)[winners, keypoints]


class Resampling(NamedTuple):
    """A cubic interpolation of ``in`` samples at ``out`` positions."""

    taps: Int  # [out, 4], the samples used at each position
    weights: Float  # [out, 4]
    matrix: Float  # [out, in], the same weights as a matrix


def resample(size: int, resized: int) -> Resampling:
    """torch's bicubic interpolation along one axis, with half-pixel centres.

    Each position is rounded once, like the result of torch's fused multiply-add.
    """
    scale = np.float64(np.float32(size) / np.float32(resized))
    places = (scale * (np.arange(resized) + 0.5) - 0.5).astype(np.float32)
    before = np.floor(places)
    t = (places - before).astype(np.float64)
    u = 1 - t
    weights = np.stack([_outer(t + 1), _inner(t), _inner(u), _outer(u + 1)], axis=1).astype(np.float32)
    taps = (before.astype(np.int64)[:, None] + np.arange(-1, 3)).clip(0, size - 1)
    matrix = np.zeros((resized, size), np.float32)
    np.add.at(matrix, (np.arange(resized)[:, None], taps), weights)
    return Resampling(taps, weights, matrix)


def _inner(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cubic convolution's weight at a distance x of 0 to 1 samples (torch's ``cubic_convolution1``)."""
    return ((A + 2) * x - (A + 3)) * x * x + 1


def _outer(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cubic convolution's weight at a distance x of 1 to 2 samples (torch's ``cubic_convolution2``)."""
    return ((A * x - 5 * A) * x + 8 * A) * x - 4 * A
