"""ONNX Runtime's CUDA provider: CuPy arrays in and out, without a copy through the host."""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import cupy
import numpy as np
import onnxruntime

from rcnn_backend.devices import Gpu
from rcnn_backend.errors import RepositoryError

PROVIDER = "CUDAExecutionProvider"
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
MAX_SESSIONS = 4

Shapes = tuple[tuple[int, ...], ...]


class OnnxGpuEngine:
    """``model.onnx`` on a GPU, on the stream of ``device``. FP32 is computed in FP32, not in TF32.

    When an input's shape differs from that of the previous run, ONNX Runtime plans every convolution again, which takes
    0.4 s for a ResNet50-FPN. So a batch runs image by image, which costs nothing in FP32, and each of the last few
    shapes has its own session. The sessions share their working memory.

    Raises:
        RepositoryError: the file cannot be loaded, or this ONNX Runtime cannot use the GPU.
    """

    is_capturable = False  # ONNX Runtime computes shapes on the host

    def __init__(self, path: Path, device: Gpu) -> None:
        self._path = path
        self._device_id = device.device_id
        self._provider_options = {
            "device_id": str(device.device_id),
            "user_compute_stream": str(device.stream.ptr),
            "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm for each shape
        }
        self._sessions: OrderedDict[Shapes, onnxruntime.InferenceSession] = OrderedDict()
        first = self._open_session()
        self._unused: onnxruntime.InferenceSession | None = first
        self._outputs = [output.name for output in first.get_outputs()]

    def run(self, inputs: Mapping[str, cupy.ndarray]) -> dict[str, cupy.ndarray]:
        arrays = {name: cupy.ascontiguousarray(array) for name, array in inputs.items()}
        batch = len(next(iter(arrays.values())))
        images = [
            self._run_one({name: array[image : image + 1] for name, array in arrays.items()})
            for image in range(batch)
        ]
        if batch == 1:
            return images[0]
        return {name: cupy.concatenate([image[name] for image in images]) for name in self._outputs}

    def _run_one(self, inputs: Mapping[str, cupy.ndarray]) -> dict[str, cupy.ndarray]:
        session = self._session_for(tuple(array.shape for array in inputs.values()))
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cuda", self._device_id, array.dtype, array.shape, array.data.ptr)
        for name in self._outputs:
            binding.bind_output(name, "cuda", self._device_id)
        session.run_with_iobinding(binding)
        values = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        return {name: self._to_array(value) for name, value in values.items()}

    def _session_for(self, shapes: Shapes) -> onnxruntime.InferenceSession:
        """The session that last ran these shapes. If there is none: a new session, or the least recently used one."""
        session = self._sessions.pop(shapes, None)
        if session is None and self._unused is not None:
            session, self._unused = self._unused, None
        if session is None and len(self._sessions) < MAX_SESSIONS:
            session = self._open_session()
        if session is None:
            _, session = self._sessions.popitem(last=False)
        self._sessions[shapes] = session
        return session

    def _open_session(self) -> onnxruntime.InferenceSession:
        onnxruntime.preload_dlls()  # the CUDA libraries that pip installed
        options = onnxruntime.SessionOptions()
        if PROVIDER in onnxruntime.get_available_providers():
            _share_working_memory(self._device_id)
            options.add_session_config_entry("session.use_env_allocators", "1")
        providers = [(PROVIDER, self._provider_options), "CPUExecutionProvider"]
        options.log_severity_level = 3  # errors
        try:
            session = onnxruntime.InferenceSession(self._path, options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise RepositoryError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {self._path}: {error}. "
                "Export the detector again with rcnn-export"
            ) from error
        if PROVIDER not in session.get_providers():
            raise RepositoryError(
                f"ONNX Runtime {onnxruntime.__version__} cannot use the GPU for {self._path}: it has "
                f"{', '.join(onnxruntime.get_available_providers())}. Run `pip uninstall onnxruntime` and "
                "`pip install 'rcnn-backend[gpu]'`; if that is already installed, ONNX Runtime's log names the "
                "missing CUDA library"
            )
        return session

    def _to_array(self, value: onnxruntime.OrtValue) -> cupy.ndarray:
        """An array over the value's memory. The array keeps the value alive."""
        shape, dtype = value.shape(), np.dtype(DTYPES[value.data_type()])
        size = int(np.prod(shape)) * dtype.itemsize
        memory = cupy.cuda.UnownedMemory(value.data_ptr(), size, value, self._device_id)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))


@cache
def _share_working_memory(device_id: int) -> None:
    """Creates one memory arena on the GPU for all sessions of this process. It grows only by the requested size."""
    info = onnxruntime.OrtMemoryInfo(
        "Cuda", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, device_id, onnxruntime.OrtMemType.DEFAULT
    )
    arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator_v2(PROVIDER, info, {"device_id": str(device_id)}, arena)
