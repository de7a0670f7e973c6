"""TensorRT plans: CuPy arrays in and out on the stream of the device. Needs TensorRT and a GPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rcnn_backend.contract.manifest import (
    PlanRecord,
    check_files,
    check_gpu,
    check_version,
    read_plan_record,
    rebuild_hint,
)
from rcnn_backend.devices import Array, Device, Gpu
from rcnn_backend.engines.profiles import Profile, ShapeRange, choose_profile
from rcnn_backend.engines.tensorrt_package import ErrorLog, find_installed, trt
from rcnn_backend.errors import InvalidInputError, RepositoryError


class PlanTensor(NamedTuple):
    """An input or output of a plan; an axis of size -1 varies."""

    name: str
    is_input: bool
    dtype: Any  # a NumPy scalar type
    shape: tuple[int, ...]


class TensorRTEngine:
    """``model.plan`` with one execution context for each of its profiles.

    If there is a manifest in the same folder, the plan is checked against it before TensorRT reads the plan.

    Raises:
        RepositoryError: the plan is not for this TensorRT or this GPU, is broken, is older than
            its graph, or ``device`` is not a GPU. The message says what was expected and how to rebuild the plan.
    """

    # When the shapes differ from those of the last run, TensorRT needs a run directly before a capture.
    is_capturable = False

    def __init__(self, path: Path, device: Device) -> None:
        record = read_plan_record(path.parent)
        if record:
            check_files(path.parent, record)
            check_version(path.parent, record, find_installed())
        if not isinstance(device, Gpu):
            raise RepositoryError(
                f"{path} runs on an NVIDIA GPU only, and this is a CPU (or CuPy is missing: `pip install "
                "'rcnn-backend[gpu]'`)"
            )
        if record:
            check_gpu(path.parent, record, device.compute_capability)
        import cupy

        self._cupy: Any = cupy
        self._device, self._path = device, path
        self._log = ErrorLog()
        with device.active():
            self._engine = self._deserialize(record)
            self.tensors, self.profiles = list_tensors(self._engine), list_profiles(self._engine)
            self._contexts = [self._open_context(index) for index in range(len(self.profiles))]
            device.synchronize()
        self._inputs = [tensor for tensor in self.tensors if tensor.is_input]
        self._outputs = [tensor for tensor in self.tensors if not tensor.is_input]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch.

        Raises:
            InvalidInputError: an input is missing, or has a type or shape that the plan does not accept.
        """
        arrays = {tensor.name: self._checked(tensor, inputs) for tensor in self._inputs}
        profile = choose_profile(self.profiles, {name: array.shape for name, array in arrays.items()})
        context = self._contexts[profile]
        for name, array in arrays.items():
            context.set_input_shape(name, array.shape)
            context.set_tensor_address(name, array.data.ptr)
        outputs = {}
        for tensor in self._outputs:
            shape = tuple(context.get_tensor_shape(tensor.name))
            if min(shape, default=0) < 0:
                raise RuntimeError(
                    f"TensorRT cannot determine the shape of the output {tensor.name} of {self._path}: {shape}"
                )
            outputs[tensor.name] = self._cupy.empty(shape, tensor.dtype)
            context.set_tensor_address(tensor.name, outputs[tensor.name].data.ptr)
        self._log.errors.clear()
        if not context.execute_async_v3(self._device.stream.ptr):
            raise RuntimeError(f"TensorRT cannot run {self._path}: {self._log}")
        return outputs

    def _checked(self, tensor: PlanTensor, inputs: Mapping[str, Array]) -> Array:
        """The input, in contiguous memory."""
        if tensor.name not in inputs:
            raise InvalidInputError(
                f"{self._path} needs the input {tensor.name}, but it was given {sorted(inputs)}"
            )
        array = inputs[tensor.name]
        if array.dtype != tensor.dtype:
            raise InvalidInputError(
                f"{tensor.name} is {array.dtype}, and {self._path} takes {tensor.dtype.__name__}"
            )
        return self._cupy.ascontiguousarray(array)

    def _deserialize(self, record: PlanRecord | None) -> trt.ICudaEngine:
        self._runtime = trt.Runtime(self._log)
        # A version-compatible plan contains the runtime that runs it.
        self._runtime.engine_host_code_allowed = record is not None and record.version_compatible
        engine = self._runtime.deserialize_cuda_engine(self._path.read_bytes())
        if engine is None:
            raise RepositoryError(
                f"{find_installed()} cannot load {self._path}: {self._log}. {rebuild_hint(self._path.parent)}"
            )
        return engine

    def _open_context(self, profile: int) -> trt.IExecutionContext:
        # allocates memory for this profile, not for the largest one
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        context = self._engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(profile, self._device.stream.ptr):
            raise RepositoryError(
                f"{find_installed()} cannot make an execution context for profile {profile} of {self._path}: "
                f"{self._log}. Is there enough free memory on the GPU?"
            )
        return context


def list_tensors(engine: trt.ICudaEngine) -> list[PlanTensor]:
    """The plan's inputs and outputs."""
    return [
        PlanTensor(
            name,
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            trt.nptype(engine.get_tensor_dtype(name)),
            tuple(engine.get_tensor_shape(name)),
        )
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    ]


def list_profiles(engine: trt.ICudaEngine) -> list[Profile]:
    """The profiles: the shapes that each one accepts, by input."""
    inputs = [tensor.name for tensor in list_tensors(engine) if tensor.is_input]
    return [
        {
            name: ShapeRange(*(tuple(shape) for shape in engine.get_tensor_profile_shape(name, index)))
            for name in inputs
        }
        for index in range(engine.num_optimization_profiles)
    ]
