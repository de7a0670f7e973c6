"""What a server says about a detector."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2

from ._contract import Contract


@dataclass(frozen=True)
class DetectorInfo:
    """A served detector.

    Attributes:
        model: its name; `versions`: those that are served.
        class_names: index is the label; index 0 is the background.
        max_batch_size: how many pictures a request may hold; this client sends one picture per request.
        max_detections: the largest number of detections per picture.
        max_image_pixels: the largest width times height of a picture; None if the model does not say.
        has_masks: whether it returns masks, like Mask R-CNN.
        keypoint_names: names of the keypoints that it returns, like Keypoint R-CNN; empty if none.
        takes_pixels: whether arrays are sent as pixels; otherwise they are encoded first.
        engine: the Triton backend that runs the network, for example "onnxruntime" or "tensorrt".
        precision: data type of the features between the two halves of the network, for example "fp32"; None
            if the model does not say.
        server: name and version, for example "triton 2.51.0".
    """

    model: str
    versions: list[str]
    class_names: list[str]
    max_batch_size: int
    max_detections: int
    max_image_pixels: int | None
    has_masks: bool
    keypoint_names: list[str]
    takes_pixels: bool
    engine: str
    precision: str | None
    server: str


def step_models(config: Any) -> list[str]:
    """The models that an ensemble's config names."""
    return [step.model_name for step in config.ensemble_scheduling.step]


def read_info(
    contract: Contract, config: Any, steps: list[Any], model: Any, server: Any, takes_pixels: bool
) -> DetectorInfo:
    """Combine what Triton sent: the model's config, its steps' configs, and the metadata of model and server."""
    limits = [_parameter(part, "max_image_pixels") for part in (config, *steps)]
    network = next((part for part in steps if _feature_types(part)), config)
    precision = next((_name(data_type) for data_type in _feature_types(network)), None)
    return DetectorInfo(
        model=config.name,
        versions=list(model.versions),
        class_names=contract.class_names,
        max_batch_size=config.max_batch_size,
        max_detections=contract.max_detections,
        max_image_pixels=next((limit for limit in limits if limit is not None), None),
        has_masks=contract.mask_size is not None,
        keypoint_names=contract.keypoint_names or [],
        takes_pixels=takes_pixels,
        engine=network.backend or network.platform,
        precision=precision,
        server=f"{server.name} {server.version}",
    )


def _parameter(config: Any, name: str) -> Any:
    if name not in config.parameters:
        return None
    return json.loads(config.parameters[name].string_value)


def _feature_types(config: Any) -> list[int]:
    return [tensor.data_type for tensor in config.output if tensor.name.startswith("feature_")]


def _name(data_type: int) -> str:
    name: str = model_config_pb2.DataType.Name(data_type)
    return name.removeprefix("TYPE_").lower()
