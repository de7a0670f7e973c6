"""Derives a detector's config.pbtxt files from the hand-written ones of R50-FPN."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from rcnn_backend.contract.chain import FASTER_RCNN, MASK_RCNN
from rcnn_backend.contract.chain_types import FUSED, NETWORK, PIXELS, Chain, Tensor, bind
from rcnn_backend.pipeline import VERSION
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from rcnn_export.detector.load import Detector
from rcnn_export.detector.parameters import (
    detection_parameters,
    head_parameters,
    pool_parameters,
    preprocess_parameters,
    proposal_parameters,
)
from rcnn_export.detector.shapes import pooled_levels, tensor_sizes
from rcnn_export.engines.options import DEFAULT_ENGINE, TRITON_BACKENDS, EngineOptions
from rcnn_export.engines.precision import Precision

FUSED_INSTANCES = 2  # the minimum on a GPU: one decodes while the other computes
QUEUE_ON_GPU = 64  # the minimum queue size, on a GPU, of the models in whose queues requests wait
CHOSEN_BY_HAND = ("max_image_bytes", "max_image_pixels", "padded_sizes_hw")  # not settings of the torch model


def template_dir() -> Path:
    """The hand-written model repository: in a clone at the top level, in a wheel inside this package."""
    in_clone = Path(__file__).resolve().parents[3] / "model_repository"
    return in_clone if in_clone.is_dir() else Path(__file__).resolve().parents[1] / "model_repository"


def template_of(chain: Chain, part: str) -> Path:
    """The hand-written folder of one of a family's models.

    If the family has no folder of its own, it is one that differs only in what the chain declares: Mask R-CNN's for the steps
    around a head, and Faster R-CNN's for the others.

    Args:
        part: the part of the model's name after the detector's name, such as ``_rpn``; empty for the ensemble.
    """
    of_mask = part.replace(f"_{chain.head}_", f"_{MASK_RCNN.head}_") if chain.head else part
    names = (f"{chain.family}{part}", f"{MASK_RCNN.family}{of_mask}", f"{FASTER_RCNN.family}{part}")
    folders = [template_dir() / name for name in names]
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


def derive_configs(detector: Detector, name: str, options: EngineOptions = DEFAULT_ENGINE) -> dict[str, str]:
    """The text of each model's config.pbtxt, by model name.

    The input and output tensors of a network have the type of the export's precision. A file that needs no change is
    kept with its comments.
    """
    model, chain = detector.model, detector.chain
    levels, sizes = len(pooled_levels(model)), tensor_sizes(model)
    names = {"class_names": detector.class_names}
    if detector.keypoint_names:
        names["keypoint_names"] = detector.keypoint_names
    parameters: dict[str, dict[str, Any]] = {
        "": names,
        PIXELS: names,
        FUSED: names,
        "preprocess": _without(dataclasses.asdict(preprocess_parameters(model)), CHOSEN_BY_HAND),
        "proposals": dataclasses.asdict(proposal_parameters(model))
        | dataclasses.asdict(pool_parameters(model)),
        "detections": dataclasses.asdict(detection_parameters(model)),
    }
    if head := chain.head:
        parameters[f"{head}_features"] = dataclasses.asdict(head_parameters(model)) | dataclasses.asdict(
            pool_parameters(model, f"{head}_roi_pool")
        )
    steps = {step.name: step for step in chain.steps}
    texts = {}
    for model_name in chain.model_names(name):
        part = model_name.removeprefix(name)
        template, own = template_of(chain, part), part.removeprefix("_")
        text = (template / "config.pbtxt").read_text()
        config = text_format.Parse(text, ModelConfig())
        original = ModelConfig()
        original.CopyFrom(config)
        config.name = model_name
        if config.backend in TRITON_BACKENDS.values():
            config.backend = TRITON_BACKENDS[options.engine]
            _list_profiles(config, len(options.profiles.get(own, ())))
        if own == FUSED and options.is_for_gpu:
            for group in config.instance_group:
                group.count = max(group.count, FUSED_INSTANCES)
        if own in (FUSED, chain.steps[0].name) and options.is_for_gpu:
            policy = config.dynamic_batching.default_queue_policy
            policy.max_queue_size = max(policy.max_queue_size, QUEUE_ON_GPU)
        if options.profiles:
            config.max_batch_size = max(profile["input"].max[0] for profile in options.profiles["rpn"])
        if step := steps.get(own):
            _declare(config.input, chain.inputs(step, levels), sizes, options.precision)
            _declare(config.output, chain.outputs(step, levels), sizes, options.precision)
        else:
            _declare(config.output, chain.answers, sizes, options.precision)
        if config.HasField("ensemble_scheduling"):
            _wire(config, chain, name, levels)
        for key, value in parameters.get(own, {}).items():
            config.parameters[key].string_value = json.dumps(value)
        texts[model_name] = text if config == original else _to_text(config, template.name)
    return texts


def write_configs(detector: Detector, name: str, options: EngineOptions, repository: Path) -> None:
    """Writes each model's config.pbtxt into a new folder, which also gets an empty folder for the version."""
    for model_name, text in derive_configs(detector, name, options).items():
        (repository / model_name / VERSION).mkdir(parents=True)
        (repository / model_name / "config.pbtxt").write_text(text, encoding="utf-8")


def _without(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in keys}


def _list_profiles(config: ModelConfig, count: int) -> None:
    """Lists all profiles, because Triton uses only a plan's first profile unless the config names the others."""
    if count > 1:
        for group in config.instance_group:
            group.kind = ModelInstanceGroup.KIND_GPU
            group.profile[:] = map(str, range(count))


def _wire(config: ModelConfig, chain: Chain, name: str, levels: int) -> None:
    """Sets an ensemble's steps as the chain declares them. Of the optional inputs, only those of the ensemble are connected."""
    del config.ensemble_scheduling.step[:]
    taken = {tensor.name for tensor in config.input}
    for step in chain.steps:
        wired = config.ensemble_scheduling.step.add(model_name=f"{name}_{step.name}", model_version=-1)
        inputs = [t.name for t in chain.inputs(step, levels) if not t.is_optional or t.name in taken]
        wired.input_map.update({tensor: tensor for tensor in inputs})
        wired.output_map.update({tensor.name: tensor.name for tensor in chain.outputs(step, levels)})


def _declare(
    tensors: Any, declared: Sequence[Tensor], sizes: Mapping[str, int], precision: Precision
) -> None:
    """Replaces a model's inputs or outputs by the declared ones. A tensor of the template keeps its other fields."""
    known = {tensor.name: tensor for tensor in tensors}
    own = []
    for tensor in declared:
        config = type(tensors[0])()
        if tensor.name in known:
            config.CopyFrom(known[tensor.name])
        config.name = tensor.name
        config.dims[:] = bind(tensor.shape, sizes)
        data_type = precision.triton_type if tensor.data_type == NETWORK else tensor.data_type
        config.data_type = DataType.Value(data_type)
        own.append(config)
    del tensors[:]
    tensors.extend(own)


def _to_text(config: ModelConfig, template: str) -> str:
    body = text_format.MessageToString(config, use_short_repeated_primitives=True)
    return f"# Written by rcnn-export from the {template}/config.pbtxt of the sources, which explains it.\n{body}"
