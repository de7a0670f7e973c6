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
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
)
from torchvision.models.detection import FasterRCNN
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from rcnn_export.detector.load import Detector
from rcnn_export.detector.split import (
    backbone_features,
    pooled_levels,
    pooled_strides,
    roi_pooler,
    tensor_sizes,
)
from rcnn_export.engines.options import DEFAULT_ENGINE, FP16, TRITON_BACKENDS, EngineOptions

TEMPLATE = FASTER_RCNN.family
FUSED_INSTANCES = 2  # on a GPU: one decodes while the other computes
# On a CPU a batch of RoIs is padded to the next of these shares of the most there can be.
PADDED_SHARES = (0.1, 0.3, 0.6, 1.0)
CHOSEN_BY_HAND = (
    "max_image_bytes",
    "max_image_pixels",
    "padded_sizes_hw",
)  # the torch model knows nothing of them
POSTPROCESS_MIN_BOX_SIZE = 1e-2  # a literal in torchvision's postprocess_detections


def template_dir() -> Path:
    """The hand-written model repository: beside this package in a clone, inside it in a wheel."""
    in_clone = Path(__file__).resolve().parents[3] / "model_repository"
    return in_clone if in_clone.is_dir() else Path(__file__).resolve().parents[1] / "model_repository"


def derive_configs(detector: Detector, name: str, options: EngineOptions = DEFAULT_ENGINE) -> dict[str, str]:
    """The text of each model's config.pbtxt, by model name; in FP16 what goes to and from a network is FP16.

    A file that needs no change is passed on as it is, comments and all.
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
                if shape.data_type == NETWORK and options.precision == FP16:
                    tensor.data_type = DataType.TYPE_FP16
        for key, value in parameters.get(template.removeprefix(TEMPLATE).lstrip("_"), {}).items():
            config.parameters[key].string_value = json.dumps(value)
        texts[model_name] = text if config == original else _to_text(config, template)
    return texts


def preprocess_parameters(model: FasterRCNN) -> PreprocessParameters:
    """GeneralizedRCNNTransform's settings in eval mode; what is CHOSEN_BY_HAND is the config's own."""
    transform = model.transform
    return PreprocessParameters(
        min_size=transform.min_size[-1],
        max_size=transform.max_size,
        fixed_size_hw=list(transform.fixed_size[::-1]) if transform.fixed_size is not None else None,
        image_mean=list(transform.image_mean),
        image_std=list(transform.image_std),
        size_divisible=transform.size_divisible,
        max_image_pixels=0,
    )


def proposal_parameters(model: FasterRCNN) -> ProposalParameters:
    """RegionProposalNetwork's settings in eval mode."""
    most = model.rpn.post_nms_top_n()
    return ProposalParameters(
        score_thresh=model.rpn.score_thresh,
        nms_thresh=model.rpn.nms_thresh,
        min_box_size=model.rpn.min_size,
        padded_counts=sorted({max(1, round(share * most)) for share in PADDED_SHARES}),
        max_rpn_boxes=model.rpn.pre_nms_top_n() * len(backbone_features(model)),
    )


def pool_parameters(model: FasterRCNN) -> PoolParameters:
    """MultiScaleRoIAlign's settings."""
    pooler = roi_pooler(model)
    return PoolParameters(
        feature_strides=pooled_strides(model),
        canonical_scale=pooler.canonical_scale,
        canonical_level=pooler.canonical_level,
        output_size_hw=list(pooler.output_size),
        sampling_ratio=pooler.sampling_ratio,
    )


def detection_parameters(model: FasterRCNN) -> DetectionParameters:
    """RoIHeads' settings in eval mode."""
    heads = model.roi_heads
    return DetectionParameters(
        score_thresh=heads.score_thresh,
        nms_thresh=heads.nms_thresh,
        min_box_size=POSTPROCESS_MIN_BOX_SIZE,
        detections_per_img=heads.detections_per_img,
    )


def _without(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in keys}


def _list_profiles(config: ModelConfig, count: int) -> None:
    """Triton uses a plan's first profile alone unless it is told of the others."""
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
