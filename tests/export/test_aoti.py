"""AOTInductor packages equal torch, and refuse what they were not compiled for. Here: the CPU's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rcnn_backend.engines import load_engine
from rcnn_backend.errors import RepositoryError
from rcnn_export.aoti_export import compile_package
from rcnn_export.configs import derive_configs
from rcnn_export.detector import Detector
from rcnn_export.engine_options import AOTI, EngineOptions
from rcnn_export.onnx_export import Stage, header_stage

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture(scope="module")
def stage(digits: Detector) -> Stage:
    return header_stage(digits.model)


@pytest.fixture(scope="module")
def version_dir(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The header, which compiles ten times faster than the RPN, with its manifest."""
    folder = tmp_path_factory.mktemp("header")
    target = compile_package(stage, folder / "model.pt2")
    manifest = {
        "inputs": stage.inputs,
        "outputs": stage.outputs,
        "engines": {"model.pt2": {"target": target}},
        "versions": {"torch": torch.__version__},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_package_equals_torch_at_any_batch_and_number_of_rois(stage: Stage, version_dir: Path) -> None:
    engine = load_engine(version_dir)
    random = np.random.default_rng(0)
    for batch, rois in [(1, 1), (2, 30), (5, 7)]:
        features = random.standard_normal((batch, rois, *stage.example[0].shape[2:])).astype(np.float32)
        corner = random.uniform(0, 300, (batch, rois, 2))
        boxes = np.concatenate([corner, corner + random.uniform(1, 90, (batch, rois, 2))], axis=2)
        proposals = boxes.astype(np.float32)
        found = engine.run({"roialigned_feature": features, "proposals": proposals})
        with torch.no_grad():
            expected = stage.module(torch.from_numpy(features), torch.from_numpy(proposals))
        assert list(found) == list(stage.outputs)
        for ours, theirs in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engines": {"model.pt2": {"target": "cuda sm_80"}}}, "for cuda sm_80 by PyTorch .* this is cpu"),
        ({"versions": {"torch": "2.1.0"}}, r"by PyTorch 2\.1\.0, and this is cpu with PyTorch"),
    ],
)
def test_a_package_for_something_else_is_refused(
    version_dir: Path, tmp_path: Path, change: dict, message: str
) -> None:
    (tmp_path / "model.pt2").write_bytes((version_dir / "model.pt2").read_bytes())
    manifest = json.loads((version_dir / "manifest.json").read_text()) | change
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match=f"{message}.*rcnn-export --engine aoti"):
        load_engine(tmp_path)


def test_a_broken_package_and_a_missing_manifest_are_told(version_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes((version_dir / "model.pt2").read_bytes()[:1000])
    with pytest.raises(RepositoryError, match=r"cannot read .*manifest\.json"):
        load_engine(tmp_path)
    (tmp_path / "manifest.json").write_text((version_dir / "manifest.json").read_text())
    with pytest.raises(RepositoryError, match="cannot load"):
        load_engine(tmp_path)


def test_the_configs_name_the_backend(digits: Detector) -> None:
    configs = derive_configs(digits, "digits", EngineOptions(engine=AOTI))
    assert [name for name, text in configs.items() if 'backend: "pytorch"' in text] == [
        "digits_rpn",
        "digits_header",
    ]
