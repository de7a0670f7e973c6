"""ONNX -> TensorRT plan. The networks are strongly typed: the graph decides in which precision they compute.

No builder flag chooses a precision, so the same graph builds alike on TensorRT 10 and 11. Half-precision
weights and casts are in the ONNX file, and the Q and DQ nodes of INT8 or FP8 would be there too.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from rcnn_backend.contract.manifest import ONNX, PLAN, PlanOptions, PlanRecord, sha256_of, write_plan_record
from rcnn_backend.devices import Gpu
from rcnn_backend.engines.profiles import Profile, to_json
from rcnn_backend.engines.tensorrt_package import ErrorLog, find_installed, set_target, trt
from rcnn_backend.errors import RepositoryError


def build_plan(
    version_dir: Path, profiles: Sequence[Profile], options: PlanOptions, timing_cache: Path | None = None
) -> None:
    """Builds ``model.plan`` from the ``model.onnx`` in the same folder, and records it in the manifest there.

    An existing plan stays until the new one is complete.

    Args:
        timing_cache: file that stores how fast each kernel is; the next build reads it.

    Raises:
        RepositoryError: there is no GPU to build for, or TensorRT refused a layer, a profile or the build; the
            message contains TensorRT's reason.
    """
    capabilities = list(options.compute_capabilities) or [find_compute_capability()]
    onnx, log = version_dir / ONNX, ErrorLog()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx.read_bytes()):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(
            f"node {fault.node_name()!r} ({fault.node_operator()}): {fault.desc()}" for fault in faults
        )
        raise RepositoryError(f"{find_installed()} cannot parse {onnx}: {told or log}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # compute FP32 in FP32
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.compute_capabilities:
        set_target(config, capabilities)
    _add_profiles(builder, network, config, profiles)
    if timing_cache:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        config.progress_monitor = _Monitor(progress)
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RepositoryError(f"{find_installed()} cannot build {onnx}: {log}")
    _write(version_dir / PLAN, bytes(plan))
    if timing_cache:
        _write(timing_cache, bytes(config.get_timing_cache().serialize()))
    installed = find_installed()
    record = PlanRecord(
        sha256=sha256_of(version_dir / PLAN),
        size_bytes=(version_dir / PLAN).stat().st_size,
        onnx_sha256=sha256_of(onnx),
        package=installed.package,
        version=installed.version,
        compute_capabilities=capabilities,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        profiles=to_json(profiles),
    )
    write_plan_record(version_dir, record)


def check_target(options: PlanOptions) -> None:
    """Refuses a target that this machine cannot build for.

    Raises:
        RepositoryError: there is no GPU, or this TensorRT cannot build for a named compute capability.
    """
    if options.compute_capabilities:
        set_target(trt.Builder(ErrorLog()).create_builder_config(), options.compute_capabilities)
    else:
        find_compute_capability()


def timing_cache(repository: Path) -> Path | None:
    """The file in which this TensorRT stores how fast each kernel is; None for TensorRT-RTX, which times no kernels."""
    installed = find_installed()
    return None if installed.package == "tensorrt_rtx" else repository / f".timing-cache-{installed.version}"


def find_compute_capability(device_id: int = 0) -> str:
    """The compute capability of the GPU here, such as ``8.9``.

    Raises:
        RepositoryError: there is no GPU, or no CuPy to query it with.
    """
    try:
        return Gpu(device_id).compute_capability
    except Exception as error:  # no CuPy, no driver and no device raise different types
        raise RepositoryError(
            f"a plan is built on the GPU that runs it, and none can be used here ({type(error).__name__}: {error}). "
            "Build it on the machine with that GPU, after `pip install 'rcnn-backend[gpu]'`"
        ) from error


def _add_profiles(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    profiles: Sequence[Profile],
) -> None:
    names = {network.get_input(index).name for index in range(network.num_inputs)}
    for number, ranges in enumerate(profiles):
        if set(ranges) != names:
            raise RepositoryError(
                f"profile {number} is for the inputs {sorted(ranges)}, but the graph's inputs are {sorted(names)}"
            )
        profile = builder.create_optimization_profile()
        for name, (smallest, best, largest) in ranges.items():
            profile.set_shape(name, smallest, best, largest)
        if config.add_optimization_profile(profile) < 0:
            told = ", ".join(f"{name}: {range_}" for name, range_ in ranges.items())
            raise RepositoryError(f"{find_installed()} refuses profile {number}: {told}")


class _Monitor(trt.IProgressMonitor):
    """Shows TensorRT's phases as progress bars."""

    def __init__(self, progress: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        self._tasks[phase_name] = self._progress.add_task(phase_name, total=num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self._progress.update(self._tasks[phase_name], completed=step + 1)
        return True

    def phase_finish(self, phase_name: str) -> None:
        self._progress.remove_task(self._tasks.pop(phase_name))


def _write(path: Path, data: bytes) -> None:
    """Writes the file completely or not at all."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
