"""Requests with any pictures and options get the same answers together as each gets alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rcnn_backend.contract.chain import CHAINS
from rcnn_backend.contract.parameters import RleParameters
from rcnn_backend.devices import Cpu
from rcnn_backend.engines.head import Head
from rcnn_backend.operators.decode import ImageDecoder
from rcnn_backend.pipeline import Pipeline
from rcnn_export.detector import parameters
from rcnn_export.detector.split import MODULES
from rcnn_export.digits import detector
from safetensors.torch import load_file
from torch import nn

from ..conftest import SAMPLES
from .cases import CASES, cases
from .strategies import thresholds

SAMPLE = {"faster_rcnn": "digits", "mask_rcnn": "digits_mask", "keypoint_rcnn": "digits_keypoint"}
MOST = 6
OUTPUTS = {
    "rpn": ["rpn_boxes", "feature_0", "feature_1", "feature_2", "feature_3"],
    "header": ["class_scores", "class_boxes"],
    "mask_header": ["mask_probabilities"],
    "keypoint_header": ["heatmaps"],
}


class TorchNetwork:
    """An engine that is the torch module itself. It runs row by row, so that rounding does not depend on other rows."""

    is_capturable = False

    def __init__(self, module: nn.Module, step: str) -> None:
        self._module, self._outputs, self._is_head = module, OUTPUTS[step], step.endswith("_header")

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        batch, rows = tensors[0].shape[:2]
        if self._is_head:  # features [B, M, ...], labels [B, D]: each detection is a row
            tensors = [tensor[:, :rows].flatten(0, 1)[:, None] for tensor in tensors]
        answers = [
            self._module(*(tensor[row : row + 1] for tensor in tensors)) for row in range(len(tensors[0]))
        ]
        arrays = [torch.cat(parts).numpy() for parts in zip(*answers, strict=True)]
        if self._is_head:
            arrays = [array.reshape(batch, rows, *array.shape[2:]) for array in arrays[:1]]
        return dict(zip(self._outputs, arrays, strict=False))  # without samples


@cache
def small_pipeline(family: str) -> Pipeline:
    """A trained sample detector on very small pictures."""
    sample, chain, device = SAMPLE[family], CHAINS[family], Cpu()
    model = getattr(detector, f"{sample}_detector")().eval()
    model.load_state_dict(load_file(SAMPLES / f"{sample}.safetensors"))
    pooling = parameters.pool_parameters(model)
    head_pooling = parameters.pool_parameters(model, f"{chain.head}_roi_pool") if chain.head else None
    model.transform.min_size, model.transform.max_size = (32,), 64  # too small to infer the strides from
    model.roi_heads.detections_per_img = MOST
    model.rpn._post_nms_top_n["testing"] = 20
    engines = {step.name: TorchNetwork(MODULES[step.name](model), step.name) for step in chain.engines}
    head = None
    if head_pooling:
        head = Head(
            chain,
            device,
            engines[f"{chain.head}_header"],
            parameters.head_parameters(model),
            head_pooling,
            RleParameters(0.5) if chain.head == "mask" else None,
        )
    preprocess_parameters = dataclasses.replace(
        parameters.preprocess_parameters(model), max_image_pixels=10**6
    )
    return Pipeline(
        chain=chain,
        device=device,
        decoder=ImageDecoder(preprocess_parameters, device),
        engines=engines,
        preprocess_parameters=preprocess_parameters,
        proposal_parameters=dataclasses.replace(parameters.proposal_parameters(model), padded_counts=[20]),
        pool_parameters=pooling,
        detection_parameters=parameters.detection_parameters(model),
        head=head,
        input_dtype=np.dtype(np.float32),
        class_names=[],
    )


sides = st.integers(8, 48)


@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    values = np.frombuffer(draw(st.binary(min_size=1, max_size=200)), np.uint8)
    return np.resize(values, (draw(sides), draw(sides), 3))


@st.composite
def requests(draw: st.DrawFn, family: str) -> list[tuple[list[np.ndarray], dict[str, Any], Sequence[str]]]:
    """For each of some requests the pictures, the parameters and the names of the wanted answers."""
    chosen = {
        # Low thresholds, so that there are usually some detections.
        "score_thresh": thresholds.map(lambda threshold: threshold / 4),
        "nms_thresh": thresholds,
        "detections_per_img": st.integers(1, MOST),
    }
    if family == "mask_rcnn":
        chosen["mask_thresh"] = thresholds
    answers = [tensor.name for tensor in CHAINS[family].answers]
    wanted = st.just(answers) | st.lists(st.sampled_from(answers), min_size=1, unique=True)
    each = st.tuples(
        st.lists(pictures(), min_size=1, max_size=2), st.fixed_dictionaries({}, optional=chosen), wanted
    )
    return draw(st.lists(each, min_size=2, max_size=3))


@pytest.mark.parametrize("family", CHAINS)
@cases(CASES["pipeline"])
@given(data=st.data(), at_once=st.booleans())
def test_together_as_alone(family: str, data: st.DataObject, at_once: bool) -> None:
    """Picture by picture, as on a CPU, or all at once, as on a GPU."""
    pipeline = dataclasses.replace(small_pipeline(family), device=Cpu())
    pipeline.device.is_gpu = at_once
    drawn = [
        (images, pipeline.read_options(request, wanted))
        for images, request, wanted in data.draw(requests(family))
    ]
    for own, found in zip(drawn, pipeline.detect_requests(drawn), strict=True):
        (alone,) = pipeline.detect_requests([own])
        for name, answer in alone.answers.items():
            np.testing.assert_array_equal(found.answers[name], answer)
