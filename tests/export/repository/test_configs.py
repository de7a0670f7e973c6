"""Every config parses, the ensembles' tensors match, and export derives the configs that a detector needs."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from rcnn_backend.contract.chain import CHAINS, FASTER_RCNN
from rcnn_backend.contract.chain_types import NETWORK, Chain, bind
from rcnn_backend.contract.configs import read_config
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
    read_parameters,
)
from rcnn_export.detector.load import BACKGROUND, Detector, load_detector
from rcnn_export.engines.options import EngineOptions
from rcnn_export.repository.configs import derive_configs, template_dir
from torchvision.models import get_model_weights
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

Tensor = tuple[int, list[int]]
R50_FPN = {
    "faster_rcnn": fasterrcnn_resnet50_fpn,
    "mask_rcnn": maskrcnn_resnet50_fpn,
    "keypoint_rcnn": keypointrcnn_resnet50_fpn,
}
MAP_SIDES = {"mask_rcnn": 28, "keypoint_rcnn": 56}  # pixels


def configs_in(repository: Path, name: str) -> dict[str, ModelConfig]:
    return {
        model: text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())
        for model in FASTER_RCNN.model_names(name)
    }


def derived(model: FasterRCNN, name: str, names: list[str]) -> dict[str, ModelConfig]:
    texts = derive_configs(Detector(model, "model", "random", names), name)
    return {model_name: text_format.Parse(text, ModelConfig()) for model_name, text in texts.items()}


def walk(configs: dict[str, ModelConfig], name: str) -> dict[str, Tensor]:
    """Follow every tensor of the ensemble from its producer to each consumer; returns its type and shape."""
    ensemble = configs[name]
    known: dict[str, Tensor] = {t.name: (t.data_type, list(t.dims)) for t in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        assert model.max_batch_size >= ensemble.max_batch_size
        required = {t.name for t in model.input if not t.optional}
        assert required <= set(step.input_map) <= {t.name for t in model.input}
        for tensor in model.input:
            if tensor.name in step.input_map:
                assert known[step.input_map[tensor.name]] == (tensor.data_type, list(tensor.dims)), (
                    tensor.name
                )
        assert {t.name for t in model.output} == set(step.output_map)
        for tensor in model.output:
            assert step.output_map[tensor.name] not in known, "two producers"
            known[step.output_map[tensor.name]] = (tensor.data_type, list(tensor.dims))
    for tensor in ensemble.output:
        assert known[tensor.name] == (tensor.data_type, list(tensor.dims)), tensor.name
    return known


def test_the_repository_in_git_is_wired() -> None:
    configs = configs_in(template_dir(), "faster_rcnn")
    for ensemble, tensor in (("faster_rcnn", "image"), ("faster_rcnn_pixels", "pixels")):
        known = walk(configs, ensemble)
        assert {tensor, "input", "rpn_boxes", "feature_3", "roialigned_feature", "class_boxes"} <= set(known)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_r50_fpns_configs_are_what_the_chain_declares(chain: Chain) -> None:
    """Compares models, ensemble steps, and the type and shape of every tensor; 4 levels are pooled."""
    model = R50_FPN[chain.family](weights=None, weights_backbone=None).eval()
    classes = model.roi_heads.box_predictor.cls_score.out_features
    configs = derived(model, chain.family, [f"class_{label}" for label in range(classes)])
    assert list(configs) == chain.model_names(chain.family)
    fixed = {
        "channels": 256,
        "classes": classes - 1,
        "detections": 100,
        "pooled_height": 7,
        "pooled_width": 7,
    }
    fixed |= {"head_pooled_height": 14, "head_pooled_width": 14, "keypoints": 17}
    fixed |= dict.fromkeys(("map_height", "map_width"), MAP_SIDES.get(chain.family, 0))
    for name in (chain.family, f"{chain.family}_pixels", f"{chain.family}_fused"):
        assert [(t.name, DataType.Name(t.data_type), list(t.dims)) for t in configs[name].output] == [
            (t.name, t.data_type, bind(t.shape, fixed)) for t in chain.answers
        ]
    for ensemble, taken in ((chain.family, "image"), (f"{chain.family}_pixels", "pixels")):
        for step, wired in zip(chain.steps, configs[ensemble].ensemble_scheduling.step, strict=True):
            inputs = [t.name for t in chain.inputs(step, 4) if not t.is_optional or t.name == taken]
            assert wired.model_name == f"{chain.family}_{step.name}"
            assert wired.input_map == {name: name for name in inputs}
            assert wired.output_map == {tensor.name: tensor.name for tensor in chain.outputs(step, 4)}
    for step in chain.steps:
        config = configs[f"{chain.family}_{step.name}"]
        assert (config.backend != "python") == step.is_engine
        for declared, own in ((chain.inputs(step, 4), config.input), (chain.outputs(step, 4), config.output)):
            assert [
                (t.name, t.data_type if t.data_type != NETWORK else "TYPE_FP32", bind(t.shape, fixed))
                for t in declared
            ] == [(tensor.name, DataType.Name(tensor.data_type), list(tensor.dims)) for tensor in own]
        assert [t.is_optional for t in chain.inputs(step, 4)] == [tensor.optional for tensor in config.input]


def test_the_two_ensembles_differ_in_their_input_only() -> None:
    configs = configs_in(template_dir(), "faster_rcnn")
    encoded, pixels = configs["faster_rcnn"], configs["faster_rcnn_pixels"]
    assert pixels.ensemble_scheduling.step[0].input_map == {"pixels": "pixels"}
    pixels.name = encoded.name
    pixels.input[0].CopyFrom(encoded.input[0])
    pixels.ensemble_scheduling.step[0].input_map.clear()
    pixels.ensemble_scheduling.step[0].input_map["image"] = "image"
    assert pixels == encoded


@functools.cache
def derived_from_r50_fpn(family: str) -> dict[str, str]:
    model = R50_FPN[family](weights=None, weights_backbone=None).eval()
    coco = get_model_weights(R50_FPN[family].__name__)["COCO_V1"].meta["categories"]
    return derive_configs(Detector(model, "r50", "COCO_V1", coco), family)


@pytest.mark.parametrize("family", R50_FPN)
def test_the_repository_in_git_is_r50_fpns(family: str) -> None:
    """Git has all models of Faster R-CNN; of the other families, only those that differ in more than their tensors."""
    texts = derived_from_r50_fpn(family)
    in_git = {path.parent.name: path.read_text() for path in template_dir().glob(f"{family}*/config.pbtxt")}
    assert in_git == {name: texts[name] for name in in_git}
    assert len(in_git) == {"faster_rcnn": len(texts), "mask_rcnn": 4, "keypoint_rcnn": 1}[family]


def two_level_detector(num_classes: int = 4) -> FasterRCNN:
    """A detector with other channels, levels, anchors, sizes and thresholds than R50-FPN."""
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 8, 1), torch.nn.Conv2d(8, 16, 3, 2, 1))
    backbone = BackboneWithFPN(body, {"0": "a", "1": "b"}, [8, 16], 24)
    return FasterRCNN(
        backbone,
        num_classes,
        min_size=200,
        max_size=300,
        image_mean=[0.0, 0.5, 1.0],
        rpn_anchor_generator=AnchorGenerator(((8, 16), (32, 48), (64, 96)), ((1.0,),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["a", "b"], 5, 1),
        rpn_post_nms_top_n_test=50,
        rpn_score_thresh=0.01,
        box_detections_per_img=20,
        box_nms_thresh=0.4,
    ).eval()


def test_another_detectors_configs_are_derived() -> None:
    names = [BACKGROUND, 'Käse "1"', "猫", "$(x) & 'y' \\"]
    texts = derive_configs(Detector(two_level_detector(), "two", "random", names), "two")
    configs = {name: text_format.Parse(text, ModelConfig()) for name, text in texts.items()}
    steps = ("preprocess", "rpn", "proposals", "header", "detections")
    assert list(configs) == ["two", "two_pixels", "two_fused", *(f"two_{step}" for step in steps)]
    walk(configs, "two_pixels")
    known = walk(configs, "two")
    assert list(configs["two_fused"].output) == list(configs["two"].output)
    assert configs["two_fused"].parameters["class_names"] == configs["two"].parameters["class_names"]
    assert known["feature_1"][1] == [24, -1, -1]
    assert "feature_2" not in known
    assert known["roialigned_feature"][1] == [-1, 24, 5, 5]
    assert known["class_boxes"][1] == [-1, 3, 4]
    assert known["boxes"][1] == [20, 4]
    assert json.loads(configs["two"].parameters["class_names"].string_value) == names


def test_the_server_reads_the_parameters_that_export_wrote(tmp_path: Path) -> None:
    for name, text in derive_configs(
        Detector(two_level_detector(), "two", "random", list("abcd")), "two"
    ).items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(text)
    preprocess = read_parameters(PreprocessParameters, read_config(tmp_path / "two_preprocess"))
    assert (preprocess.min_size, preprocess.max_size, preprocess.image_mean) == (200, 300, [0.0, 0.5, 1.0])
    assert (preprocess.max_image_pixels, preprocess.padded_sizes_hw) == (50_000_000, [])
    proposals = read_parameters(ProposalParameters, read_config(tmp_path / "two_proposals"))
    assert proposals.padded_counts == [5, 15, 30, 50]
    assert proposals.max_rpn_boxes == 3 * 1000
    pooling = read_parameters(PoolParameters, read_config(tmp_path / "two_proposals"))
    assert (pooling.feature_strides, pooling.output_size_hw, pooling.sampling_ratio) == (
        [8, 16],
        [5, 5],
        1,
    )
    assert proposals.score_thresh == 0.01
    detections = read_parameters(DetectionParameters, read_config(tmp_path / "two_detections"))
    assert (detections.nms_thresh, detections.detections_per_img) == (0.4, 20)


@pytest.mark.parametrize("model", ["fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_mobilenets_two_levels_of_one_stride(model: str) -> None:
    detector = load_detector(model)
    known = walk(
        {
            name: text_format.Parse(text, ModelConfig())
            for name, text in derive_configs(detector, "m").items()
        },
        "m",
    )
    assert np.shape([tensor for tensor in known if tensor.startswith("feature_")]) == (2,)


@pytest.mark.parametrize("family", R50_FPN)
def test_models_with_weights_have_one_instance(family: str) -> None:
    """Triton's default on a CPU would be two instances."""
    configs = [text_format.Parse(text, ModelConfig()) for text in derived_from_r50_fpn(family).values()]
    heavy = [
        config for config in configs if config.backend == "onnxruntime" or config.name.endswith("_fused")
    ]
    assert len(heavy) == {"faster_rcnn": 3, "mask_rcnn": 4, "keypoint_rcnn": 4}[family]
    for config in heavy:
        assert [group.count for group in config.instance_group] == [1]


def test_queues_are_longer_for_faster_engines() -> None:
    model = R50_FPN["faster_rcnn"](weights=None, weights_backbone=None).eval()
    coco = get_model_weights(R50_FPN["faster_rcnn"].__name__)["COCO_V1"].meta["categories"]
    on_gpu = derive_configs(Detector(model, "r50", "COCO_V1", coco), "m", EngineOptions("cudnn"))
    for texts, length in ((derived_from_r50_fpn("faster_rcnn").values(), 32), (on_gpu.values(), 64)):
        configs = [text_format.Parse(text, ModelConfig()) for text in texts]
        waited_for = [config for config in configs if config.name.endswith(("_preprocess", "_fused"))]
        queues = [config.dynamic_batching.default_queue_policy.max_queue_size for config in waited_for]
        assert queues == [length] * 2
