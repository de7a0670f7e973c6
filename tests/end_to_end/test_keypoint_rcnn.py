"""A small Keypoint R-CNN is exported, and in process and served it gives the boxes and keypoints of torchvision."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_export.detector.load import Detector
from rcnn_export.repository.write import export_repository
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from .small_detectors import (
    BATCHES,
    assert_served_as_in_process,
    assert_verified,
    calibrated,
    pixels_answer,
    pixels_of,
    small_parts,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.xdist_group("keypoint_rcnn")]

ANSWERS = ("boxes", "scores", "labels", "num_detections", "keypoints", "keypoint_scores")
KEYPOINTS = 3


@pytest.fixture(scope="module")
def detector() -> Detector:
    parts = small_parts()
    head = KeypointRCNNHeads(parts["backbone"].out_channels, (16, 16))
    predictor = KeypointRCNNPredictor(16, KEYPOINTS)
    return calibrated(KeypointRCNN(**parts, keypoint_head=head, keypoint_predictor=predictor))


@pytest.fixture(scope="module")
def repository(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keypoints")
    export_repository(detector, folder, "pointed")
    return folder


@pytest.fixture(scope="module")
def pipeline(repository: Path) -> Pipeline:
    return Pipeline.load(repository, "pointed")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[triton.InferenceServerClient]:
    with running_server(repository, ["pointed", "pointed_pixels", "pointed_fused"]) as running:
        yield triton.InferenceServerClient(running.grpc_url)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255


@torch.no_grad()
@pytest.mark.parametrize("numbers", BATCHES)
def test_the_pipeline_answers_as_torchvision_does(
    detector: Detector, pipeline: Pipeline, numbers: list[int]
) -> None:
    images = pixels_of(numbers)
    found, expected = pipeline.detect(images), detector.model([to_tensor(image) for image in images])
    assert (found.keypoints.shape, found.keypoints.dtype) == ((len(images), 30, KEYPOINTS, 3), np.float32)
    for image, reference in enumerate(expected):
        count = int(found.num_detections[image, 0])
        assert count == len(reference["scores"]) > 0
        np.testing.assert_array_equal(found.labels[image, :count], reference["labels"])
        np.testing.assert_allclose(found.boxes[image, :count], reference["boxes"], atol=0.05)
        np.testing.assert_allclose(found.keypoints[image, :count], reference["keypoints"], atol=0.05)
        scores = reference["keypoints_scores"]
        np.testing.assert_allclose(found.keypoint_scores[image, :count], scores, atol=1e-3)
        assert not found.keypoints[image, count:].any()


def test_few_detections_many_and_none_in_one_batch(pipeline: Pipeline) -> None:
    images = pixels_of([0, 2, 3])
    everything = pipeline.detect(images, {"score_thresh": 0.0})
    assert (everything.num_detections == 30).all()
    for count in (1, 7):
        few = pipeline.detect(images, {"score_thresh": 0.0, "detections_per_img": count})
        np.testing.assert_allclose(few.keypoints[:, :count], everything.keypoints[:, :count], atol=0.05)
        assert not few.keypoints[:, count:].any()
    nothing = pipeline.detect(images, {"score_thresh": 1.0})
    assert not nothing.num_detections.any() and not nothing.keypoints.any()


@pytest.mark.parametrize("model", ["pointed", "pointed_fused"])
@pytest.mark.parametrize(
    "parameters", [{}, {"score_thresh": 1.0}, {"score_thresh": 0.0}, {"detections_per_img": 2}]
)
def test_every_model_serves_the_keypoints_of_the_pipeline(
    server: triton.InferenceServerClient, pipeline: Pipeline, model: str, parameters: dict[str, float]
) -> None:
    assert_served_as_in_process(server, pipeline, model, parameters, ANSWERS)


def test_pixels_are_served_too(server: triton.InferenceServerClient, pipeline: Pipeline) -> None:
    answer = pixels_answer(server, "pointed_pixels", 4)
    expected = pipeline.detect(pixels_of([4])).keypoints
    np.testing.assert_allclose(answer.as_numpy("keypoints"), expected, atol=0.05)


def test_verify_holds_in_process_and_served(
    detector: Detector, pipeline: Pipeline, server: triton.InferenceServerClient
) -> None:
    assert_verified(detector, pipeline, server, "pointed", "keypoints")
