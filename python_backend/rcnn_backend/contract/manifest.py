"""``manifest.json`` next to an engine: what the engine was made from and, for a plan, what it runs on.

rcnn-export writes it. A plan's manifest is read before TensorRT loads the plan, so that a plan that cannot
run here is refused with a clear message.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcnn_backend.contract.find_chain import detector_of
from rcnn_backend.errors import RepositoryError

MANIFEST = "manifest.json"
PLAN, ONNX = "model.plan", "model.onnx"
OLDEST_COMPATIBLE = (8, 0)  # Ampere, the oldest that TensorRT's hardware compatibility supports


@dataclass(frozen=True)
class InstalledTensorRT:
    """The TensorRT of this Python. ``package``: ``tensorrt`` or ``tensorrt_rtx``; each has its own kind of plan."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is built, apart from its graph and its profiles.

    ``version_compatible``: it also runs on later versions of TensorRT. ``hardware_compatible``: it runs on any GPU
    from Ampere on, but slower. ``compute_capabilities``: those of the GPUs to build for; by default that of this GPU.
    """

    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: Sequence[str] = ()


@dataclass(frozen=True)
class PlanRecord:
    """What the manifest says about ``model.plan``.

    ``onnx_sha256``: of the graph that it was built from, which is in the same folder. ``package`` and ``version``: as
    in InstalledTensorRT. ``compute_capabilities``: those of the GPUs that it was built for, such as ``8.9``.
    ``profiles``: for each profile, the smallest, best and largest shape of each input.
    """

    sha256: str
    size_bytes: int
    onnx_sha256: str
    package: str
    version: str
    compute_capabilities: list[str]
    version_compatible: bool
    hardware_compatible: bool
    profiles: list[dict[str, list[str]]]


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def read_manifest(version_dir: Path) -> dict[str, Any]:
    """The manifest of a model's version folder, e.g. ``model_repository/faster_rcnn_rpn/1``.

    Raises:
        RepositoryError: the manifest does not exist or is not JSON.
    """
    path = version_dir / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise RepositoryError(
            f"cannot read {path}: {error}. Export the detector with rcnn-export, or check the repository and the name"
        ) from error
    return manifest


def write_manifest(version_dir: Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest atomically."""
    new = version_dir / f".{MANIFEST}.new"
    new.write_text(json.dumps(manifest, indent=2) + "\n")
    new.replace(version_dir / MANIFEST)


def read_plan_record(version_dir: Path) -> PlanRecord | None:
    """What the manifest says about the plan; None if there is no manifest.

    Raises:
        RepositoryError: the manifest is broken or does not describe the plan.
    """
    if not (version_dir / MANIFEST).exists():
        return None
    about = read_manifest(version_dir).get("engines", {}).get(PLAN)
    try:
        return PlanRecord(**about)
    except TypeError as error:
        raise RepositoryError(
            f"{version_dir / MANIFEST} does not describe {PLAN} ({error}). Export the detector again with "
            "rcnn-export --engine tensorrt"
        ) from error


def check_files(version_dir: Path, record: PlanRecord) -> None:
    """Refuses a plan that is not the recorded one, or whose graph is not the one that it was built from.

    Raises:
        RepositoryError: the message says which, and gives the command that rebuilds the plan.
    """
    plan, onnx = version_dir / PLAN, version_dir / ONNX
    if not plan.is_file():
        raise RepositoryError(f"there is no {plan}. {rebuild_hint(version_dir)}")
    if plan.stat().st_size != record.size_bytes:
        raise RepositoryError(
            f"{plan} is {plan.stat().st_size} bytes and was {record.size_bytes} when it was built: it is cut "
            f"short or a different file. {rebuild_hint(version_dir)}"
        )
    if (found := sha256_of(plan)) != record.sha256:
        raise RepositoryError(
            f"{plan} has changed since it was built: its sha256 is {found[:12]}, the manifest has "
            f"{record.sha256[:12]}. {rebuild_hint(version_dir)}"
        )
    if onnx.is_file() and (found := sha256_of(onnx)) != record.onnx_sha256:
        raise RepositoryError(
            f"{plan} is stale: it was built from a graph with sha256 {record.onnx_sha256[:12]}, and {onnx.name} next "
            f"to it has {found[:12]}. {rebuild_hint(version_dir)}"
        )


def check_version(version_dir: Path, record: PlanRecord, here: InstalledTensorRT) -> None:
    """Refuses a plan that the TensorRT installed here cannot run.

    Raises:
        RepositoryError: the message names both versions and the command that rebuilds the plan.
    """
    later = record.version_compatible and _numbers(record.version) <= _numbers(here.version)
    if record.package != here.package or not (record.version == here.version or later):
        which = "an older version than its own" if record.version_compatible else "any other version"
        raise RepositoryError(
            f"{version_dir / PLAN} was built by {record.package} {record.version}, and this is {here}: a plan "
            f"does not run on {which}. {rebuild_hint(version_dir)}"
        )


def check_gpu(version_dir: Path, record: PlanRecord, compute_capability: str) -> None:
    """Refuses a plan that cannot run on a GPU of ``compute_capability``, such as ``8.9``.

    Raises:
        RepositoryError: the message names both capabilities and the command that rebuilds the plan.
    """
    ampere_on = record.hardware_compatible and _numbers(compute_capability) >= OLDEST_COMPATIBLE
    if compute_capability not in record.compute_capabilities and not ampere_on:
        kind = "8.0 or later" if record.hardware_compatible else ", ".join(record.compute_capabilities)
        raise RepositoryError(
            f"{version_dir / PLAN} was built for GPUs of compute capability {kind}, and the one here has "
            f"{compute_capability}. {rebuild_hint(version_dir)}"
        )


def rebuild_hint(version_dir: Path) -> str:
    """A sentence with the command that rebuilds the plan from its graph, on the machine that serves it."""
    repository, model = version_dir.resolve().parents[1], version_dir.resolve().parent.name

    def steps_of(name: str) -> list[str]:
        is_model = (repository / name / "config.pbtxt").is_file()
        return [folder.name for folder in repository.glob(f"{name}_*")] if is_model else []

    name = detector_of(model, steps_of) or model
    return f"Rebuild it here: `rcnn-serve {shlex.quote(str(repository))} --models {name} --rebuild`"


def write_plan_record(version_dir: Path, record: PlanRecord) -> None:
    """Adds the plan's record to the existing manifest."""
    manifest = read_manifest(version_dir)
    manifest["engines"][PLAN] = dataclasses.asdict(record)
    write_manifest(version_dir, manifest)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
