"""Programs of --engine cudnn on a CPU, where torch's own operators stand in for cuDNN's graphs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rcnn_backend.contract.manifest import write_manifest
from rcnn_backend.engines.load import load_engine
from rcnn_backend.errors import RepositoryError
from rcnn_export.detector.load import Detector
from rcnn_export.engines.cudnn_export import write_program
from rcnn_export.engines.fuse import Fusions
from rcnn_export.engines.options import CUDNN, EngineOptions
from rcnn_export.engines.precision import FP16
from rcnn_export.engines.stages import Stage, engine_stage
from rcnn_export.repository.configs import derive_configs

pytestmark = pytest.mark.xdist_group("export")

RUN_ALONE = """
import sys
import numpy as np
from pathlib import Path
from rcnn_backend.engines.load import load_engine

folder = Path(sys.argv[1])
found = load_engine(folder).run(dict(np.load(folder / "inputs.npz")))
np.savez(folder / "outputs.npz", **found)
assert not any(name.startswith("rcnn_export") for name in sys.modules)
"""


def export(stage: Stage, folder: Path) -> Fusions:
    fusions = write_program(stage, folder / "model.cudnn.pt2")
    manifest = {
        "inputs": stage.inputs,
        "outputs": stage.outputs,
        "engines": {"model.cudnn.pt2": {}},
        "versions": {"torch": torch.__version__},
    }
    write_manifest(folder, manifest)
    return fusions


@pytest.fixture(scope="module")
def stage(digits: Detector) -> Stage:
    return engine_stage(digits.model, "rpn")


@pytest.fixture(scope="module")
def version_dir(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rpn")
    fusions = export(stage, folder)
    assert fusions.fused > 20
    assert fusions.left == {}
    return folder


def test_the_program_equals_torch_at_any_batch_and_size(stage: Stage, version_dir: Path) -> None:
    engine = load_engine(version_dir)
    assert not engine.is_capturable
    random = np.random.default_rng(0)
    for batch, height, width in [(1, 64, 96), (3, 224, 160), (2, 32, 320)]:
        pictures = random.standard_normal((batch, 3, height, width)).astype(np.float32)
        found = engine.run({"input": pictures})
        with torch.no_grad():
            expected = stage.module(torch.from_numpy(pictures))
        assert list(found) == list(stage.outputs)
        for ours, theirs in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_a_fresh_process_needs_no_rcnn_export(stage: Stage, version_dir: Path) -> None:
    pictures = np.random.default_rng(1).standard_normal((1, 3, 64, 64)).astype(np.float32)
    np.savez(version_dir / "inputs.npz", input=pictures)
    subprocess.run([sys.executable, "-c", RUN_ALONE, str(version_dir)], check=True)
    with torch.no_grad():
        expected = stage.module(torch.from_numpy(pictures))
    with np.load(version_dir / "outputs.npz") as found:
        for name, theirs in zip(stage.outputs, expected, strict=True):
            np.testing.assert_allclose(found[name], theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_a_header_in_fp16_takes_and_gives_its_types(digits: Detector, tmp_path: Path) -> None:
    stage = engine_stage(digits.model, "header", FP16)
    export(stage, tmp_path)
    features, proposals = (tensor.numpy() for tensor in stage.example)
    found = load_engine(tmp_path).run({"roialigned_feature": features, "proposals": proposals})
    with torch.no_grad():
        expected = stage.module(*stage.example)
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs.numpy(), atol=0.02)


def test_a_broken_program_is_reported(version_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "model.cudnn.pt2").write_bytes((version_dir / "model.cudnn.pt2").read_bytes()[:1000])
    manifest = json.loads((version_dir / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RepositoryError, match=r"cannot load .*model\.cudnn\.pt2.*rcnn-export --engine cudnn"):
        load_engine(tmp_path)


def test_the_configs_name_the_backend(digits: Detector) -> None:
    configs = derive_configs(digits, "digits", EngineOptions(engine=CUDNN))
    assert [name for name, text in configs.items() if 'backend: "pytorch"' in text] == [
        "digits_rpn",
        "digits_header",
    ]
