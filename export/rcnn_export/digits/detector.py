"""The samples' light detectors: a slim ResNet, a four-level FPN of 64 channels and a two-layer box head. One also has
masks, another keypoints.

They consist of torchvision's own parts only. They are under 10 MB in FP32, so that their trained weights can be kept in git
and a CPU runs them in tens of milliseconds. They are trained from scratch, so they use BatchNorm and have no frozen layers.
"""

from collections import OrderedDict
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign

STAGE_CHANNELS = (32, 48, 96, 128)  # at strides 4, 8, 16, 32
FPN_CHANNELS = 64
LEVELS = ["0", "1", "2", "3"]
HEAD_FEATURES = 256
MASK_CHANNELS = KEYPOINT_CHANNELS = 64


def digits_detector(num_classes: int = 11) -> FasterRCNN:
    """Builds the untrained detector.

    Args:
        num_classes: number of classes, including the background, as everywhere in torchvision: 11 for ten digits.

    Returns:
        a FasterRCNN that resizes the shorter side to 384 px (the longer to at most 768 px) and returns at
        most 100 detections with a score above 0.05.
    """
    return FasterRCNN(**_box_parts(num_classes))


def digits_mask_detector(num_classes: int = 11) -> MaskRCNN:
    """Builds the untrained detector with masks of 28x28 for each box.

    Args:
        num_classes: as for ``digits_detector``, whose weights fit all but the mask head.

    Returns:
        a MaskRCNN that finds boxes as ``digits_detector`` does.
    """
    return MaskRCNN(
        **_box_parts(num_classes),
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(FPN_CHANNELS, (MASK_CHANNELS,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(MASK_CHANNELS, MASK_CHANNELS, num_classes),
    )


def digits_keypoint_detector(num_classes: int = 11, num_keypoints: int = 4) -> KeypointRCNN:
    """Builds the untrained detector with keypoints in each box, found in heatmaps of 56x56.

    Args:
        num_classes: as for ``digits_detector``, whose weights fit all but the keypoint head.
        num_keypoints: in each box.

    Returns:
        a KeypointRCNN that finds boxes as ``digits_detector`` does.
    """
    return KeypointRCNN(
        **_box_parts(num_classes),
        keypoint_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=14, sampling_ratio=2),
        keypoint_head=KeypointRCNNHeads(FPN_CHANNELS, (KEYPOINT_CHANNELS,) * 4),
        keypoint_predictor=KeypointRCNNPredictor(KEYPOINT_CHANNELS, num_keypoints),
    )


def _box_parts(num_classes: int) -> dict[str, Any]:
    """The arguments of a FasterRCNN."""
    backbone = BackboneWithFPN(
        _slim_resnet(),
        return_layers={f"stage{number}": level for number, level in enumerate(LEVELS, start=1)},
        in_channels_list=list(STAGE_CHANNELS),
        out_channels=FPN_CHANNELS,
        extra_blocks=None,
    )
    # BackboneWithFPN interprets None as "add a pooled fifth level"; the largest digit fits the fourth.
    backbone.fpn.extra_blocks = None
    # Digits are 1.5 times as tall as wide; two sizes per level cover them from 15 to 180 px.
    anchors = AnchorGenerator(sizes=((16, 22), (32, 44), (60, 82), (110, 150)), aspect_ratios=((1.5,),) * 4)
    return {
        "backbone": backbone,
        "min_size": 384,
        "max_size": 768,
        "rpn_anchor_generator": anchors,
        "rpn_pre_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_train": 500,
        "rpn_post_nms_top_n_test": 150,
        "box_roi_pool": MultiScaleRoIAlign(LEVELS, output_size=7, sampling_ratio=2),
        "box_head": TwoMLPHead(FPN_CHANNELS * 7 * 7, HEAD_FEATURES),
        "box_predictor": FastRCNNPredictor(HEAD_FEATURES, num_classes),
        "box_batch_size_per_image": 128,
    }


def _slim_resnet() -> nn.Sequential:
    """A ResNet-10 (one BasicBlock per stage) with narrow stages and a stem of two 3x3 convolutions."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(
        Conv2dNormActivation(3, 16, kernel_size=3, stride=2),
        Conv2dNormActivation(16, STAGE_CHANNELS[0], kernel_size=3, stride=2),
    )
    in_channels = STAGE_CHANNELS[0]
    for number, channels in enumerate(STAGE_CHANNELS, start=1):
        stride = 1 if number == 1 else 2
        layers[f"stage{number}"] = _residual_stage(in_channels, channels, stride)
        in_channels = channels
    return nn.Sequential(layers)


def _residual_stage(in_channels: int, out_channels: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = Conv2dNormActivation(
            in_channels, out_channels, kernel_size=1, stride=stride, activation_layer=None
        )
    return BasicBlock(in_channels, out_channels, stride, shortcut)
