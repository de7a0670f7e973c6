"""Shared by the tests of small served detectors: the parts for boxes, the pictures, and the comparisons."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
import tritonclient.grpc as triton
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.pipeline import Pipeline
from rcnn_export.commands.verify import ask_server
from rcnn_export.detector.load import Detector
from rcnn_export.detector.random_weights import calibrate
from rcnn_export.digits.detector import digits_detector
from rcnn_export.verify.pipeline_stages import PipelineStages
from rcnn_export.verify.sample_pictures import sample_pictures
from rcnn_export.verify.stages import Verification
from torchvision.models.detection import FasterRCNN

PICTURES = list(sample_pictures().values())  # of many sizes
BATCHES = ([0], [3, 1, 5], [2, 2, 2])
DETECTIONS = 30
CLASS_NAMES = ["__background__", "a", "b", "c", "d"]


def small_parts() -> dict[str, Any]:
    """The arguments of a small FasterRCNN; a model built from them has the same random weights each time."""
    torch.manual_seed(0)
    plain = digits_detector()
    return {
        "backbone": plain.backbone,
        "num_classes": len(CLASS_NAMES),
        "min_size": 128,
        "max_size": 256,
        "rpn_anchor_generator": plain.rpn.anchor_generator,
        "rpn_pre_nms_top_n_test": 100,
        "rpn_post_nms_top_n_test": 50,
        "box_detections_per_img": DETECTIONS,
        "box_score_thresh": 0.3,
    }


def calibrated(model: FasterRCNN) -> Detector:
    """The detector in eval mode, with scores on both sides of its threshold."""
    calibrate(model.eval())
    return Detector(model, "small", "random", CLASS_NAMES)


def pixels_of(numbers: list[int]) -> list[np.ndarray]:
    """The pictures with these numbers, uint8 RGB [h, w, 3]."""
    return [decode_image(PICTURES[number], 10**8) for number in numbers]


def assert_served_as_in_process(
    server: triton.InferenceServerClient,
    pipeline: Pipeline,
    model: str,
    parameters: Mapping[str, float],
    answers: Collection[str],
) -> None:
    """Check that the served model gives the same of these answers as the pipeline, for each of BATCHES."""
    for numbers in BATCHES:
        encoded = np.array([[PICTURES[number]] for number in numbers], np.object_)
        image = triton.InferInput("image", list(encoded.shape), "BYTES")
        image.set_data_from_numpy(encoded)
        answer = server.infer(model, [image], parameters=parameters, client_timeout=60)
        expected = pipeline.detect(pixels_of(numbers), parameters)
        for name in answers:
            assert answer.as_numpy(name).dtype == expected.answers[name].dtype
            np.testing.assert_allclose(answer.as_numpy(name), expected.answers[name], atol=1e-3)


def assert_verified(
    detector: Detector, pipeline: Pipeline, server: triton.InferenceServerClient, model: str, stage: str
) -> None:
    """Check that the verification holds in process and served, and that it compares the stage in each way."""
    verification = Verification(detector.model, PipelineStages(pipeline), served=True)
    for numbers in BATCHES:
        served = ask_server(server, model, [PICTURES[number] for number in numbers])
        verification.add("batch", pixels_of(numbers), served)
    assert verification.holds, verification.first_divergence
    modes = {mode for compared, mode in verification.comparisons if compared == stage}
    assert modes == {"alone", "end to end", "served"}
    assert verification.comparisons[stage, "served"].matched > 0


def pixels_answer(server: triton.InferenceServerClient, model: str, number: int) -> triton.InferResult:
    """The model's answer to a picture that is sent as pixels."""
    (pixels,) = pixels_of([number])
    tensor = triton.InferInput("pixels", [1, *pixels.shape], "UINT8")
    tensor.set_data_from_numpy(pixels[None])
    return server.infer(model, [tensor])
