"""TensorRT's inspector shows what a built engine's config and manifest declare. Needs a builder and a GPU."""

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("cupy")
if not any(map(importlib.util.find_spec, ("tensorrt", "tensorrt_rtx"))):
    pytest.skip("needs tensorrt or tensorrt-rtx-cu13", allow_module_level=True)

from rcnn_backend.contract.configs import read_configs
from rcnn_backend.contract.manifest import PlanOptions, read_plan_record
from rcnn_backend.devices import Gpu
from rcnn_backend.engines.profiles import from_json
from rcnn_backend.engines.rebuild import check_config
from rcnn_backend.engines.tensorrt import list_profiles, list_tensors
from rcnn_backend.engines.tensorrt_package import ErrorLog, find_installed, trt
from rcnn_export.detector.load import Detector
from rcnn_export.engines.options import TENSORRT, EngineOptions
from rcnn_export.engines.plan_shapes import parse_shapes, plan_profiles
from rcnn_export.engines.precision import FP16
from rcnn_export.repository.write import export_repository

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("digits")]


def test_the_inspector_lists_what_the_configs_declare(digits: Detector, tmp_path: Path) -> None:
    shapes = [parse_shapes("1x32x32,4x320x320,8x384x384"), parse_shapes("1x416x32,4x416x768,8x768x768")]
    chosen = ("8.9",) if find_installed().package == "tensorrt_rtx" else ()
    options = EngineOptions(
        TENSORRT, FP16, plan_profiles(digits.model, shapes), PlanOptions(compute_capabilities=chosen)
    )
    export_repository(digits, tmp_path, "digits", options=options)
    for stage in ("rpn", "header"):
        version_dir, log = tmp_path / f"digits_{stage}" / "1", ErrorLog()
        record = read_plan_record(version_dir)
        assert record
        with Gpu(0).active():
            engine = trt.Runtime(log).deserialize_cuda_engine((version_dir / "model.plan").read_bytes())
            assert engine is not None, log
            assert list_profiles(engine) == from_json(record.profiles)
            check_config(
                list_tensors(engine), list_profiles(engine), read_configs(tmp_path)[f"digits_{stage}"]
            )
            inspector = engine.create_engine_inspector()
            told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        names = {tensor.name for tensor in list_tensors(engine)}
        assert names <= set(told["Bindings"]) and told["Layers"]
