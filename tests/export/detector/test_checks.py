"""Code that an export would leave out is refused, naming its class and method; code that it includes is accepted."""

import functools
import re
from collections.abc import Callable

import pytest
import torch
from rcnn_export.detector.checks import check_is_faster_rcnn
from rcnn_export.detector.load import build_detector, check_detector
from rcnn_export.errors import ExportError
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import AnchorGenerator, RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

Build = Callable[..., FasterRCNN]


class NoResize(GeneralizedRCNNTransform):
    def resize(self, image, target=None):
        return image, target


class AgnosticNms(RoIHeads):
    def postprocess_detections(self, *args):
        return super().postprocess_detections(*args)


class Unfiltered(RegionProposalNetwork):
    def filter_proposals(self, *args):
        return super().filter_proposals(*args)


class Shifted(AnchorGenerator):
    def grid_anchors(self, *args):
        return [anchors + 4 for anchors in super().grid_anchors(*args)]


class Halved(BoxCoder):
    def decode(self, rel_codes, boxes):
        return super().decode(rel_codes / 2, boxes)


class Doubled(MultiScaleRoIAlign):
    def forward(self, *args):
        return 2 * super().forward(*args)


class Listing(FasterRCNN):
    def forward(self, images, targets=None):
        return super().forward(list(images), targets)


class OwnTraining(RoIHeads):
    def select_training_samples(self, *args):
        return super().select_training_samples(*args)


class OwnCells(AnchorGenerator):
    def set_cell_anchors(self, dtype, device):
        self.cell_anchors = [torch.tensor([[-8.0, -8, 8, 8], [-5.0, -9, 5, 9]], dtype=dtype, device=device)]


class OwnDecoding(BoxCoder):
    def decode_single(self, rel_codes, boxes):
        return super().decode_single(rel_codes / 2, boxes)


@pytest.mark.parametrize(
    ("path", "subclass", "method"),
    [
        ("transform", NoResize, "resize"),
        ("rpn", Unfiltered, "filter_proposals"),
        ("rpn.anchor_generator", Shifted, "grid_anchors"),
        ("rpn.box_coder", Halved, "decode"),
        ("roi_heads", AgnosticNms, "postprocess_detections"),
        ("roi_heads.box_coder", Halved, "decode"),
        ("roi_heads.box_roi_pool", Doubled, "forward"),
        ("", Listing, "forward"),
    ],
)
def test_a_method_of_a_subclass_is_refused(build: Build, path: str, subclass: type, method: str) -> None:
    model = build()
    part = functools.reduce(getattr, filter(None, path.split(".")), model)
    part.__class__ = subclass
    with pytest.raises(
        ExportError, match=rf"{subclass.__name__}\.{method} of {path or 'the detector'} is not"
    ):
        check_detector(model)


def test_a_patched_method_is_refused(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    normalize = model.transform.normalize
    model.transform.normalize = functools.wraps(normalize)(lambda image: normalize(image) * 2)
    with pytest.raises(ExportError, match=r"GeneralizedRCNNTransform\.normalize of transform is not"):
        check_detector(model)
    monkeypatch.setattr(RoIHeads, "postprocess_detections", lambda *args: ([], [], []))
    with pytest.raises(ExportError, match=r"RoIHeads\.postprocess_detections of roi_heads is not"):
        check_detector(build())


@pytest.mark.parametrize("path", ["transform", "rpn", "roi_heads", "roi_heads.box_roi_pool", ""])
def test_a_hook_is_refused_where_it_would_not_run(build: Build, path: str) -> None:
    model = build()
    model.get_submodule(path).register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ExportError, match=f"{path or 'the detector'} .* has a forward hook"):
        check_detector(model)


def test_code_that_is_exported_may_be_anything(build: Build) -> None:
    model = build(rpn_anchor_generator=OwnCells(((16, 32),), ((1.0,),)))
    model.roi_heads.__class__ = OwnTraining
    model.roi_heads.box_coder.__class__ = OwnDecoding
    model.backbone.register_forward_hook(lambda module, inputs, output: output * 2)
    check_detector(model)


def test_parts_of_another_class_are_refused(build: Build) -> None:
    model = build()
    model.roi_heads.box_roi_pool = nn.Identity()
    with pytest.raises(
        ExportError, match=r"box_roi_pool is a torch\..*Identity, expected .*MultiScaleRoIAlign"
    ):
        check_detector(model)


def test_parts_that_cannot_be_traced_are_refused(build: Build) -> None:
    model = build()
    model.roi_heads.box_head = torch.jit.script(model.roi_heads.box_head)
    with pytest.raises(ExportError, match=r"box_head is a .*ScriptModule.* as Python modules"):
        check_detector(model)
    with pytest.raises(ExportError, match=r"fc6 is a torch\.ao\..*Linear.* in FP32"):
        check_detector(torch.ao.quantization.quantize_dynamic(build(), {nn.Linear}))


def test_a_mask_head_is_refused(build: Build) -> None:
    model = build()
    model.roi_heads.mask_roi_pool = MultiScaleRoIAlign(["0"], 3, 2)
    model.roi_heads.mask_head = model.roi_heads.mask_predictor = nn.Identity()
    with pytest.raises(ExportError, match="has a mask head: faster_rcnn exports boxes only"):
        check_detector(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("maskrcnn_resnet50_fpn", "is a MaskRCNN: faster_rcnn exports boxes only"),
        ("keypointrcnn_resnet50_fpn", "is a KeypointRCNN: faster_rcnn exports boxes only"),
        ("retinanet_resnet50_fpn_v2", "is a RetinaNet, a one-stage detector"),
        ("fcos_resnet50_fpn", "is a FCOS, a one-stage detector"),
        ("ssdlite320_mobilenet_v3_large", "is a SSD, a one-stage detector"),
    ],
)
def test_torchvisions_other_detectors_are_refused_by_name(model: str, message: str) -> None:
    with pytest.raises(ExportError, match=f"{model} {message}"):
        build_detector(model, family="faster_rcnn")


def test_a_detector_of_another_family_is_refused(build: Build) -> None:
    with pytest.raises(ExportError, match="Give a FasterRCNN, or export it with `rcnn-export mask_rcnn`"):
        build_detector("maskrcnn_resnet50_fpn", family="faster_rcnn")
    message = "is a FasterRCNN: mask_rcnn exports boxes and masks, and it finds boxes. Give a MaskRCNN, or export it with `rcnn-export f"
    with pytest.raises(ExportError, match=f"fasterrcnn_resnet50_fpn {message}"):
        build_detector("fasterrcnn_resnet50_fpn", family="mask_rcnn")
    with pytest.raises(
        ExportError, match=r"my:function returned a FasterRCNN: mask_rcnn exports boxes and masks"
    ):
        check_is_faster_rcnn(build(), "my:function", "mask_rcnn")
    message = "mask_rcnn exports boxes and masks, and it finds boxes and keypoints. Give a MaskRCNN, or .* keypoint_rcnn"
    with pytest.raises(ExportError, match=f"keypointrcnn_resnet50_fpn is a KeypointRCNN: {message}"):
        build_detector("keypointrcnn_resnet50_fpn", family="mask_rcnn")


def test_a_detector_inside_another_module_is_pointed_out(build: Build) -> None:
    with pytest.raises(
        ExportError, match=r"returned torch\..*Sequential, whose 0 is a FasterRCNN: return that"
    ):
        check_is_faster_rcnn(nn.Sequential(build()), "my:function")
    with pytest.raises(ExportError, match=r"returned a class, .*FasterRCNN, expected"):
        check_is_faster_rcnn(FasterRCNN, "my:function")


@pytest.mark.parametrize(("channels", "text"), [(1, "1 channel,"), (4, "4 channels,")])
def test_pictures_of_other_channels_are_refused(build: Build, channels: int, text: str) -> None:
    model = build(image_mean=[0.5] * channels, image_std=[0.2] * channels)
    model.backbone[0] = nn.Conv2d(channels, 4, 3, 8, 1)
    with pytest.raises(ExportError, match=f"takes pictures of {text} and the server sends it three"):
        check_detector(model)


class Grey(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1, keepdim=True)


def test_a_backbone_may_make_its_own_channels_of_three(build: Build) -> None:
    model = build(image_mean=[0.5], image_std=[0.25])
    model.backbone = nn.Sequential(Grey(), nn.Conv2d(1, 4, 3, 8, 1))
    check_detector(model)


class Predictor(nn.Module):
    """Keeps torchvision's contract but has other layer names."""

    def __init__(self, num_classes: int, box_numbers: int) -> None:
        super().__init__()
        self.scores, self.boxes = nn.Linear(16, num_classes), nn.Linear(16, box_numbers)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scores(x), self.boxes(x)


def test_a_predictor_gives_four_numbers_for_each_class(build: Build) -> None:
    check_detector(build(box_predictor=Predictor(5, 20)))
    with pytest.raises(ExportError, match=re.escape("[(2, 5), (2, 4)] for two RoIs")):
        check_detector(build(box_predictor=Predictor(5, 4)))


def test_parts_that_do_not_fit_together_are_refused(build: Build) -> None:
    two_levels = AnchorGenerator(((16,), (32,)), ((1.0,),) * 2)
    with pytest.raises(ExportError, match="anchors for 2 feature maps, but the backbone returns 1"):
        check_detector(build(rpn_anchor_generator=two_levels))
    model = build()
    model.rpn.anchor_generator = AnchorGenerator(((16, 32, 64),), ((1.0,),))
    with pytest.raises(ExportError, match=re.escape("gives [2] scores per position")):
        check_detector(model)
    with pytest.raises(
        ExportError, match=re.escape("pools the feature maps ['p2'], but the backbone returns ['0']")
    ):
        check_detector(build(box_roi_pool=MultiScaleRoIAlign(["p2"], 3, 2)))
    with pytest.raises(ExportError, match="box_head and box_predictor cannot be run on a blank picture"):
        check_detector(build(box_roi_pool=MultiScaleRoIAlign(["0"], 5, 2)))
    model = build()
    model.backbone = nn.Flatten()
    with pytest.raises(ExportError, match=re.escape("returns a tensor [1, 196608]: torchvision expects")):
        check_detector(model)
