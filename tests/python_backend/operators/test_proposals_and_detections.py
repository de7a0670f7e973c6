"""filter_proposals and postprocess_detections give torchvision's boxes, and pad them."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    PoolParameters,
    ProposalParameters,
    read_parameters,
)
from rcnn_backend.errors import InvalidInputError, RepositoryError
from rcnn_backend.operators.detections import detect, override
from rcnn_backend.operators.proposals import filter_proposals, propose
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import resize_boxes

SIZE_HW = (300, 400)
PROPOSALS = ProposalParameters(0.2, 0.7, 1e-3, [10, 50, 200], 5000)
POOLING = PoolParameters([4, 8], 224, 4, [7, 7], 2)
DETECTIONS = DetectionParameters(0.05, 0.5, 1e-2, 100)
IMAGE_SIZE = np.array([*SIZE_HW, 600, 1000], np.float32)


def random_boxes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner = random.uniform(-50, 380, (*shape, 2))
    return np.concatenate([corner, corner + random.uniform(0, 120, (*shape, 2))], axis=-1).astype(np.float32)


def test_filter_proposals_equals_torchvision() -> None:
    random = np.random.default_rng(0)
    counts = [1200, 300, 7]
    boxes = random_boxes((sum(counts),), seed=1)
    logits = random.permutation(np.linspace(-4, 4, sum(counts))).astype(np.float32)
    torchvision_rpn = SimpleNamespace(
        pre_nms_top_n=lambda: 1000,
        post_nms_top_n=lambda: 200,
        min_size=1e-3,
        score_thresh=0.2,
        nms_thresh=0.7,
    )
    torchvision_rpn._get_top_n_idx = lambda *args: RegionProposalNetwork._get_top_n_idx(
        torchvision_rpn, *args
    )
    expected, _ = RegionProposalNetwork.filter_proposals(
        torchvision_rpn, torch.from_numpy(boxes)[None], torch.from_numpy(logits)[None], [SIZE_HW], counts
    )
    level = np.repeat(np.arange(3), counts)
    top = np.concatenate(
        [np.flatnonzero(level == i)[np.argsort(-logits[level == i])[:1000]] for i in range(3)]
    )
    scores = torch.sigmoid(torch.from_numpy(logits[top])).numpy()
    rpn_boxes = np.column_stack([scores, boxes[top], level[top]]).astype(np.float32)
    proposals = filter_proposals(rpn_boxes, IMAGE_SIZE[:2], PROPOSALS)
    assert len(proposals) == 200
    np.testing.assert_array_equal(proposals, expected[0].numpy())


def test_proposals_are_padded_to_a_step() -> None:
    features = [np.ones((2, 3, 64, 64), np.float32), np.ones((2, 3, 32, 32), np.float32)]
    rpn_boxes = np.zeros((2, 30, 6), np.float32)
    rpn_boxes[0, :, 0] = np.linspace(0.9, 0.3, 30)
    rpn_boxes[0, :, 1:5] = np.arange(30)[:, None] * [8, 0, 8, 0] + [0, 0, 6, 6]
    proposals = propose(rpn_boxes, features, np.stack([IMAGE_SIZE, IMAGE_SIZE]), PROPOSALS, POOLING)
    assert proposals.boxes.shape == (2, 50, 4)
    assert proposals.roialigned_feature.shape == (2, 50, 3, 7, 7)
    np.testing.assert_array_equal(proposals.num_proposals, [[30], [0]])
    assert not proposals.boxes[0, 30:].any()
    assert proposals.roialigned_feature[0, :30].all()
    assert not proposals.roialigned_feature[1].any()


def test_postprocess_detections_equals_torchvision() -> None:
    random = np.random.default_rng(3)
    rois, classes = 200, 6
    logits = torch.from_numpy(random.normal(0, 2, (rois, classes + 1)).astype(np.float32))
    boxes = random_boxes((rois, classes + 1), seed=4)
    heads = SimpleNamespace(
        box_coder=SimpleNamespace(decode=lambda regression, proposals: regression.reshape(rois, -1, 4)),
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
    )
    expected_boxes, expected_scores, expected_labels = RoIHeads.postprocess_detections(
        heads, logits, torch.from_numpy(boxes), [torch.zeros(rois, 4)], [SIZE_HW]
    )
    class_scores = torch.softmax(logits, -1).numpy()[None, :, 1:]
    found = detect(
        np.concatenate([class_scores, np.ones((1, 5, classes), np.float32)], axis=1),  # 5 padded rows
        np.concatenate([boxes[None, :, 1:], np.ones((1, 5, classes, 4), np.float32)], axis=1),
        np.array([[rois]], np.int32),
        IMAGE_SIZE[None],
        [DETECTIONS],
        100,
    )
    assert found.num_detections[0, 0] == 100
    np.testing.assert_array_equal(found.scores[0], expected_scores[0])
    np.testing.assert_array_equal(found.labels[0], expected_labels[0])
    np.testing.assert_allclose(
        found.boxes[0], resize_boxes(expected_boxes[0], SIZE_HW, (600, 1000)), rtol=1e-6
    )


def test_no_detection_is_a_normal_answer() -> None:
    scores, boxes = np.zeros((1, 10, 3), np.float32), np.zeros((1, 10, 3, 4), np.float32)
    for proposals in (0, 10):
        found = detect(scores, boxes, np.array([[proposals]], np.int32), IMAGE_SIZE[None], [DETECTIONS], 100)
        assert found.num_detections[0, 0] == 0
        assert found.boxes.shape == (1, 100, 4)
        assert not found.boxes.any()


def test_each_image_has_its_own_thresholds_and_d_stays() -> None:
    scores = np.tile(np.array([0.9, 0.6, 0.3], np.float32)[None, :, None], (2, 1, 1))
    boxes = np.tile(
        np.array([[0, 0, 10, 10], [50, 0, 60, 10], [90, 0, 99, 10]], np.float32)[None, :, None], (2, 1, 1, 1)
    )
    strict = override(DETECTIONS, {"score_thresh": 0.5, "detections_per_img": 1})
    found = detect(
        scores, boxes, np.array([[3], [3]], np.int32), np.stack([IMAGE_SIZE] * 2), [DETECTIONS, strict], 100
    )
    np.testing.assert_array_equal(found.num_detections, [[3], [1]])
    assert found.scores.shape == (2, 100)


@pytest.mark.parametrize(
    "request_parameters",
    [{"score_thresh": "high"}, {"score_thresh": 1.5}, {"nms_thresh": -0.1}, {"detections_per_img": 101}, {"score_thresh": "nan"}],
)  # fmt: skip
def test_bad_overrides_name_the_parameter(request_parameters: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(request_parameters))):
        override(DETECTIONS, request_parameters)


def test_a_threshold_for_masks_that_there_are_not_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="mask_thresh: this detector has no masks; leave it out"):
        override(DETECTIONS, {"mask_thresh": 0.5})
    assert override(DETECTIONS, {"mask_thresh": 0.5}, has_masks=True) is DETECTIONS
    with pytest.raises(InvalidInputError, match=r"mask_thresh is 1\.5: expected a number from 0 to 1"):
        override(DETECTIONS, {"mask_thresh": 1.5}, has_masks=True)


def test_overrides_replace_only_what_they_name() -> None:
    assert override(DETECTIONS, {}) is DETECTIONS
    assert override(DETECTIONS, {"nms_thresh": "0.3", "unrelated": 1}) == dataclasses.replace(
        DETECTIONS, nms_thresh=0.3
    )


def test_missing_or_broken_config_parameters_are_named() -> None:
    with pytest.raises(RepositoryError, match="no parameter 'score_thresh'"):
        read_parameters(DetectionParameters, {"name": "x", "parameters": {}})
    with pytest.raises(RepositoryError, match="expected a JSON value"):
        read_parameters(DetectionParameters, {"parameters": {"score_thresh": {"string_value": "0,5"}}})
