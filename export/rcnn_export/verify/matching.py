"""Pairs the rows of two sets of boxes one to one. Their order does not matter, because ties may swap rows.

Boxes are (x1, y1, x2, y2) in pixels. A row's group is its pyramid level or its label; rows
of different groups never pair.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Float = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

UNMATCHED = -1
# More than the total cost of any number of pairs within their bounds (each costs at most 1).
OUT_OF_BOUNDS_COST = 1e6


@dataclass(frozen=True)
class Rows:
    """A set of n scored boxes."""

    boxes: Float  # [n, 4]
    scores: Float  # [n]
    groups: Indices  # [n]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: Indices) -> "Rows":
        """The rows at ``indices``."""
        return Rows(self.boxes[indices], self.scores[indices], self.groups[indices])


@dataclass(frozen=True)
class Matching:
    """For each row of one set, the paired row of the other set, or UNMATCHED."""

    a_to_b: Indices  # [rows of a]
    b_to_a: Indices  # [rows of b]

    @staticmethod
    def identity(count: int) -> "Matching":
        """The matching of two identical sets."""
        return Matching(np.arange(count), np.arange(count))

    def pairs(self) -> tuple[Indices, Indices]:
        """The paired rows: indices into a and, in the same order, into b."""
        in_a = np.flatnonzero(self.a_to_b != UNMATCHED)
        return in_a, self.a_to_b[in_a]


def match_rows(a: Rows, b: Rows, box_bounds_px: Float, score_bound: float) -> Matching:
    """Pairs as many rows as possible within the bounds, and chooses the nearest of such pairings.

    Args:
        a: the reference.
        b: the rows to compare with it.
        box_bounds_px: [rows of a], the largest allowed difference of each coordinate of a row.
        score_bound: the largest allowed difference of a score.
    """
    a_to_b, b_to_a = np.full(len(a), UNMATCHED), np.full(len(b), UNMATCHED)
    for group in np.intersect1d(a.groups, b.groups):
        in_a, in_b = np.flatnonzero(a.groups == group), np.flatnonzero(b.groups == group)
        cost = _distances(a.take(in_a), b.take(in_b), box_bounds_px[in_a], score_bound)
        cost = np.where(cost <= 1, cost, OUT_OF_BOUNDS_COST)
        rows, columns = linear_sum_assignment(cost)
        within = cost[rows, columns] <= 1
        a_to_b[in_a[rows[within]]] = in_b[columns[within]]
        b_to_a[in_b[columns[within]]] = in_a[rows[within]]
    return Matching(a_to_b, b_to_a)


def nearest_row(row: Rows, others: Rows, box_bound_px: float, score_bound: float) -> int | None:
    """Which of ``others`` is nearest to the only row in ``row``, or None if none is in its group."""
    same_group = np.flatnonzero(others.groups == row.groups[0])
    if not len(same_group):
        return None
    bounds = np.array([box_bound_px], np.float32)
    distances = _distances(row, others.take(same_group), bounds, score_bound)[0]
    return int(same_group[distances.argmin()])


def find_boxes(boxes: Float, candidates: Rows) -> Indices:
    """Which candidate each of ``boxes`` [n, 4] is, or UNMATCHED. The coordinates must be equal to the bit.

    Of candidates with the same box only the best of each group is used, as in NMS within groups;
    the groups are used in the order of their scores.
    """
    order = np.argsort(-candidates.scores, kind="stable")
    places: dict[bytes, dict[int, int]] = {}
    keys = [box.tobytes() for box in candidates.boxes + np.float32(0)]  # -0.0 becomes 0.0
    for candidate in order.tolist():
        places.setdefault(keys[candidate], {}).setdefault(int(candidates.groups[candidate]), candidate)
    queues = {key: iter(by_group.values()) for key, by_group in places.items()}
    found = [next(queues.get(box.tobytes(), iter(())), UNMATCHED) for box in boxes + np.float32(0)]
    return np.array(found, np.int64)


def find_rows(rows: Rows, candidates: Rows, box_bound_px: float, score_bound: float) -> Indices:
    """Which candidate each of ``rows`` is: the nearest one of its group within the bounds, or UNMATCHED."""
    found = np.full(len(rows), UNMATCHED)
    bounds = np.array([box_bound_px], np.float32)
    for index in range(len(rows)):
        row = rows.take(np.array([index]))
        nearest = nearest_row(row, candidates, box_bound_px, score_bound)
        if nearest is not None:
            distance = _distances(row, candidates.take(np.array([nearest])), bounds, score_bound)
            if distance[0, 0] <= 1:
                found[index] = nearest
    return found


def iou(box: Float, boxes: Float) -> npt.NDArray[np.float64]:
    """IoU [n] of one box [4] with boxes [n, 4]; 0 if both are empty."""
    one, many = box.astype(np.float64), boxes.astype(np.float64)
    sides = np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    union = (one[2:] - one[:2]).prod() + (many[:, 2:] - many[:, :2]).prod(axis=1) - intersection
    ious: npt.NDArray[np.float64] = np.divide(
        intersection, union, out=np.zeros_like(intersection), where=union > 0
    )
    return ious


def _distances(a: Rows, b: Rows, box_bounds_px: Float, score_bound: float) -> npt.NDArray[np.float64]:
    """[rows of a, rows of b]: the largest difference in units of its bound; at most 1 is within bounds."""
    boxes = np.abs(a.boxes[:, None].astype(np.float64) - b.boxes[None]).max(axis=2) / box_bounds_px[:, None]
    scores = np.abs(a.scores[:, None].astype(np.float64) - b.scores[None]) / score_bound
    distances: npt.NDArray[np.float64] = np.maximum(boxes, scores)
    return distances
