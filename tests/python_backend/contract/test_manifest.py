"""A plan that cannot run is refused, based on its manifest. The error names the cause and the command to run."""

import dataclasses
import json
from pathlib import Path

import pytest
from rcnn_backend.contract.manifest import (
    InstalledTensorRT,
    PlanRecord,
    check_files,
    check_gpu,
    check_version,
    read_plan_record,
    rebuild_hint,
    sha256_of,
    write_manifest,
)
from rcnn_backend.errors import RepositoryError

RECORD = PlanRecord(
    sha256="", size_bytes=5, onnx_sha256="", package="tensorrt", version="10.13.3.9", compute_capabilities=["8.9"],
    version_compatible=False, hardware_compatible=False, profiles=[],
)  # fmt: skip


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my models" / "cats_rpn" / "1"
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(b"plan!")
    (folder / "model.onnx").write_bytes(b"graph")
    (tmp_path / "my models" / "cats").mkdir()
    (tmp_path / "my models" / "cats" / "config.pbtxt").touch()
    return folder


@pytest.fixture
def record(version_dir: Path) -> PlanRecord:
    hashes = [sha256_of(version_dir / name) for name in ("model.plan", "model.onnx")]
    return dataclasses.replace(RECORD, sha256=hashes[0], onnx_sha256=hashes[1])


def hint(version_dir: Path) -> str:
    return f"Rebuild it here: `rcnn-serve '{version_dir.parents[1]}' --models cats --rebuild`"


def test_a_plan_as_it_was_built_passes(version_dir: Path, record: PlanRecord) -> None:
    check_files(version_dir, record)
    check_version(version_dir, record, InstalledTensorRT("tensorrt", "10.13.3.9"))
    check_gpu(version_dir, record, "8.9")


def test_a_truncated_plan(version_dir: Path, record: PlanRecord) -> None:
    plan = version_dir / "model.plan"
    plan.write_bytes(b"pla")
    with pytest.raises(RepositoryError) as error:
        check_files(version_dir, record)
    assert str(error.value) == (
        f"{plan} is 3 bytes and was 5 when it was built: it is cut short or a different file. {hint(version_dir)}"
    )


def test_a_plan_of_the_same_length_that_changed(version_dir: Path, record: PlanRecord) -> None:
    (version_dir / "model.plan").write_bytes(b"plan?")
    with pytest.raises(
        RepositoryError, match=f"has changed since it was built: .* the manifest has {record.sha256[:12]}"
    ):
        check_files(version_dir, record)


def test_a_stale_plan_beside_a_newer_graph(version_dir: Path, record: PlanRecord) -> None:
    (version_dir / "model.onnx").write_bytes(b"newer")
    newer = sha256_of(version_dir / "model.onnx")[:12]
    with pytest.raises(RepositoryError) as error:
        check_files(version_dir, record)
    assert str(error.value) == (
        f"{version_dir / 'model.plan'} is stale: it was built from a graph with sha256 {record.onnx_sha256[:12]}, and "
        f"model.onnx next to it has {newer}. {hint(version_dir)}"
    )


def test_a_plan_without_its_graph_runs(version_dir: Path, record: PlanRecord) -> None:
    (version_dir / "model.onnx").unlink()
    check_files(version_dir, record)
    (version_dir / "model.plan").unlink()
    with pytest.raises(RepositoryError, match=r"there is no .*model\.plan\. Rebuild it here: "):
        check_files(version_dir, record)


@pytest.mark.parametrize(
    ("package", "version", "compatible", "runs"),
    [
        ("tensorrt", "10.13.3.9", False, True),
        ("tensorrt", "10.14.1.48", False, False),
        ("tensorrt", "11.4.0.106", False, False),
        ("tensorrt_rtx", "10.13.3.9", True, False),
        ("tensorrt", "10.14.1.48", True, True),
        ("tensorrt", "11.0.0.114", True, True),
        ("tensorrt", "10.9.0.34", True, False),
    ],
)
def test_another_tensorrt(
    version_dir: Path, record: PlanRecord, package: str, version: str, compatible: bool, runs: bool
) -> None:
    record = dataclasses.replace(record, version_compatible=compatible)
    here = InstalledTensorRT(package, version)
    if runs:
        check_version(version_dir, record, here)
        return
    with pytest.raises(RepositoryError) as error:
        check_version(version_dir, record, here)
    assert f"was built by tensorrt 10.13.3.9, and this is {package} {version}: " in str(error.value)
    assert hint(version_dir) in str(error.value)


@pytest.mark.parametrize(
    ("capability", "compatible", "told"),
    [
        ("9.0", False, "capability 8.9, and the one here has 9.0"),
        ("7.5", True, "capability 8.0 or later, and the one here has 7.5"),
        ("9.0", True, ""),
        ("12.0", True, ""),
    ],
)
def test_another_gpu(
    version_dir: Path, record: PlanRecord, capability: str, compatible: bool, told: str
) -> None:
    record = dataclasses.replace(record, hardware_compatible=compatible)
    if not told:
        check_gpu(version_dir, record, capability)
        return
    with pytest.raises(RepositoryError) as error:
        check_gpu(version_dir, record, capability)
    assert told in str(error.value) and hint(version_dir) in str(error.value)


def test_the_manifest_itself(version_dir: Path, record: PlanRecord) -> None:
    assert read_plan_record(version_dir) is None
    write_manifest(version_dir, {"engines": {"model.plan": dataclasses.asdict(record)}})
    assert read_plan_record(version_dir) == record
    write_manifest(version_dir, {"engines": {"model.plan": {"sha256": ""}}})
    with pytest.raises(RepositoryError, match=r"does not describe model\.plan .*missing .*--engine tensorrt"):
        read_plan_record(version_dir)
    (version_dir / "manifest.json").write_text(json.dumps({})[:1])
    with pytest.raises(RepositoryError, match=r"cannot read .*manifest\.json"):
        read_plan_record(version_dir)


def test_the_detector_to_rebuild_is_one_that_is_there(tmp_path: Path) -> None:
    for name in ("my_mask", "my_mask_header", "my", "my_rpn"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").touch()
    assert "--models my_mask --rebuild" in rebuild_hint(tmp_path / "my_mask_header" / "1")
    assert "--models my --rebuild" in rebuild_hint(tmp_path / "my_rpn" / "1")
    assert "--models other_rpn --rebuild" in rebuild_hint(tmp_path / "other_rpn" / "1")
