"""GPU proposals: NMS keeps the same boxes in the same order as torchvision on the same GPU."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
import torch  # noqa: E402
import torchvision  # noqa: E402
from rcnn_backend.contract.parameters import PoolParameters, ProposalParameters  # noqa: E402
from rcnn_backend.operators.gpu.proposals import filter_proposals, propose  # noqa: E402
from torchvision.models.detection.rpn import RegionProposalNetwork  # noqa: E402

pytestmark = pytest.mark.gpu
PARAMETERS = ProposalParameters(0.0, 0.7, 1e-3, [1000], 5000)
POOLING = PoolParameters([4, 8], 224, 4, [7, 7], 2)
HEIGHT, WIDTH = 800.0, 1344.0
NAN, INF = float("nan"), float("inf")


def random_boxes(count: int, random: np.random.Generator, crowding: int = 40) -> np.ndarray:
    """Boxes inside the picture, around ``crowding`` objects, on a grid of 1/8 pixel."""
    objects = random.uniform([0, 0, 20, 20], [WIDTH - 400, HEIGHT - 400, 300, 300], (crowding, 4))
    boxes = objects[random.integers(0, crowding, count)] + random.normal(0, 12, (count, 4))
    boxes[:, :2] = boxes[:, :2].clip(0)
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(2, 380)
    return (boxes * 8).round().astype(np.float32) / 8


def rows_of(scores: np.ndarray, boxes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return np.column_stack([scores, boxes, levels]).astype(np.float32)


def filtered(
    rpn_boxes: np.ndarray, parameters: ProposalParameters, size_hw: tuple[float, float] = (HEIGHT, WIDTH)
) -> list[np.ndarray]:
    """Each image's proposals; checks the padding."""
    sizes = np.tile(np.array([*size_hw, 1, 1], np.float32), (len(rpn_boxes), 1))
    boxes, counts = filter_proposals(cupy.asarray(rpn_boxes), cupy.asarray(sizes), parameters)
    assert boxes.shape == (len(rpn_boxes), parameters.padded_counts[-1], 4)
    assert counts.shape == (len(rpn_boxes), 1)
    for image, count in zip(boxes.get(), counts.get().ravel(), strict=True):
        assert not image[count:].any()
    return [image[:count] for image, count in zip(boxes.get(), counts.get().ravel(), strict=True)]


def torchvision_kept(
    scores: np.ndarray, boxes: np.ndarray, levels: np.ndarray, threshold: float
) -> np.ndarray:
    """torchvision's nms within each level, then all boxes by score; among equal scores, the lower index comes first."""
    kept = []
    for level in np.unique(levels):
        members = torch.from_numpy(np.flatnonzero(levels == level)).cuda()
        own = torch.from_numpy(boxes).cuda()[members], torch.from_numpy(scores).cuda()[members]
        kept.append(members[torchvision.ops.nms(*own, threshold)])
    indices = torch.cat(kept).sort().values
    order = torch.from_numpy(scores).cuda()[indices].sort(stable=True, descending=True).indices
    return indices[order].cpu().numpy()


def test_200_random_sets_keep_torchvision_s_index_list() -> None:
    random = np.random.default_rng(0)
    for number in range(200):
        count = int(random.integers(1, 5001))
        boxes = random_boxes(count, random, crowding=int(random.integers(1, 200)))
        boxes[:, 0] = boxes[:, 0].round() + np.arange(count) % 8 / 8  # boxes differ, and not only by chance
        boxes = boxes + random.uniform(0, 0.1, (count, 4)).astype(np.float32)
        scores = random.uniform(0, 1, count).astype(np.float32)
        if number % 3 == 0:
            scores = scores.round(2)  # many ties
        threshold = float(random.choice([0.3, 0.5, 0.7]))
        expected = torchvision_kept(scores, boxes, np.zeros(count), threshold)
        parameters = dataclasses.replace(PARAMETERS, nms_thresh=threshold, padded_counts=[count])
        (found,) = filtered(rows_of(scores, boxes, np.zeros(count))[None], parameters, (1e5, 1e5))
        np.testing.assert_array_equal(found, boxes[expected], err_msg=f"set {number}")


@pytest.mark.parametrize("most", [100, 1000, 6000])
@pytest.mark.parametrize("ties", [False, True])
def test_a_batch_of_pyramids_equals_torchvision(most: int, ties: bool) -> None:
    random = np.random.default_rng(most)
    levels = np.repeat(np.arange(5), [1000, 1000, 1000, 1000, 390])
    batch, expected = [], []
    for _ in range(3):
        boxes = random_boxes(len(levels), random)
        scores = random.uniform(0, 1, len(levels)).astype(np.float32)
        if ties:
            scores = scores.round(2)
        for level in range(4):  # all levels but one are sorted
            scores[levels == level] = -np.sort(-scores[levels == level])
        batch.append(rows_of(scores, boxes, levels))
        expected.append(boxes[torchvision_kept(scores, boxes, levels, 0.7)][:most])
    found = filtered(np.stack(batch), dataclasses.replace(PARAMETERS, padded_counts=[most]))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("oddities", [False, True])
def test_equals_torchvision_filter_proposals(oddities: bool) -> None:
    random = np.random.default_rng(5)
    counts = [1200, 300, 7]
    boxes = random_boxes(sum(counts), random) - 40  # some cross the border
    logits = random.permutation(np.linspace(-4, 4, sum(counts))).astype(np.float32)
    if oddities:
        places = random.permutation(sum(counts))[:120]
        boxes[places[:60], random.integers(0, 4, 60)] = random.choice([NAN, INF, -INF], 60)
        logits[places[60:]] = random.choice([NAN, INF, -INF], 60)
    rpn = SimpleNamespace(
        pre_nms_top_n=lambda: 1000,
        post_nms_top_n=lambda: 200,
        min_size=1e-3,
        score_thresh=0.2,
        nms_thresh=0.7,
    )
    rpn._get_top_n_idx = lambda *args: RegionProposalNetwork._get_top_n_idx(rpn, *args)
    on_gpu = torch.from_numpy(boxes)[None].cuda(), torch.from_numpy(logits)[None].cuda()
    expected, _ = RegionProposalNetwork.filter_proposals(rpn, *on_gpu, [(600, 1000)], counts)
    levels = np.repeat(np.arange(3), counts)
    top = rpn._get_top_n_idx(on_gpu[1], counts)[0].cpu().numpy()
    scores = torch.sigmoid(on_gpu[1][0]).cpu().numpy()
    parameters = dataclasses.replace(PARAMETERS, score_thresh=0.2, padded_counts=[200])
    (found,) = filtered(rows_of(scores[top], boxes[top], levels[top])[None], parameters, (600, 1000))
    np.testing.assert_array_equal(found, expected[0].cpu().numpy())
    assert len(found) == 200


def test_a_suppressed_box_suppresses_nothing() -> None:
    # The IoU of neighbours is 1/3, that of the outer two is 0: the first removes the second, so the third stays.
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    parameters = dataclasses.replace(PARAMETERS, nms_thresh=0.3)
    one_level, two_levels = rows_of(scores, boxes, np.zeros(3)), rows_of(scores, boxes, np.array([0, 0, 1]))
    two_levels[1] = [0.8, 10, 0, 20, 10, 0]
    two_levels[2] = [0.95, 5, 0, 15, 10, 1]
    found = filtered(np.stack([one_level, two_levels]), parameters)
    np.testing.assert_array_equal(found[0], boxes[[0, 2]])
    np.testing.assert_array_equal(found[1], boxes[[1, 0, 2]])


def test_a_long_chain_of_overlaps() -> None:
    # Each box overlaps only its neighbours, by 1/3: every second one stays, in every word of 64.
    left = 5 * np.arange(300)
    boxes = np.stack([left, 0 * left, left + 10, 0 * left + 10], axis=1).astype(np.float32)
    rows = rows_of(np.linspace(0.9, 0.1, 300), boxes, np.zeros(300))[None]
    (found,) = filtered(rows, dataclasses.replace(PARAMETERS, nms_thresh=0.3), (10, 2000))
    np.testing.assert_array_equal(found, boxes[::2])


def test_iou_equal_to_the_threshold_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU exactly 0.5
    rows = rows_of(np.array([0.9, 0.8]), boxes, np.zeros(2))[None]
    assert len(filtered(rows, dataclasses.replace(PARAMETERS, nms_thresh=0.5))[0]) == 2
    assert len(filtered(rows, dataclasses.replace(PARAMETERS, nms_thresh=0.499))[0]) == 1


def test_of_equal_scores_the_lower_row_comes_first() -> None:
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10], [90, 0, 99, 9]], np.float32)
    rows = rows_of(np.full(4, 0.5), boxes, np.array([0, 0, 0, 1]))[None]
    np.testing.assert_array_equal(filtered(rows, PARAMETERS)[0], boxes[[0, 1, 3]])


def test_clip_and_drop() -> None:
    rows = np.array(
        [
            [0.9, -5, -5, 20, 20, 0],  # clipped
            [0.8, 30, 30, 30.0005, 60, 0],  # too narrow
            [0.1, 40, 40, 50, 50, 0],  # scored too low
            [NAN, 40, 40, 50, 50, 1],
            [0.7, NAN, 40, 50, 50, 1],
            [0.6, 60, 60, INF, INF, 1],  # clipped
            [0.5, 200, 10, 220, 30, 2],  # completely outside
        ],
        np.float32,
    )
    (found,) = filtered(rows[None], dataclasses.replace(PARAMETERS, score_thresh=0.2), (80, 100))
    np.testing.assert_array_equal(found, [[0, 0, 20, 20], [60, 60, 100, 80]])


def test_none_and_one() -> None:
    rows = np.zeros((2, 700, 6), np.float32)
    rows[1, 500] = [0.5, 1, 2, 3, 4, 0]
    found = filtered(rows, PARAMETERS)
    assert not len(found[0])
    np.testing.assert_array_equal(found[1], [[1, 2, 3, 4]])
    (single,) = filtered(np.array([[[0.5, 1, 2, 3, 4, 3]]], np.float32), PARAMETERS)
    np.testing.assert_array_equal(single, [[1, 2, 3, 4]])


def test_memory_nobody_wrote_does_no_harm() -> None:
    random = np.random.default_rng(1)
    for _ in range(5):
        rows = random.integers(0, 2**32, (2, 1500, 6), np.uint32).view(np.float32)
        sizes = random.integers(0, 2**32, (2, 4), np.uint32).view(np.float32)
        _, counts = filter_proposals(cupy.asarray(rows), cupy.asarray(sizes), PARAMETERS)
        assert (counts.get() >= 0).all()
        assert (counts.get() <= 1000).all()


def test_equals_the_cpu() -> None:
    pytest.importorskip("openvino")
    from rcnn_backend.operators.proposals import propose as propose_on_cpu

    random = np.random.default_rng(9)
    levels = np.repeat(np.arange(3), [400, 300, 50])
    rows = np.stack([rows_of(random.uniform(0, 1, 750), random_boxes(750, random), levels) for _ in range(2)])
    sizes = np.tile(np.array([HEIGHT, WIDTH, 1, 1], np.float32), (2, 1))
    features = [
        random.standard_normal((2, 16, int(HEIGHT) // s, int(WIDTH) // s), np.float32) for s in (4, 8)
    ]
    parameters = dataclasses.replace(PARAMETERS, padded_counts=[300])
    expected = propose_on_cpu(rows, features, sizes, parameters, POOLING)
    on_gpu = [cupy.asarray(feature) for feature in features]
    boxes, pooled, counts = propose(cupy.asarray(rows), on_gpu, cupy.asarray(sizes), parameters, POOLING)
    np.testing.assert_array_equal(counts.get(), expected.num_proposals)
    np.testing.assert_array_equal(boxes.get(), expected.boxes)
    np.testing.assert_allclose(pooled.get(), expected.roialigned_feature, atol=5e-5)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rpn_boxes is \(1, 8, 5\): expected \[B, N, 6\]"):
        filter_proposals(cupy.zeros((1, 8, 5), np.float32), cupy.ones((1, 4), np.float32), PARAMETERS)
