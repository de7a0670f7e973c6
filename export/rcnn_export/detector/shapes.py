"""The names, sizes and strides of a detector's tensors, found by running its networks on blank pictures.

The pictures are fake tensors, which have a shape but no values. Nothing is computed, so any size is quick.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from rcnn_export.detector.families import chain_of
from rcnn_export.errors import ExportError

CHANNELS = 3  # RGB
ASPECT_RATIOS = (3 / 4, 1.0, 4 / 3)  # height / width of the pictures that strides are inferred from
BLANK_SIDE_PX = 256


def pooled_levels(model: FasterRCNN) -> list[str]:
    """Names of the backbone's feature maps that RoIs are pooled from, finest first.

    Raises:
        ExportError: the backbone returns none of these names, or maps with different numbers of channels.
    """
    return list(pooled_features(model))


def pooled_features(model: FasterRCNN) -> dict[str, Tensor]:
    """The feature maps that RoIs are pooled from, as ``backbone_features`` returns them, finest first.

    Raises:
        ExportError: the backbone returns none of these names, or maps with different numbers of channels.
    """
    features, wanted = backbone_features(model), model.roi_heads.box_roi_pool.featmap_names
    pooled = {name: feature for name, feature in features.items() if name in wanted}
    if not pooled:
        raise ExportError(
            f"box_roi_pool pools the feature maps {list(wanted)}, but the backbone returns {list(features)}: "
            "give MultiScaleRoIAlign featmap_names among these"
        )
    channels = {name: feature.shape[1] for name, feature in pooled.items()}
    if len(set(channels.values())) > 1:
        raise ExportError(f"the pooled feature maps have different numbers of channels: {channels}")
    return pooled


def pooled_strides(model: FasterRCNN, name: str = "box_roi_pool") -> list[int]:
    """Stride in pixels of each pooled level in one of RoIHeads' MultiScaleRoIAligns.

    Raises:
        ExportError: torchvision would infer other strides from a picture of another shape, or the strides do not
            increase level by level.
    """
    pooler = pooler_with_strides(model, name)
    strides = [round(1 / scale) for scale in pooler.scales]
    exact = all(stride * scale == 1 for stride, scale in zip(strides, pooler.scales, strict=True))
    mapper = pooler.map_levels
    expected = (math.log2(strides[0]), math.log2(strides[-1])) if min(strides) else ()
    if not exact or (len(strides) > 1 and (mapper.k_min, mapper.k_max) != expected):
        raise ExportError(
            f"{name}.scales are {pooler.scales} for levels {mapper.k_min} to {mapper.k_max}: expected 1 / stride "
            "of each level, and for several levels powers of two that the map_levels agree with"
        )
    if any(coarse not in (fine, 2 * fine) for fine, coarse in pairwise(strides)):
        raise ExportError(
            f"the pooled levels {pooled_levels(model)} have the strides {strides}: expected the finest first, each "
            "next one twice as coarse, because torchvision pools zeros for the RoIs of a level that is missing"
        )
    return strides


def pooler_with_strides(model: FasterRCNN, name: str = "box_roi_pool") -> MultiScaleRoIAlign:
    """A copy of one of the detector's MultiScaleRoIAligns that knows the pyramid's strides.

    torchvision infers the scales once, from the first picture that it sees: ``2 ** round(log2(feature / picture))`` of
    the heights. Scales that the detector already has are kept. Otherwise they are those of a picture of usual shape,
    resized as the transform does. A small or thin picture, whose coarse levels have only one or two rows, would give wrong
    scales permanently.

    Raises:
        ExportError: pictures of usual shapes give different strides.
    """
    pooler = copy.deepcopy(getattr(model.roi_heads, name))
    if pooler.scales is not None and pooler.map_levels is not None:
        return pooler
    names = pooled_levels(model)
    inferred = {}
    for size_hw in _usual_sizes_hw(model.transform):
        padded_hw = tuple(round_up(side, model.transform.size_divisible) for side in size_hw)
        features = backbone_features(model, padded_hw)
        pooler.scales = pooler.map_levels = None
        with torch.no_grad():
            pooler(
                {name: torch.empty(1, 1, *features[name].shape[-2:]) for name in names},
                [torch.ones(1, 4)],
                [size_hw],
            )
        inferred[size_hw] = pooler.scales
    if any(scales != pooler.scales for scales in inferred.values()):
        strides = ", ".join(
            f"{[round(1 / scale) for scale in scales]} at {height}x{width}"
            for (height, width), scales in inferred.items()
        )
        raise ExportError(
            f"torchvision infers different strides from pictures of different sizes ({strides}), and keeps those of the "
            f"first picture it sees. Choose min_size and max_size so that they agree, or set {name}.scales and map_levels"
        )
    return pooler


def pooled_channels(model: FasterRCNN) -> int:
    """The number of channels of the pooled feature maps."""
    return next(iter(pooled_features(model).values())).shape[1]


def tensor_sizes(model: FasterRCNN) -> dict[str, int]:
    """The sizes of a detector's tensors that are the same for every picture, by their name in the chain."""
    height, width = model.roi_heads.box_roi_pool.output_size
    return head_sizes(model) | {
        "channels": pooled_channels(model),
        "classes": num_classes_of(model) - 1,
        "detections": model.roi_heads.detections_per_img,
        "pooled_height": height,
        "pooled_width": width,
    }


def num_classes_of(model: FasterRCNN) -> int:
    """Classes that the box predictor scores, the background included.

    Raises:
        ExportError: box head and predictor do not fit the pooled features, or return anything other than a score and
            four box numbers for each class.
    """
    heads = model.roi_heads
    channels = pooled_channels(model)
    with _running("box_head and box_predictor"):
        outputs = heads.box_predictor(
            heads.box_head(torch.zeros(2, channels, *heads.box_roi_pool.output_size))
        )
    shapes = [tuple(output.shape) for output in outputs]
    scores = shapes[0][-1] if shapes else 0
    if shapes != [(2, scores), (2, 4 * scores)]:
        raise ExportError(
            f"box_predictor gives tensors of the shapes {shapes} for two RoIs: torchvision expects scores [2, classes] "
            "and boxes [2, 4 * classes], four numbers for each class, including the background"
        )
    return int(scores)


def head_sizes(model: FasterRCNN) -> dict[str, int]:
    """The sizes of the tensors around the mask or keypoint head, by their name in the chain; empty without such a head.

    Raises:
        ExportError: the head and its predictor do not fit the pooled features, or return anything other than
            torchvision's; or the head pools other levels than box_roi_pool.
    """
    chain, heads = chain_of(model), model.roi_heads
    if not (head := chain.head):
        return {}
    pool: MultiScaleRoIAlign = getattr(heads, f"{head}_roi_pool")
    if set(pool.featmap_names) != set(heads.box_roi_pool.featmap_names):
        raise ExportError(
            f"{head}_roi_pool pools the feature maps {list(pool.featmap_names)} and box_roi_pool "
            f"{list(heads.box_roi_pool.featmap_names)}: give both the same featmap_names"
        )
    height, width = pool.output_size
    with _running(f"{head}_head and {head}_predictor"):
        pooled = torch.zeros(2, pooled_channels(model), height, width)
        made = getattr(heads, f"{head}_predictor")(getattr(heads, f"{head}_head")(pooled))
    _check_made(model, head, made)
    _, *words = (
        chain.step(f"{head}_header").outputs[0].shape
    )  # those of the last axes that the predictor gives
    sizes = dict(zip(words, made.shape[-len(words) :], strict=True))
    return sizes | {"head_pooled_height": height, "head_pooled_width": width}


def _check_made(model: FasterRCNN, head: str, made: Tensor) -> None:
    """Checks that a predictor returns for two RoIs what torchvision expects."""
    num_classes = num_classes_of(model)
    if head == "mask" and (made.ndim != 4 or tuple(made.shape[:2]) != (2, num_classes)):
        raise ExportError(
            f"mask_predictor gives a tensor {list(made.shape)} for two RoIs: torchvision expects one mask for each of "
            f"the {num_classes} classes, including the background, [2, {num_classes}, height, width]"
        )
    if head == "keypoint" and (made.ndim != 4 or len(made) != 2 or made.shape[2] != made.shape[3]):
        raise ExportError(
            f"keypoint_predictor gives a tensor {list(made.shape)} for two RoIs: torchvision expects a square heatmap "
            "for each keypoint, [2, keypoints, side, side]"
        )


def cell_anchors(model: FasterRCNN) -> list[Tensor]:
    """The anchors of one position of each feature map, FP32 [A, 4] each, as an AnchorGenerator uses them when it runs."""
    generator = model.rpn.anchor_generator
    generator.set_cell_anchors(torch.float32, torch.device("cpu"))
    return list(generator.cell_anchors)


def check_rpn(model: FasterRCNN) -> None:
    """Checks that the RPN has anchors for each feature map, and one objectness and four numbers for each anchor.

    Raises:
        ExportError: it does not.
    """
    features = list(backbone_features(model).values())
    anchors = [len(cell) for cell in cell_anchors(model)]
    if len(anchors) != len(features):
        raise ExportError(
            f"the anchor generator has anchors for {len(anchors)} feature maps, but the backbone returns "
            f"{len(features)}: give AnchorGenerator one tuple of sizes for each"
        )
    with _running("rpn.head"):
        objectness, deltas = model.rpn.head([torch.zeros(tuple(feature.shape)) for feature in features])
    for outputs, numbers, word in ((objectness, 1, "scores"), (deltas, 4, "box numbers")):
        given = [output.shape[1] for output in outputs]
        expected = [numbers * count for count in anchors]
        if given != expected:
            raise ExportError(
                f"rpn.head gives {given} {word} per position of its feature maps, but the anchor generator's anchors "
                f"need {expected}: give RPNHead the num_anchors that each level has"
            )


def num_keypoints_of(model: FasterRCNN) -> int:
    """Keypoints that the detector finds in each box; 0 if it is not a Keypoint R-CNN.

    Raises:
        ExportError: as ``head_sizes``.
    """
    return head_sizes(model).get("keypoints", 0)


def backbone_features(
    model: FasterRCNN, size_hw: tuple[int, ...] = (BLANK_SIDE_PX, BLANK_SIDE_PX)
) -> dict[str, Tensor]:
    """Every feature map of one blank picture, by name. They are fake tensors: only their shapes are meaningful.

    Raises:
        ExportError: the backbone does not take three channels, fails, or returns no feature maps.
    """
    # One value is used for any number of channels.
    normalised = {len(model.transform.image_mean), len(model.transform.image_std)} - {1}
    if normalised - {CHANNELS}:
        raise _other_channels(max(normalised))
    try:
        with _running("backbone"):
            features = model.backbone(torch.zeros(1, CHANNELS, *size_hw))
    except ExportError as error:
        first = next((layer for layer in model.backbone.modules() if isinstance(layer, nn.Conv2d)), None)
        if first is None or first.in_channels == CHANNELS:
            raise
        raise _other_channels(first.in_channels) from error
    maps = list(features.values()) if isinstance(features, dict) else [features]
    if not all(isinstance(feature, Tensor) and feature.ndim == 4 for feature in maps):
        raise ExportError(
            f"the backbone returns {_describe(features)}: torchvision expects a tensor [B, C, h, w] or an OrderedDict of them"
        )
    return dict(features) if isinstance(features, dict) else {"0": features}


def _other_channels(channels: int) -> ExportError:
    return ExportError(
        f"the detector takes pictures of {channels} channel{'s' if channels > 1 else ''}, and the server sends it "
        "three, RGB. Put a layer that takes three before the backbone, and give three image_mean and image_std"
    )


@contextmanager
def _running(networks: str) -> Iterator[None]:
    """Runs networks on fake tensors; their exceptions become an ExportError."""
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            yield
    except Exception as error:  # the user's own code
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ExportError(f"{networks} cannot be run on a blank picture: {reason}") from error


def _usual_sizes_hw(transform: GeneralizedRCNNTransform) -> list[tuple[int, int]]:
    if transform.fixed_size is not None:
        return [tuple(transform.fixed_size[::-1])]
    sizes = []
    for ratio in ASPECT_RATIOS:
        height, width = min(ratio, 1.0), min(1 / ratio, 1.0)  # the longer side is 1
        scale = min(transform.min_size[-1] / min(height, width), transform.max_size)
        sizes.append((int(height * scale), int(width * scale)))
    return sizes


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return "a dict of " + ", ".join(_describe(each) for each in value.values())
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def round_up(side: int, divisor: int) -> int:
    """The next multiple of ``divisor``."""
    return math.ceil(side / divisor) * divisor
