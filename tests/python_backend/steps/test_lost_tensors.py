"""A tensor that differs from the one that was sent is named, but only for the affected images."""

import numpy as np
import pytest
from rcnn_backend.contract.chain import FASTER_RCNN
from rcnn_backend.errors import LostTensorError
from rcnn_backend.steps.lost_tensors import (
    Arrived,
    Sent,
    find_lost,
    raise_if_lost,
    sent_to,
    take_samples,
)

BATCH = 2


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).random(shape, np.float32)


def proposals_tensors() -> dict[str, np.ndarray]:
    """What the proposals step gets when nothing is lost."""
    network_input, image_sizes = random(BATCH, 3, 64, 96), random(BATCH, 4)
    features = {f"feature_{level}": random(BATCH, 8, 16 >> level, 24 >> level) for level in range(3)}
    rpn_boxes = random(BATCH, 50, 6)
    return {
        "rpn_boxes": rpn_boxes,
        **features,
        "image_sizes": image_sizes,
        "preprocess_samples": take_samples([network_input, image_sizes]),
        "rpn_samples": take_samples([network_input, rpn_boxes, *features.values()]),
    }


def lost_before(step: str, tensors: dict[str, np.ndarray]) -> list[list[str]]:
    sent = sent_to(FASTER_RCNN, FASTER_RCNN.step(step), Arrived(tensors).by_name())
    return find_lost(sent, BATCH)


def detections_tensors(classes: int, pooled_size: int) -> dict[str, np.ndarray]:
    """What the detections step gets when nothing is lost."""
    roialigned_feature, proposals = random(BATCH, 9, 8, pooled_size, pooled_size), random(BATCH, 9, 4)
    num_proposals = np.array([[9], [0]], np.int32)
    class_scores, class_boxes = random(BATCH, 9, classes), random(BATCH, 9, classes, 4)
    image_sizes = random(BATCH, 4)
    return {
        "class_scores": class_scores,
        "class_boxes": class_boxes,
        "num_proposals": num_proposals,
        "image_sizes": image_sizes,
        "preprocess_samples": take_samples([random(BATCH, 3, 32, 32), image_sizes]),
        "proposals_samples": take_samples([proposals, roialigned_feature, num_proposals]),
        "header_samples": take_samples([roialigned_feature, proposals, class_scores, class_boxes]),
    }


def test_samples_are_the_first_elements_of_each_image_and_the_largest_of_its_middle() -> None:
    feature = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    feature[0, 1, 2, 1] = -200
    feature[1, 2, 3, 4] = 500  # not in the middle row
    counts = np.array([[7], [8]], np.int32)
    half = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], np.float16)
    expected = [
        [0, 1, 2, 3, 200, 7, 0, 0, 0, 7, 1, 2, 3, 4, 5],
        [60, 61, 62, 63, 114, 8, 0, 0, 0, 8, 6, 7, 8, 9, 10],
    ]
    samples = take_samples([feature, counts, half])
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, expected)


def test_nothing_is_lost() -> None:
    assert lost_before("proposals", proposals_tensors()) == [[], []]
    for classes, pooled_size in [(90, 7), (1, 7), (3, 2)]:
        assert lost_before("detections", detections_tensors(classes, pooled_size)) == [[], []]


@pytest.mark.parametrize("name", ["rpn_boxes", "feature_0", "feature_2", "image_sizes"])
def test_a_tensor_lost_before_the_proposals(name: str) -> None:
    tensors = proposals_tensors()
    tensors[name][1] = 0
    assert lost_before("proposals", tensors) == [[], [name]]


def test_a_lost_tensor_that_begins_as_the_one_that_was_sent() -> None:
    """The corner of a feature map after a ReLU is often zero, and so is uninitialised memory."""
    tensors = proposals_tensors()
    feature = tensors["feature_0"]
    feature[0, 0, 0] = 0
    tensors["rpn_samples"][:, 10:15] = take_samples([feature])
    feature[0] = 0
    assert lost_before("proposals", tensors) == [["feature_0"], []]


def test_an_input_lost_before_an_engine_shows_in_what_the_engine_echoes() -> None:
    tensors = proposals_tensors()
    tensors["rpn_samples"][0, :4] = 0
    assert lost_before("proposals", tensors) == [["input"], []]


@pytest.mark.parametrize("name", ["class_scores", "class_boxes", "num_proposals", "image_sizes"])
def test_a_tensor_lost_before_the_detections(name: str) -> None:
    tensors = detections_tensors(90, 7)
    tensors[name][0] = 3
    assert lost_before("detections", tensors) == [[name], []]


def test_lost_samples_are_as_bad_as_lost_tensors() -> None:
    tensors = proposals_tensors()
    tensors["rpn_samples"][:] = 0
    lost = ["input", "rpn_boxes", "feature_0", "feature_1", "feature_2"]
    assert lost_before("proposals", tensors) == [lost, lost]


def test_nan_equals_nan() -> None:
    boxes = np.array([[np.nan, 1], [2, np.nan]], np.float32)
    assert find_lost(iter([Sent("boxes", boxes, boxes.copy())]), 2) == [[], []]


def is_lost(dtype: type, stored: float, sampled: float) -> bool:
    """Whether a tensor of value ``stored`` counts as lost if an engine sampled ``sampled`` from it."""
    arrived = Arrived({"feature_0": np.full((1, 1), stored, dtype)}).by_name()["feature_0"]
    sent = take_samples([np.full((1, 1), sampled, np.float32)])
    return find_lost(iter([Sent("feature_0", arrived, sent)]), 1) == [["feature_0"]]


HALF, SINGLE = np.float16, np.float32
ABOVE_1, TWO_ABOVE_1 = 1 + 2.0**-10, 1 + 2.0**-9  # in float16


@pytest.mark.parametrize(
    ("dtype", "stored", "sampled"),
    [
        (HALF, 0.1, 0.1),  # float16 cannot represent it
        (HALF, 1, 1.0004),
        (HALF, 1, ABOVE_1),
        (HALF, -ABOVE_1, -1),
        (HALF, 1, 1 - 2.0**-11),  # the spacing halves below a power of two
        (HALF, 0.0, -0.0),
        (HALF, 3e-5, 3.0001e-5),  # subnormal
        (HALF, 2.0**-24, 2.0**-26),
        (HALF, -(2.0**-24), 0),
        (HALF, np.inf, 70_000),
        (HALF, np.inf, 65_519.9),  # the largest that is rounded down
        (HALF, -np.inf, -np.inf),
        (HALF, np.nan, np.nan),
        (SINGLE, 1, 1 + 2.0**-23),
        (SINGLE, 1e-40, 0),  # a GPU may flush it to zero
        (SINGLE, np.inf, np.inf),
        (np.int32, 1000, 1000),
    ],
)
def test_one_unit_in_the_last_place_is_no_loss(dtype: type, stored: float, sampled: float) -> None:
    assert not is_lost(dtype, stored, sampled)


@pytest.mark.parametrize(
    ("dtype", "stored", "sampled"),
    [
        (HALF, 1, TWO_ABOVE_1),
        (HALF, 1, -1),
        (HALF, 0, 2.0**-23),
        (HALF, -(2.0**-24), 2.0**-24),
        (HALF, 0, 0.1),
        (HALF, np.inf, 60_000),
        (HALF, np.inf, -np.inf),
        (HALF, np.inf, np.nan),
        (HALF, np.nan, 0),
        (SINGLE, 1, 1 + 2.0**-22),
        (SINGLE, 1, ABOVE_1),
        (SINGLE, 0, 1e-37),
        (SINGLE, np.nan, np.inf),
        (np.int32, 1000, 999),
    ],
)
def test_more_than_one_unit_in_the_last_place_is_a_loss(dtype: type, stored: float, sampled: float) -> None:
    assert is_lost(dtype, stored, sampled)


def test_samples_that_were_taken_before_rounding() -> None:
    """The tensor itself does not count as lost, but zeros, another image's values and uninitialised memory do."""
    feature = np.random.default_rng(3).normal(0, 3, (4, 8, 6, 5)).astype(np.float32)
    stored = feature.astype(np.float16)
    stored[1] = 0
    stored[2] = stored[3]
    stored.view(np.uint8)[3] = 0xA5
    arrived = Arrived({"feature_0": stored}).by_name()["feature_0"]
    found = find_lost(iter([Sent("feature_0", arrived, take_samples([feature]))]), 4)
    assert found == [[], ["feature_0"], ["feature_0"], ["feature_0"]]


def test_another_number_of_samples_means_another_export() -> None:
    with pytest.raises(ValueError, match="export the detector again"):
        find_lost(iter([Sent("boxes", np.zeros((1, 4), np.float32), np.zeros((1, 3), np.float32))]), 1)


def test_the_error_names_the_tensors_and_the_flags() -> None:
    raise_if_lost([])
    with pytest.raises(LostTensorError, match=r"input, feature_0 got lost .*--cuda-memory-pool-byte-size"):
        raise_if_lost(["input", "feature_0", "input"])
