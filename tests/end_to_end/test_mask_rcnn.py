"""A small Mask R-CNN is exported, and in process and served it gives the boxes and masks of torchvision."""

import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from PIL import Image
from pycocotools import mask as coco_mask
from rcnn_backend.contract.chain import MASK_RCNN
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_client import Detections
from rcnn_client import Detector as Client
from rcnn_export.detector.load import Detector
from rcnn_export.repository.write import export_repository
from rcnn_export.verify.reference import run_reference
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image
from tritonclient.utils import InferenceServerException

from .small_detectors import (
    BATCHES,
    PICTURES,
    assert_served_as_in_process,
    assert_verified,
    calibrated,
    pixels_answer,
    pixels_of,
    small_parts,
)

pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.xdist_group("mask_rcnn")]

ANSWERS = ("boxes", "scores", "labels", "num_detections", "masks")


@pytest.fixture(scope="module")
def detector() -> Detector:
    return calibrated(smooth_masks(MaskRCNN(**small_parts())))


@torch.no_grad()
def smooth_masks(model: MaskRCNN) -> MaskRCNN:
    """Make masks smooth, with an inside and an outside like those of objects, because random masks are noise."""
    heads = model.roi_heads
    heads.mask_head.append(nn.AvgPool2d(9, 1, 4))
    deconvolution = heads.mask_predictor.conv5_mask.weight  # [in, out, 2, 2]
    deconvolution[:] = deconvolution.mean(dim=(2, 3), keepdim=True)
    return model


@pytest.fixture(scope="module")
def repository(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    export_repository(detector, folder, "masked")
    return folder


@pytest.fixture(scope="module")
def pipeline(repository: Path) -> Pipeline:
    return Pipeline.load(repository, "masked")


@pytest.fixture(scope="module")
def server_url(repository: Path) -> Iterator[str]:
    with running_server(repository, ["masked", "masked_pixels", "masked_fused"]) as running:
        yield running.grpc_url


@pytest.fixture(scope="module")
def server(server_url: str) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(server_url)


@pytest.mark.parametrize("numbers", BATCHES)
def test_the_pipeline_answers_as_torchvision_does(
    detector: Detector, pipeline: Pipeline, numbers: list[int]
) -> None:
    images = pixels_of(numbers)
    found, expected = pipeline.detect(images), run_reference(detector.model, images)
    assert (found.masks.shape, found.masks.dtype) == ((len(images), 30, 28, 28), np.float16)
    for image, reference in enumerate(expected.detections):
        count = int(found.num_detections[image, 0])
        assert count == len(reference.scores) > 0
        np.testing.assert_array_equal(found.labels[image, :count], reference.labels)
        np.testing.assert_allclose(found.boxes[image, :count], reference.boxes, atol=0.05)
        np.testing.assert_allclose(found.masks[image, :count], expected.head_maps[image], atol=1e-3)
        assert not found.masks[image, count:].any()


def test_the_pipeline_pastes_as_torchvision_does(pipeline: Pipeline) -> None:
    images = pixels_of([3, 1, 5])
    for thresh in (0.5, 0.3):
        found = pipeline.detect(images, {"mask_thresh": thresh})
        assert (found.rles.shape, found.rles.dtype) == ((len(images), 30), np.object_)
        for image, pixels in enumerate(images):
            count, size_hw = int(found.num_detections[image, 0]), pixels.shape[:2]
            masks = torch.from_numpy(found.masks[image, :count].astype(np.float32))[:, None]
            pasted = paste_masks_in_image(masks, torch.from_numpy(found.boxes[image, :count]), size_hw)
            for rle, own in zip(found.rles[image, :count], pasted[:, 0].numpy() > thresh, strict=True):
                decoded = coco_mask.decode({"size": list(size_hw), "counts": rle})
                assert (decoded != own).sum() <= 1e-5 * own.size
            assert not any(found.rles[image, count:])


def test_the_pipeline_computes_what_is_wanted(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels_of([0])
    everything = pipeline.detect(images)
    only = {name: pipeline.detect(images, wanted={"boxes", name}) for name in ("masks", "rles")}
    assert {name: list(found.of_head) for name, found in only.items()} == {
        "masks": ["masks"],
        "rles": ["rles"],
    }
    np.testing.assert_array_equal(only["masks"].masks, everything.masks)
    np.testing.assert_array_equal(only["rles"].rles, everything.rles)
    _, second = pipeline.detect_requests(
        [(images, pipeline.read_options({}, wanted)) for wanted in ({"boxes"}, {"rles"})]
    )
    np.testing.assert_array_equal(second.rles, everything.rles)
    monkeypatch.setattr("rcnn_backend.engines.head.run_packed", None)
    found = pipeline.detect(images, wanted={"boxes", "scores"})
    assert not found.of_head
    np.testing.assert_array_equal(found.boxes, everything.boxes)


def test_few_detections_many_and_none_in_one_batch(pipeline: Pipeline) -> None:
    images = pixels_of([0, 2, 3])
    everything = pipeline.detect(images, {"score_thresh": 0.0})
    assert (everything.num_detections == 30).all()
    for count in (1, 7):
        few = pipeline.detect(images, {"score_thresh": 0.0, "detections_per_img": count})
        np.testing.assert_allclose(few.masks[:, :count], everything.masks[:, :count], atol=1e-3)
        assert not few.masks[:, count:].any()
    nothing = pipeline.detect(images, {"score_thresh": 1.0})
    assert not nothing.num_detections.any()
    assert not nothing.masks.any()


@pytest.mark.parametrize("model", ["masked", "masked_fused"])
@pytest.mark.parametrize(
    "parameters", [{}, {"score_thresh": 1.0}, {"score_thresh": 0.0}, {"detections_per_img": 2}]
)
def test_every_model_serves_the_masks_of_the_pipeline(
    server: triton.InferenceServerClient, pipeline: Pipeline, model: str, parameters: dict[str, float]
) -> None:
    assert_served_as_in_process(server, pipeline, model, parameters, ANSWERS)


def ask(
    server: triton.InferenceServerClient,
    model: str,
    encoded: bytes,
    outputs: list[str] | None = None,
    **parameters: float,
) -> triton.InferResult:
    """The answer for a picture, with all outputs if ``outputs`` is not given."""
    image = triton.InferInput("image", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[encoded]], np.object_))
    wanted = outputs and [triton.InferRequestedOutput(name) for name in outputs]
    return server.infer(model, [image], outputs=wanted, parameters=parameters, client_timeout=60)


@pytest.mark.parametrize("model", ["masked", "masked_fused"])
def test_run_lengths_are_those_of_the_masks_as_the_client_pastes_them(
    server: triton.InferenceServerClient, model: str
) -> None:
    for parameters in ({}, {"mask_thresh": 0.3}, {"score_thresh": 1.0}):
        for number in (0, 3, 5):
            answer = ask(server, model, PICTURES[number], **parameters)
            rles, count = answer.as_numpy("rles")[0], int(answer.as_numpy("num_detections")[0, 0])
            found = Detections(
                *(answer.as_numpy(name)[0, :count] for name in ("boxes", "scores", "labels")),
                ["a"] * count,
                answer.as_numpy("masks")[0, :count],
                pixels_of([number])[0].shape[:2],
            )
            own = found.rle(parameters.get("mask_thresh"))
            assert [rle.decode() for rle in rles[:count]] == [each["counts"] for each in own]
            assert not any(rles[count:])


def test_run_lengths_of_a_large_picture_are_small(server: triton.InferenceServerClient) -> None:
    """On 12 megapixels, 30 detections take less than 0.3 MB; 100 would take less than 1 MB."""
    large = io.BytesIO()
    Image.fromarray(pixels_of([3])[0]).resize((4000, 3000)).save(large, "JPEG")
    answer = ask(server, "masked", large.getvalue(), [*ANSWERS[:4], "rles"], score_thresh=0.0)
    assert answer.as_numpy("num_detections")[0, 0] == 30
    assert answer.get_response().ByteSize() < 0.3 * 1e6


def runs(server: triton.InferenceServerClient) -> dict[str, int]:
    """How many batches each step has executed."""
    steps = server.get_inference_statistics().model_stats
    return {step.name.removeprefix("masked_"): step.execution_count for step in steps}


def settled_runs(server: triton.InferenceServerClient) -> dict[str, int]:
    """``runs`` once they no longer change: a step of an earlier request may be counted after that request's answer."""
    before = runs(server)
    while True:
        time.sleep(0.3)
        if (now := runs(server)) == before:
            return now
        before = now


@pytest.mark.parametrize(
    ("outputs", "idle"),
    [
        (["boxes"], {"mask_features", "mask_header", "masks", "rles"}),
        (["num_detections", "labels"], {"mask_features", "mask_header", "masks", "rles"}),
        (["boxes", "masks"], {"rles"}),
        (["rles"], {"masks"}),
        (None, set()),
    ],
)
def test_steps_that_no_wanted_output_needs_do_not_run(
    server: triton.InferenceServerClient, outputs: list[str] | None, idle: set[str]
) -> None:
    before = settled_runs(server)
    answer = ask(server, "masked", PICTURES[0], outputs)
    assert {output.name for output in answer.get_response().outputs} == {*(outputs or [*ANSWERS, "rles"])}
    steps = {step.name for step in MASK_RCNN.steps}
    deadline = time.monotonic() + 5
    while (ran := {step for step in steps if runs(server)[step] > before[step]}) != steps - idle:
        assert time.monotonic() < deadline, f"{ran} ran, expected {steps - idle}"  # counted after the answer


@pytest.mark.parametrize("outputs", [["boxes"], ["boxes", "masks"], ["rles"], None])
def test_the_fused_model_answers_what_is_asked_for(
    server: triton.InferenceServerClient, outputs: list[str] | None
) -> None:
    answer = ask(server, "masked_fused", PICTURES[0], outputs)
    assert {output.name for output in answer.get_response().outputs} == {*(outputs or [*ANSWERS, "rles"])}


@pytest.mark.parametrize("model", ["masked", "masked_fused"])
@pytest.mark.parametrize("outputs", [["boxes"], None])
def test_a_threshold_out_of_range_is_refused_whatever_is_asked_for(
    server: triton.InferenceServerClient, model: str, outputs: list[str] | None
) -> None:
    with pytest.raises(InferenceServerException, match=r"mask_thresh is 1\.5: expected a number from 0 to 1"):
        ask(server, model, PICTURES[0], outputs, mask_thresh=1.5)


@pytest.mark.parametrize("model", ["masked", "masked_fused"])
def test_the_client_gets_the_same_masks_in_each_form(server_url: str, model: str) -> None:
    with Client(server_url, model) as client:
        for thresh in (None, 0.3):
            pasted_here = client.detect(PICTURES[3], mask_thresh=thresh)
            pasted_there = client.detect(PICTURES[3], mask_thresh=thresh, masks="rle")
            assert len(pasted_here) > 0 and pasted_there.mask_probabilities is None
            assert pasted_here.rle() == pasted_there.rle()
            np.testing.assert_array_equal(pasted_here.masks(), pasted_there.masks())
            assert all(map(np.array_equal, pasted_here.polygons()[0], pasted_there.polygons()[0]))
        assert not client.detect(PICTURES[3], masks="none").has_masks


def test_pixels_are_served_too(server: triton.InferenceServerClient, pipeline: Pipeline) -> None:
    answer = pixels_answer(server, "masked_pixels", 4)
    expected = pipeline.detect(pixels_of([4])).masks
    np.testing.assert_allclose(answer.as_numpy("masks"), expected, atol=1e-3)


def test_verify_holds_in_process_and_served(
    detector: Detector, pipeline: Pipeline, server: triton.InferenceServerClient
) -> None:
    assert_verified(detector, pipeline, server, "masked", "masks")
