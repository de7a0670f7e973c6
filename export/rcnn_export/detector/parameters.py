"""The settings of a torch detector that the steps between the engines use."""

from collections.abc import Sequence

from rcnn_backend.contract.parameters import (
    DetectionParameters,
    HeadParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
)
from torchvision.models.detection import FasterRCNN

from rcnn_export.detector.shapes import CHANNELS, backbone_features, pooled_strides
from rcnn_export.errors import ExportError

# On a CPU a batch of RoIs is padded to the next of these fractions of ``post_nms_top_n``, the largest number of RoIs.
PADDED_SHARES = (0.1, 0.3, 0.6, 1.0)
# A mask or keypoint head pads the final detections to the next of these fractions of ``detections_per_img``.
DETECTION_SHARES = (0.01, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
POSTPROCESS_MIN_BOX_SIZE = 1e-2  # a literal in torchvision's postprocess_detections


def preprocess_parameters(model: FasterRCNN) -> PreprocessParameters:
    """GeneralizedRCNNTransform's settings in eval mode.

    The fields without such a setting (``max_image_bytes``, ``max_image_pixels``, ``padded_sizes_hw``) are
    placeholders. The hand-written config decides them.
    """
    transform = model.transform
    fixed_size = transform.fixed_size
    return PreprocessParameters(
        min_size=_whole("transform.min_size", transform.min_size[-1]),
        max_size=_whole("transform.max_size", transform.max_size),
        fixed_size_hw=None
        if fixed_size is None
        else [_whole("transform.fixed_size", side) for side in fixed_size[::-1]],
        image_mean=_by_channel(transform.image_mean),
        image_std=_by_channel(transform.image_std),
        size_divisible=_whole("transform.size_divisible", transform.size_divisible),
        max_image_pixels=0,
    )


def proposal_parameters(model: FasterRCNN) -> ProposalParameters:
    """RegionProposalNetwork's settings in eval mode."""
    max_proposals = model.rpn.post_nms_top_n()
    return ProposalParameters(
        score_thresh=model.rpn.score_thresh,
        nms_thresh=model.rpn.nms_thresh,
        min_box_size=model.rpn.min_size,
        padded_counts=sorted({max(1, round(share * max_proposals)) for share in PADDED_SHARES}),
        max_rpn_boxes=model.rpn.pre_nms_top_n() * len(backbone_features(model)),
    )


def pool_parameters(model: FasterRCNN, name: str = "box_roi_pool") -> PoolParameters:
    """The settings of one of RoIHeads' MultiScaleRoIAligns, all of which pool the same levels."""
    pooler = getattr(model.roi_heads, name)
    return PoolParameters(
        feature_strides=pooled_strides(model, name),
        canonical_scale=_whole(f"{name}.canonical_scale", pooler.canonical_scale),
        canonical_level=_whole(f"{name}.canonical_level", pooler.canonical_level),
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


def head_parameters(model: FasterRCNN) -> HeadParameters:
    """How a mask or keypoint head pads the final detections."""
    most = model.roi_heads.detections_per_img
    return HeadParameters(sorted({max(1, round(share * most)) for share in DETECTION_SHARES}))


def _by_channel(values: Sequence[float]) -> list[float]:
    """The mean or standard deviation of R, G and B; torchvision also accepts one value for all three."""
    listed = [float(value) for value in values]
    return listed * CHANNELS if len(listed) == 1 else listed


def _whole(setting: str, value: float) -> int:
    if value != int(value):
        raise ExportError(f"{setting} is {value}, expected a whole number")
    return int(value)
