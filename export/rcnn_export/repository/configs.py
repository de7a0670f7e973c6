"""Derives a detector's config.pbtxt files from the hand-written ones of R50-FPN."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from rcnn_backend.contract.chain import (
    FASTER_RCNN,
    FUSED,
    LEVEL,
    NETWORK,
    PIXELS,
    ChainStep,
    Tensor,
    bind,
    level_names,
)
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from rcnn_export.detector.load import Detector
from rcnn_export.detector.parameters import (
    detection_parameters,
    pool_parameters,
    preprocess_parameters,
    proposal_parameters,
)
from rcnn_export.detector.shapes import pooled_levels, tensor_sizes
from rcnn_export.engines.options import DEFAULT_ENGINE, TRITON_BACKENDS, EngineOptions

TEMPLATE = FASTER_RCNN.family
FUSED_INSTANCES = 2  # on a GPU: one decodes while the other computes
CHOSEN_BY_HAND = (
    "max_image_bytes",
    "max_image_pixels",
    "padded_sizes_hw",
)  # the torch model knows nothing of them


def template_dir() -> Path:
    """The hand-written model repository: beside this package in a clone, inside it in a wheel."""
    in_clone = Path(__file__).resolve().parents[3] / "model_repository"
    return in_clone if in_clone.is_dir() else Path(__file__).resolve().parents[1] / "model_repository"


def derive_configs(detector: Detector, name: str, options: EngineOptions = DEFAULT_ENGINE) -> dict[str, str]:
    """The text of each model's config.pbtxt, by model name. Tensors that go to and from a network have the type of the export's precision.

    A file that needs no change is passed on with its comments.
    """
    model = detector.model
    levels = len(pooled_levels(model))
    sizes = tensor_sizes(model)
    declared = {tensor.name: tensor for step in FASTER_RCNN.steps for tensor in _tensors(step, levels)}
    parameters: dict[str, dict[str, Any]] = {
        "": {"class_names": detector.class_names},
        PIXELS: {"class_names": detector.class_names},
        FUSED: {"class_names": detector.class_names},
        "preprocess": _without(dataclasses.asdict(preprocess_parameters(model)), CHOSEN_BY_HAND),
        "proposals": dataclasses.asdict(proposal_parameters(model))
        | dataclasses.asdict(pool_parameters(model)),
        "detections": dataclasses.asdict(detection_parameters(model)),
    }
    texts = {}
    for template, model_name in zip(
        FASTER_RCNN.model_names(TEMPLATE), FASTER_RCNN.model_names(name), strict=True
    ):
        text = (template_dir() / template / "config.pbtxt").read_text()
        config = text_format.Parse(text, ModelConfig())
        original = ModelConfig()
        original.CopyFrom(config)
        config.name = model_name
        if config.backend in TRITON_BACKENDS.values():
            config.backend = TRITON_BACKENDS[options.engine]
            _list_profiles(config, len(options.profiles.get(template.rpartition("_")[2], ())))
        if template == f"{TEMPLATE}_{FUSED}" and options.is_for_gpu:
            config.instance_group.add(count=FUSED_INSTANCES)
        if options.profiles:
            config.max_batch_size = max(profile["input"].max[0] for profile in options.profiles["rpn"])
        for step in config.ensemble_scheduling.step:
            own = FASTER_RCNN.step(step.model_name.removeprefix(f"{TEMPLATE}_"))
            step.model_name = f"{name}_{own.name}"
            _replace_feature_map(step.input_map, FASTER_RCNN.inputs(own, levels))
            _replace_feature_map(step.output_map, FASTER_RCNN.outputs(own, levels))
        for tensors in (config.input, config.output):
            _repeat_features(tensors, levels)
            for tensor in tensors:
                shape = declared[tensor.name]
                tensor.dims[:] = bind(shape.shape, sizes)
                if shape.data_type == NETWORK:
                    tensor.data_type = DataType.Value(options.precision.triton_type)
        for key, value in parameters.get(template.removeprefix(TEMPLATE).lstrip("_"), {}).items():
            config.parameters[key].string_value = json.dumps(value)
        texts[model_name] = text if config == original else _to_text(config, template)
    return texts


def _without(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in keys}


def _list_profiles(config: ModelConfig, count: int) -> None:
    """Lists all profiles: Triton uses only a plan's first unless the config names the others."""
    if count > 1:
        config.instance_group.add(kind=ModelInstanceGroup.KIND_GPU, profile=map(str, range(count)))


def _tensors(step: ChainStep, levels: int) -> list[Tensor]:
    return [*FASTER_RCNN.inputs(step, levels), *FASTER_RCNN.outputs(step, levels)]


def _replace_feature_map(tensor_map: Any, tensors: Sequence[Tensor]) -> None:
    """The ensemble's wiring of the pyramid: one entry for each level that the step takes or gives."""
    for key in [key for key in tensor_map if key.startswith(LEVEL)]:
        del tensor_map[key]
    for tensor in tensors:
        if tensor.is_pyramid:
            tensor_map[tensor.name] = tensor.name


def _repeat_features(tensors: Any, levels: int) -> None:
    """A step's declared pyramid tensors: one a level, in the place of the template's."""
    first = next((tensor for tensor in tensors if tensor.name.startswith(LEVEL)), None)
    if first is None:
        return
    kept = [tensor for tensor in tensors if not tensor.name.startswith(LEVEL)]
    place = list(tensors).index(first)
    features = []
    for name in level_names(levels):
        feature = type(first)()
        feature.CopyFrom(first)
        feature.name = name
        features.append(feature)
    del tensors[:]
    tensors.extend([*kept[:place], *features, *kept[place:]])


def _to_text(config: ModelConfig, template: str) -> str:
    body = text_format.MessageToString(config, use_short_repeated_primitives=True)
    return f"# Written by rcnn-export from the {template}/config.pbtxt of the sources, which explains it.\n{body}"
