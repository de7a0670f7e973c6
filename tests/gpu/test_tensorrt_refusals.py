"""Plans that cannot run are refused with a clear message, before TensorRT reads them or by TensorRT's own runtime.

No builder is needed: ``tensorrt-lean-cu13`` is enough, and so is its Python module from wheels.
"""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("cupy")
if not any(map(importlib.util.find_spec, ("tensorrt", "tensorrt_lean"))):
    pytest.skip("needs tensorrt or tensorrt-lean-cu13", allow_module_level=True)

from rcnn_backend.contract.manifest import PlanRecord, sha256_of, write_manifest, write_plan_record
from rcnn_backend.devices import Gpu
from rcnn_backend.engines.load import load_engine
from rcnn_backend.engines.tensorrt_package import find_installed
from rcnn_backend.errors import RepositoryError, ServerError
from rcnn_backend.server.local_server import running_server

pytestmark = pytest.mark.gpu

CONFIG = """
backend: "tensorrt"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
instance_group { kind: KIND_GPU }
"""
NO_PLANS = {
    "empty": b"",
    "too short": b"plan",
    "no plan": bytes(range(256)) * 64,
    # the first 28 bytes of a TensorRT-RTX 1.7.1 plan, without the data that should follow
    "another TensorRT's": bytes.fromhex("7674727400000000020000000000000044482c000000000001070174")
    + bytes(8192),
}


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "cats_header" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(CONFIG)
    (folder / "model.onnx").write_bytes(b"graph")
    return folder


def write_plan(version_dir: Path, plan: bytes) -> PlanRecord:
    """A plan whose manifest says that it was built here."""
    (version_dir / "model.plan").write_bytes(plan)
    installed = find_installed()
    record = PlanRecord(
        sha256=sha256_of(version_dir / "model.plan"),
        size_bytes=len(plan),
        onnx_sha256=sha256_of(version_dir / "model.onnx"),
        package=installed.package,
        version=installed.version,
        compute_capabilities=[Gpu(0).compute_capability],
        version_compatible=False,
        hardware_compatible=False,
        profiles=[],
    )
    write_manifest(version_dir, {"engines": {}})
    write_plan_record(version_dir, record)
    return record


@pytest.mark.parametrize("kind", NO_PLANS)
def test_tensorrt_refuses_what_is_no_plan_of_its_own(version_dir: Path, kind: str) -> None:
    write_plan(version_dir, NO_PLANS[kind])
    with pytest.raises(RepositoryError) as error:
        load_engine(version_dir, Gpu(0))
    print(error.value)
    assert f"{find_installed()} cannot load {version_dir / 'model.plan'}: " in str(error.value)
    assert "gave no reason" not in str(error.value)
    assert "--models cats --rebuild`" in str(error.value)


def test_a_plan_without_a_manifest_is_left_to_tensorrt(version_dir: Path) -> None:
    (version_dir / "model.plan").write_bytes(NO_PLANS["no plan"])
    with pytest.raises(RepositoryError, match=r"cannot load .*model\.plan: "):
        load_engine(version_dir, Gpu(0))


def test_another_version_and_another_gpu(version_dir: Path) -> None:
    record = write_plan(version_dir, NO_PLANS["no plan"])
    here, capability = find_installed(), Gpu(0).compute_capability
    write_plan_record(version_dir, dataclasses.replace(record, version="9.9.9.9"))
    with pytest.raises(
        RepositoryError, match=rf"was built by tensorrt 9\.9\.9\.9, and this is {here}: .*--rebuild`"
    ):
        load_engine(version_dir, Gpu(0))
    write_plan_record(version_dir, dataclasses.replace(record, compute_capabilities=["7.5"]))
    with pytest.raises(
        RepositoryError, match=f"capability 7.5, and the one here has {capability}.*--rebuild`"
    ):
        load_engine(version_dir, Gpu(0))


@pytest.mark.skipif(not importlib.util.find_spec("pytriton"), reason="needs the pip-installed tritonserver")
@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("whole", "tensorrt .* cannot load .*model.plan: "),
        ("cut", "is 100 bytes and was 16384 when it was built"),
    ],
)
def test_the_server_tells_the_same(version_dir: Path, plan: str, message: str) -> None:
    write_plan(version_dir, NO_PLANS["no plan"])
    if plan == "cut":
        (version_dir / "model.plan").write_bytes(NO_PLANS["no plan"][:100])
    with (
        pytest.raises(ServerError, match=f"model cats_header failed to load: (.|\n)*{message}"),
        running_server(version_dir.parents[1], ["cats_header"]),
    ):
        pass
