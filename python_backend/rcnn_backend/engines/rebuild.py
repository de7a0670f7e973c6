"""Rebuilds those TensorRT plans of a repository that cannot run here: ``rcnn-serve --rebuild``.

    python -m rcnn_backend.engines.rebuild model_repository [NAME ...]

only rebuilds the plans, for a ``tritonserver`` that is started in another way. This runs in its own process, because
a process that has used a GPU keeps some of the GPU's memory.
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from rcnn_backend.contract.configs import read_configs, read_steps
from rcnn_backend.contract.find_chain import detector_of
from rcnn_backend.contract.manifest import (
    ONNX,
    PLAN,
    PlanOptions,
    PlanRecord,
    check_files,
    check_gpu,
    check_version,
    read_plan_record,
)
from rcnn_backend.devices import Gpu
from rcnn_backend.engines.plan_build import build_plan, find_compute_capability, timing_cache
from rcnn_backend.engines.profiles import Profile, from_json
from rcnn_backend.engines.tensorrt import PlanTensor, TensorRTEngine
from rcnn_backend.engines.tensorrt_package import find_installed
from rcnn_backend.errors import RepositoryError

DIVERGES = 1  # rcnn-verify's exit code
TYPES = {"float32": DataType.TYPE_FP32, "float16": DataType.TYPE_FP16}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if every plan of the served models can run; otherwise 1, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m rcnn_backend.engines.rebuild", description=__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("models", nargs="*", metavar="NAME", help="default: every complete model")
    arguments = parser.parse_args(argv)
    try:
        rebuilt = rebuild_plans(arguments.repository, arguments.models, find_compute_capability(), print)
        for model, config in rebuilt.items():
            engine = TensorRTEngine(arguments.repository / model / "1" / PLAN, Gpu(0))
            check_config(engine.tensors, engine.profiles, config)
        steps_of = partial(read_steps, arguments.repository)
        for detector in sorted({detector_of(model, steps_of) or model for model in rebuilt}):
            _verify(arguments.repository, detector)
    except (RepositoryError, OSError) as error:
        print(f"rcnn-serve --rebuild: {error}", file=sys.stderr)
        return 1
    return 0


def rebuild_plans(
    repository: Path, models: Sequence[str], compute_capability: str, report: Callable[[str], None]
) -> dict[str, ModelConfig]:
    """Rebuilds each plan that cannot run on a GPU of ``compute_capability``, such as ``8.9``.

    Args:
        models: the models to serve; their steps are included. By default every complete model.
        report: called with a line of text about each plan.

    Returns:
        The configs of the models whose plans were rebuilt, by model name.

    Raises:
        RepositoryError: there is no graph to build a plan from, or TensorRT cannot build it.
    """
    rebuilt = {}
    for name, config in _plan_models(repository, models).items():
        version_dir = repository / name / "1"
        record = read_plan_record(version_dir)
        if record is None:
            report(f"{name}: the plan has no manifest and is left as it is")
            continue
        if not (fault := _find_fault(version_dir, record, compute_capability)):
            report(f"{name}: the plan can run here")
            continue
        if not (version_dir / ONNX).is_file():
            raise RepositoryError(
                f"{fault}. But there is no {version_dir / ONNX} to build it from: export again"
            )
        report(f"{fault}\nBuilding {version_dir / PLAN}, which takes minutes")
        # TensorRT-RTX builds for the GPU that the options name, TensorRT for the GPU that it runs on.
        chosen = (compute_capability,) if record.package == find_installed().package == "tensorrt_rtx" else ()
        options = PlanOptions(record.version_compatible, record.hardware_compatible, chosen)
        build_plan(version_dir, from_json(record.profiles), options, timing_cache(repository))
        rebuilt[name] = config
    return rebuilt


def check_config(tensors: Sequence[PlanTensor], profiles: Sequence[Profile], config: ModelConfig) -> None:
    """Refuses a plan that does not match its ``config.pbtxt``.

    Raises:
        RepositoryError: a tensor is missing or has another type or shape, or no profile accepts the
            largest batch.
    """
    declared = {each.name: (each.data_type, list(each.dims)) for each in (*config.input, *config.output)}
    found = {each.name: (TYPES.get(each.dtype.__name__), list(each.shape[1:])) for each in tensors}
    if set(declared) != set(found):
        raise RepositoryError(
            f"{config.name}: the plan has the tensors {sorted(found)}, but its config declares {sorted(declared)}"
        )
    for name, (data_type, dims) in declared.items():
        own_type, own_dims = found[name]
        fits = len(dims) == len(own_dims) and all(
            -1 in (dim, own) or dim == own for dim, own in zip(dims, own_dims, strict=True)
        )
        if data_type != own_type or not fits:
            raise RepositoryError(
                f"{config.name}: {name} is {own_type and DataType.Name(own_type)} {own_dims} in the plan, but its config "
                f"declares {DataType.Name(data_type)} {dims}"
            )
    largest = max(range_.max[0] for profile in profiles for range_ in profile.values())
    if largest < config.max_batch_size:
        raise RepositoryError(
            f"{config.name}: the plan takes batches up to {largest}, but its config says {config.max_batch_size}"
        )


def _plan_models(repository: Path, models: Sequence[str]) -> dict[str, ModelConfig]:
    """The configs of the served models' steps that are plans. By default all models of the repository are served.

    Raises:
        RepositoryError: the repository has no model with one of the names.
    """
    configs = read_configs(repository)
    if unknown := [name for name in models if name not in configs]:
        raise RepositoryError(f"{repository} has no model {', '.join(unknown)}; it has {', '.join(configs)}")
    steps_of = partial(read_steps, repository)
    chosen = set(models or configs)
    for name in models:
        steps = steps_of(detector_of(name, steps_of) or name)
        if name not in steps:  # a step that is named itself does not add the others
            chosen.update(steps)
    return {
        name: config for name, config in configs.items() if config.backend == "tensorrt" and name in chosen
    }


def _find_fault(version_dir: Path, record: PlanRecord, compute_capability: str) -> str:
    """Why the plan cannot run here; empty if it can."""
    try:
        check_files(version_dir, record)
        check_version(version_dir, record, find_installed())
        check_gpu(version_dir, record, compute_capability)
    except RepositoryError as error:
        return str(error).partition(". Rebuild it here")[0]
    return ""


def _verify(repository: Path, detector: str) -> None:
    """Runs rcnn-verify if it is installed."""
    if importlib.util.find_spec("rcnn_export") is None:
        print(
            f"{detector}: its plans match its configs; rcnn-export is not installed, so nothing else is verified"
        )
        return
    command = [
        sys.executable,
        "-m",
        "rcnn_export.commands.verify",
        "--repository",
        str(repository),
        "--name",
        detector,
    ]
    code = subprocess.run([*command, "--engine", "tensorrt"]).returncode
    if code == DIVERGES:
        raise RepositoryError(f"the rebuilt plans of {detector} do not give the same answers as torchvision")
    if code:
        print(f"{detector}: not verified (the line above says why)")


if __name__ == "__main__":
    sys.exit(main())
