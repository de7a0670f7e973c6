"""Compares the heads' outputs for the final detections with torchvision's: masks, heatmaps, keypoints.

Arguments, and links between rows, are as in compare.py.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from rcnn_export.verify.differences import Comparison
from rcnn_export.verify.matching import Float, Indices
from rcnn_export.verify.ties import Link


def compare_maps(
    comparison: Comparison,
    maps: tuple[Float, Float],
    link: Link,
    bound: float,
    torchvision_head: Callable[[Indices], Float] | None = None,
) -> None:
    """A head's output for the detections, [n, ...] of each side, detection by detection.

    Args:
        bound: the largest allowed difference.
        torchvision_head: given if the two sides had different features; returns torchvision's maps for some of the
            export's features; see ``compare_header``.
    """
    in_a, in_b = link.matching.pairs()
    differences = np.abs(maps[0][in_a] - maps[1][in_b])  # [pairs, ...]
    differs = _any_in_row(differences > bound)
    if torchvision_head is None:
        differs[:] = False
    elif comparison.bounds.explains and differs.any():
        own, expected = maps[1][in_b[differs]], torchvision_head(in_b[differs])
        agrees = ~_any_in_row(np.abs(own - expected) > bound)
        differs[differs] = agrees
        if agrees.any():
            comparison.explained["both heads agree on the exported RoI"] += int(agrees.sum())
    comparison.difference("value").add(differences[~differs], bound)
    comparison.matched += int((~differs).sum())
    comparison.rows += len(in_a)


def compare_keypoints(
    comparison: Comparison,
    found: tuple[Mapping[str, Float], Mapping[str, Float]],
    link: Link,
    score_bound: float,
    torchvision_keypoints: Callable[[Indices], Mapping[str, Float]] | None = None,
) -> None:
    """``keypoints`` [n, P, 3] and ``keypoint_scores`` [n, P] of each side, keypoint by keypoint.

    A keypoint is the highest position in its heatmap. If two positions have values that differ by less than the bound
    of scores, either can be the highest. This is a tie, and both scores are within the bound.

    Args:
        score_bound: the largest allowed difference of a value of the heatmaps.
        torchvision_keypoints: given if the two sides had different heatmaps or boxes; returns torchvision's keypoints
            for some of the export's detections. A small difference of a box can make its map a pixel wider, which
            changes every position in it.
    """
    in_a, in_b = link.matching.pairs()
    bounds = comparison.bounds
    ours = found[1]["keypoints"][in_b]
    shifts = np.abs(found[0]["keypoints"][in_a] - ours).max(axis=2, initial=0)  # [pairs, P]
    scores = np.abs(found[0]["keypoint_scores"][in_a] - found[1]["keypoint_scores"][in_b])
    ties = (shifts > bounds.box_px) & (scores <= score_bound)
    moved = np.zeros_like(ties)
    rows = _any_in_row((shifts > bounds.box_px) | (scores > score_bound))
    if torchvision_keypoints is not None and bounds.explains and rows.any():
        expected = torchvision_keypoints(in_b[rows])
        own_shifts = np.abs(expected["keypoints"] - ours[rows]).max(axis=2, initial=0)
        moved[rows] = (own_shifts <= bounds.box_px) & ((shifts > bounds.box_px) | (scores > score_bound))[
            rows
        ]
        ties &= ~moved
    for reason, which in (
        ("tie of the heatmap", ties),
        ("torchvision finds it there in the exported heatmap", moved),
    ):
        if which.any():
            comparison.explained[reason] += int(which.sum())
    comparison.difference("px").add(shifts[~ties & ~moved], bounds.box_px)
    comparison.difference("value").add(scores[~moved], score_bound)
    comparison.matched += len(in_a)
    comparison.rows += len(in_a)


def _any_in_row(differs: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[n, ...] -> [n]."""
    rows: npt.NDArray[np.bool_] = differs.any(axis=tuple(range(1, differs.ndim)))
    return rows
