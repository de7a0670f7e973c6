"""GPU detections are torchvision's postprocess_detections on the same GPU, padded."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
import torch  # noqa: E402
from rcnn_backend.contract.parameters import DetectionParameters  # noqa: E402
from rcnn_backend.operators.gpu.detections import detect  # noqa: E402
from torchvision.models.detection.roi_heads import RoIHeads  # noqa: E402
from torchvision.models.detection.transform import resize_boxes  # noqa: E402

pytestmark = pytest.mark.gpu
SIZE_HW = (300, 400)
IMAGE_SIZE = np.array([*SIZE_HW, 600, 1000], np.float32)
PARAMETERS = DetectionParameters(0.05, 0.5, 1e-2, 100)
NAN, INF = float("nan"), float("inf")
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def random_boxes(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Boxes on a grid of 1/8 pixel, so that torchvision's shift by class rounds nothing; some cross the border."""
    corner = random.uniform(-50, 380, (*shape, 2))
    boxes = np.concatenate([corner, corner + random.uniform(0, 160, (*shape, 2))], axis=-1)
    return (boxes * 8).round().astype(np.float32) / 8


def found_in(
    scores: np.ndarray,
    boxes: np.ndarray,
    counts: list[int],
    parameters: list[DetectionParameters] | None = None,
    most: int = 100,
) -> list[Found]:
    """Each image's boxes, scores and labels; checks the padding."""
    sizes = np.tile(IMAGE_SIZE, (len(scores), 1))
    numbers = np.array(counts, np.int32)[:, None]
    arrays = [cupy.asarray(array) for array in (scores, boxes, numbers, sizes)]
    *results, found, _ = detect(*arrays, parameters or [PARAMETERS] * len(scores), most)
    assert [result.dtype for result in results] == [np.float32, np.float32, np.int64]
    assert results[0].shape == (len(scores), most, 4)
    images = []
    for image, count in enumerate(found.get().ravel()):
        whole = [result[image].get() for result in results]
        assert not any(array[count:].any() for array in whole)
        images.append(tuple(array[:count] for array in whole))
    return images


def torchvision_found(probabilities: np.ndarray, boxes: np.ndarray, parameters: DetectionParameters) -> Found:
    """torchvision's detections from one image's probabilities [R, K], without the background, and boxes [R, K, 4]."""
    rois = len(probabilities)
    background = 1 - probabilities.sum(axis=1, keepdims=True)
    all_boxes = np.concatenate([np.zeros((rois, 1, 4), np.float32), boxes], axis=1)
    heads = SimpleNamespace(
        box_coder=SimpleNamespace(decode=lambda regression, proposals: regression.reshape(rois, -1, 4)),
        score_thresh=parameters.score_thresh,
        nms_thresh=parameters.nms_thresh,
        detections_per_img=parameters.detections_per_img,
    )
    # the arguments are probabilities, not logits
    original, torch.nn.functional.softmax = (
        torch.nn.functional.softmax,
        lambda probabilities, dim: probabilities,
    )
    try:
        found = RoIHeads.postprocess_detections(
            heads,
            torch.from_numpy(np.concatenate([background, probabilities], axis=1)).cuda(),
            torch.from_numpy(all_boxes).cuda(),
            [torch.zeros(rois, 4)],
            [SIZE_HW],
        )
    finally:
        torch.nn.functional.softmax = original
    kept_boxes = resize_boxes(found[0][0], SIZE_HW, (600, 1000))
    return tuple(tensor.cpu().numpy() for tensor in (kept_boxes, found[1][0], found[2][0]))


def random_scores(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    logits = torch.from_numpy(random.normal(0, 2.5, (shape[0], shape[1] + 1)).astype(np.float32))
    return torch.softmax(logits, -1).numpy()[:, 1:]


def assert_equal(ours: Found, theirs: Found) -> None:
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_array_equal(ours[2], theirs[2])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)


@pytest.mark.parametrize(("rois", "classes"), [(1000, 90), (200, 6), (37, 3), (1, 1)])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_torchvision(rois: int, classes: int, ties: bool) -> None:
    random = np.random.default_rng(rois + classes)
    scores = np.stack([random_scores((rois, classes), random) for _ in range(3)])
    if ties:
        scores = scores.round(2)
    boxes = random_boxes((3, rois, classes), random)
    counts = [rois, (rois + 1) // 2, rois]
    found = found_in(scores, boxes, counts)
    for image, count in enumerate(counts):
        expected = torchvision_found(scores[image, :count], boxes[image, :count], PARAMETERS)
        assert_equal(found[image], expected)


def test_nan_and_inf() -> None:
    random = np.random.default_rng(8)
    scores, boxes = random_scores((300, 5), random), random_boxes((300, 5), random)
    scores.ravel()[random.permutation(1500)[:100]] = random.choice([NAN, INF, -INF], 100)
    boxes.reshape(-1)[random.permutation(6000)[:400]] = random.choice([NAN, INF, -INF], 400)
    expected = torchvision_found(scores, boxes, PARAMETERS)
    assert len(expected[0]) == 100
    assert_equal(found_in(scores[None], boxes[None], [300])[0], expected)


def test_by_hand() -> None:
    # In one class, the second box overlaps the first by 1/3, and the third the second. Another class is not affected.
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [396, 290, 500, 500]], np.float32)
    boxes = np.repeat(boxes[:, None], 2, axis=1)
    scores = np.array([[0.9, 0.04], [0.8, 0.8], [0.7, 0.05], [0.06, 0.04]], np.float32)
    ((found, found_scores, labels),) = found_in(
        scores[None], boxes[None], [4], [dataclasses.replace(PARAMETERS, nms_thresh=0.3)]
    )
    np.testing.assert_allclose(found_scores, [0.9, 0.8, 0.7, 0.06])
    np.testing.assert_array_equal(labels, [1, 2, 1, 1])
    # 300 x 400 pixels became 600 x 1000: y doubles, x grows by 2.5; the last box is clipped
    np.testing.assert_allclose(
        found, [[0, 0, 25, 20], [12.5, 0, 37.5, 20], [25, 0, 50, 20], [990, 580, 1000, 600]]
    )


def test_of_equal_scores_the_lower_proposal_and_then_the_lower_class_comes_first() -> None:
    boxes = np.zeros((1, 3, 2, 4), np.float32)
    boxes[0, :, 0] = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    boxes[0, :, 1] = [[60, 0, 70, 10], [80, 0, 90, 10], [100, 0, 110, 10]]
    ((found, _, labels),) = found_in(np.full((1, 3, 2), 0.5, np.float32), boxes, [3])
    np.testing.assert_array_equal(labels, [1, 2, 1, 2, 1, 2])
    np.testing.assert_array_equal(found[:, 0] / 2.5, [0, 60, 20, 80, 40, 100])


def test_no_detection_is_a_normal_answer() -> None:
    scores, boxes = np.zeros((3, 10, 3), np.float32), np.zeros((3, 10, 3, 4), np.float32)
    scores[1] = scores[2] = 0.9  # but the boxes have no size, or there are no proposals
    boxes[2] = [0, 0, 9, 9]
    for found in found_in(scores, boxes, [10, 10, 0]):
        assert not len(found[0])


def test_each_image_has_its_own_thresholds_and_d_stays() -> None:
    scores = np.tile(np.array([0.9, 0.6, 0.3], np.float32)[None, :, None], (3, 1, 1))
    boxes = np.tile(
        np.array([[0, 0, 10, 10], [6, 0, 16, 10], [90, 0, 99, 10]], np.float32)[None, :, None], (3, 1, 1, 1)
    )
    limits = [PARAMETERS, dataclasses.replace(PARAMETERS, score_thresh=0.5, detections_per_img=1),
              dataclasses.replace(PARAMETERS, nms_thresh=0.2)]  # fmt: skip
    found = found_in(scores, boxes, [3, 3, 3], limits)
    assert [len(image[0]) for image in found] == [3, 1, 2]


@pytest.mark.parametrize("most", [1, 100, 1000, 3000])
def test_more_kept_than_wanted(most: int) -> None:
    """No two boxes overlap, so all 90 x 100 are kept until the best are chosen."""
    random = np.random.default_rng(most)
    left, top = np.meshgrid(np.arange(0, 400, 40), np.arange(0, 300, 30))
    corner = np.stack([left.ravel(), top.ravel()], axis=1)  # [100, 2]
    boxes = np.concatenate([corner, corner + 9], axis=1).astype(np.float32)[None, :, None].repeat(90, axis=2)
    scores = random.permutation(9000).reshape(1, 100, 90).astype(np.float32) / 9000 + 0.06
    limits = dataclasses.replace(PARAMETERS, detections_per_img=most)
    ((_, found_scores, labels),) = found_in(scores, boxes, [100], [limits], most)
    order = np.argsort(-scores.ravel(), kind="stable")[:most]
    np.testing.assert_array_equal(found_scores, scores.ravel()[order])
    np.testing.assert_array_equal(labels, order % 90 + 1)


def test_many_proposals() -> None:
    random = np.random.default_rng(2)
    scores, boxes = random_scores((4096, 2), random), random_boxes((4096, 2), random)
    expected = torchvision_found(scores, boxes, PARAMETERS)
    assert_equal(found_in(scores[None], boxes[None], [4096])[0], expected)
    with pytest.raises(ValueError, match="suppress_classes needs 3162128 bytes of shared memory"):
        found_in(np.zeros((1, 100_000, 1), np.float32), np.zeros((1, 100_000, 1, 4), np.float32), [1])


def test_equals_the_cpu() -> None:
    pytest.importorskip("openvino")
    from rcnn_backend.operators.detections import detect as detect_on_cpu

    random = np.random.default_rng(6)
    scores = np.stack([random_scores((500, 20), random) for _ in range(2)])
    boxes = random_boxes((2, 500, 20), random)
    counts = np.array([[500], [333]], np.int32)
    sizes = np.tile(IMAGE_SIZE, (2, 1))
    expected = detect_on_cpu(scores, boxes, counts, sizes, [PARAMETERS] * 2, 100)
    arrays = [cupy.asarray(array) for array in (scores, boxes, counts, sizes)]
    for ours, theirs in zip(detect(*arrays, [PARAMETERS] * 2, 100), expected[:5], strict=True):
        np.testing.assert_allclose(ours.get(), theirs, rtol=1e-6)
