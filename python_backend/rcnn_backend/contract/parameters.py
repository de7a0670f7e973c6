"""The settings of a detector's steps, read from the ``parameters`` of its Triton configs.

These values are stored only in the configs: the export writes them from the torch model,
and the server and the in-process pipeline read them here. Each value is JSON.
"""

import dataclasses
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin

from rcnn_backend.errors import RepositoryError

P = TypeVar("P")
NUMBERS: dict[Any, str] = {int: "an integer", float: "a number"}
FLOATS = {"TYPE_FP32": "float32", "TYPE_FP16": "float16"}


@dataclass(frozen=True)
class PreprocessParameters:
    """The parameters of torchvision's GeneralizedRCNNTransform. Sizes in pixels; mean and std of RGB in 0..1.

    ``max_image_bytes``: the limit for an encoded picture. ``padded_sizes_hw``: the heights and widths that a
    batch is padded to, each a multiple of ``size_divisible``; see ``preprocess.padded_size_hw``.

    Raises:
        ValueError: ``padded_sizes_hw`` is anything else.
    """

    min_size: int
    max_size: int
    fixed_size_hw: list[int] | None
    image_mean: list[float]
    image_std: list[float]
    size_divisible: int
    max_image_pixels: int
    padded_sizes_hw: list[list[int]] = dataclasses.field(default_factory=list)
    max_image_bytes: int = 160_000_000  # a picture of 50 megapixels has 150 million bytes as a BMP

    def __post_init__(self) -> None:
        if not isinstance(self.padded_sizes_hw, list) or not all(map(self._can_pad_to, self.padded_sizes_hw)):
            raise ValueError(
                f"padded_sizes_hw is {self.padded_sizes_hw}, expected a list of [height, width], each a "
                f"positive multiple of size_divisible, {self.size_divisible}, or [] for torchvision's padding"
            )

    def _can_pad_to(self, size_hw: Any) -> bool:
        return (
            isinstance(size_hw, list)
            and len(size_hw) == 2
            and all(
                isinstance(side, int) and side > 0 and side % self.size_divisible == 0 for side in size_hw
            )
        )


@dataclass(frozen=True)
class ProposalParameters:
    """The parameters of torchvision's RegionProposalNetwork.filter_proposals.

    ``padded_counts``: the sizes that the number of proposals is padded to, ascending;
    the last is the largest number of proposals per image. ``max_rpn_boxes``: the largest number of rows of
    ``rpn_boxes``, from which the size of Triton's memory pool is computed.
    """

    score_thresh: float
    nms_thresh: float
    min_box_size: float
    padded_counts: list[int]
    max_rpn_boxes: int


@dataclass(frozen=True)
class PoolParameters:
    """The parameters of torchvision's MultiScaleRoIAlign.

    ``feature_strides``: pixels per cell of each pooled level, finest first. ``canonical_scale``: the size in
    pixels, sqrt(area), of the RoIs that are pooled from ``canonical_level``, which is log2 of that level's stride.
    """

    feature_strides: list[int]
    canonical_scale: int
    canonical_level: int
    output_size_hw: list[int]
    sampling_ratio: int


@dataclass(frozen=True)
class DetectionParameters:
    """The parameters of torchvision's RoIHeads.postprocess_detections."""

    score_thresh: float
    nms_thresh: float
    min_box_size: float
    detections_per_img: int


@dataclass(frozen=True)
class HeadParameters:
    """The parameters of a head that runs on the final detections.

    ``padded_counts``: the sizes that the number of an image's detections is padded to, ascending; the last is
    ``detections_per_img``.
    """

    padded_counts: list[int]


@dataclass(frozen=True)
class RleParameters:
    """``mask_thresh``: pixels whose probability is above this belong to a mask."""

    mask_thresh: float


def read_parameters(cls: type[P], model_config: Mapping[str, Any]) -> P:
    """Fills the dataclass ``cls`` from a Triton model config in its JSON form.

    Raises:
        RepositoryError: a parameter is missing, is not JSON, has the wrong type, or has a value that ``cls`` refuses.
    """
    model, given = model_config.get("name", "?"), model_config.get("parameters", {})
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        try:
            values[field.name] = json.loads(given[field.name]["string_value"])
        except KeyError:
            raise RepositoryError(
                f"{model}/config.pbtxt has no parameter {field.name!r}: export the detector again with rcnn-export"
            ) from None
        except json.JSONDecodeError as error:
            raise RepositoryError(
                f"{model}/config.pbtxt: parameter {field.name!r} is {given[field.name]['string_value']!r}, "
                f"expected a JSON value ({error})"
            ) from None
    try:
        parameters = cls(**values)
    except ValueError as error:
        raise RepositoryError(f"{model}/config.pbtxt: {error}") from None
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if not _is_a(values[field.name], field.type):
            raise RepositoryError(
                f"{model}/config.pbtxt: parameter {field.name!r} is {values[field.name]!r}, "
                f"expected {NUMBERS.get(field.type, field.type)}"
            )
    return parameters


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value from JSON has the annotated type: int, float, list[...], or a union of these."""
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, each) for each in get_args(kind))
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(each, get_args(kind)[0]) for each in value)
    if kind is float:
        kind = (int, float)
    return isinstance(value, kind) and not isinstance(value, bool)


def read_threads(config: Mapping[str, Any]) -> int:
    """How many threads one run of a network uses on the CPU: Triton's ``intra_op_thread_count``; 0 for one per core."""
    return int(config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value", 0))


def read_dtype(model_config: Mapping[str, Any], tensor: str) -> str:
    """NumPy's name for the type of a floating-point tensor that a model declares: float32 or float16.

    Raises:
        RepositoryError: the model declares no tensor of this name, or its type is neither FP32 nor FP16.
    """
    declared = {each["name"]: each["data_type"] for each in (*model_config["input"], *model_config["output"])}
    try:
        return FLOATS[declared.get(tensor, "none")]
    except KeyError:
        raise RepositoryError(
            f"{model_config['name']}/config.pbtxt: the type of {tensor!r} is {declared.get(tensor, 'none')}, "
            f"expected {' or '.join(FLOATS)}. Export the detector again with rcnn-export"
        ) from None
