"""AOTInductor packages, here for the CPU, equal torch and run only on what they were compiled for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rcnn_backend.engines.load import load_engine
from rcnn_backend.errors import RepositoryError
from rcnn_export.detector.load import Detector
from rcnn_export.engines.aoti_export import compile_package, upsample_by_integers
from rcnn_export.engines.onnx_export import export_program
from rcnn_export.engines.options import AOTI, EngineOptions
from rcnn_export.engines.stages import Stage, engine_stage
from rcnn_export.repository.configs import derive_configs
from torch import Tensor, nn

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture(scope="module")
def stage(digits: Detector) -> Stage:
    return engine_stage(digits.model, "header")


@pytest.fixture(scope="module")
def version_dir(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled header with its manifest. It compiles ten times faster than the RPN."""
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


class Upsample(nn.Module):
    """Upsamples as torchvision's FeaturePyramidNetwork does."""

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return fine + nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")


@pytest.mark.parametrize("size_hw", [(14, 22), (7, 11), (21, 30), (13, 8)])
def test_upsampling_by_integers_is_torchs(size_hw: tuple[int, int]) -> None:
    coarse, fine = torch.rand(2, 3, 7, 11), torch.rand(2, 3, *size_hw).to(memory_format=torch.channels_last)
    program = upsample_by_integers(torch.export.export(Upsample(), (coarse, fine)))
    assert torch.equal(program.module()(coarse, fine), Upsample()(coarse, fine))


@pytest.mark.parametrize("factor", [2, 1.5])
def test_upsampling_by_a_factor_is_torchs(factor: float) -> None:
    upsample, x = nn.Upsample(scale_factor=factor), torch.rand(2, 3, 7, 11)
    program = upsample_by_integers(torch.export.export(upsample, (x,)))
    assert torch.equal(program.module()(x), upsample(x))
    assert any("upsample" in str(node.target) for node in program.graph.nodes) == (factor == 1.5)


def test_no_ratio_of_two_sizes_is_left_to_the_compiler(digits: Detector) -> None:
    """A GPU divides floats approximately: with a ratio slightly below 1/2, the FPN would take wrong pixels."""
    exported = export_program(engine_stage(digits.model, "rpn"))
    calls = [str(node.target) for node in upsample_by_integers(exported).graph.nodes]
    assert any("upsample" in str(node.target) for node in exported.graph.nodes)
    assert not any("upsample" in call or "truediv" in call for call in calls)


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


def test_a_broken_package_and_a_missing_manifest_are_reported(version_dir: Path, tmp_path: Path) -> None:
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
