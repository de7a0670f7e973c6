"""ONNX Runtime's CUDA provider: CuPy arrays in and out, nothing by way of the host."""

from collections.abc import Mapping
from pathlib import Path

import cupy
import numpy as np
import onnxruntime

from rcnn_backend.devices import Gpu
from rcnn_backend.engines import open_session
from rcnn_backend.errors import RepositoryError

PROVIDER = "CUDAExecutionProvider"
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class OnnxGpuEngine:
    """``model.onnx`` on a GPU, on the stream of ``device``. FP32 is computed in FP32, not in TF32.

    Raises:
        RepositoryError: the file cannot be loaded, or this ONNX Runtime cannot use the GPU.
    """

    def __init__(self, path: Path, device: Gpu) -> None:
        self._device_id = device.device_id
        onnxruntime.preload_dlls()  # the CUDA libraries that pip installed
        options = onnxruntime.SessionOptions()
        cuda = {
            "device_id": str(device.device_id),
            "user_compute_stream": str(device.stream.ptr),
            "use_tf32": "0",
            # The default tries every algorithm whenever a shape is new, which takes seconds.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
        self._session = open_session(path, options, [(PROVIDER, cuda), "CPUExecutionProvider"])
        if PROVIDER not in self._session.get_providers():
            raise RepositoryError(
                f"ONNX Runtime {onnxruntime.__version__} cannot use the GPU for {path}: it has "
                f"{', '.join(onnxruntime.get_available_providers())}. Run `pip uninstall onnxruntime` and "
                "`pip install 'rcnn-backend[gpu]'`; if that is what is installed, its log names the "
                "CUDA library that is missing"
            )
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._run_options = onnxruntime.RunOptions()
        # Whoever uses the outputs does so on the same stream.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, inputs: Mapping[str, cupy.ndarray]) -> dict[str, cupy.ndarray]:
        binding = self._session.io_binding()
        arrays = {name: cupy.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in arrays.items():
            binding.bind_input(name, "cuda", self._device_id, array.dtype, array.shape, array.data.ptr)
        for name in self._outputs:
            binding.bind_output(name, "cuda", self._device_id)
        self._session.run_with_iobinding(binding, self._run_options)
        values = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        return {name: self._to_array(value) for name, value in values.items()}

    def _to_array(self, value: onnxruntime.OrtValue) -> cupy.ndarray:
        """Shares the value's memory, and keeps it."""
        shape, dtype = value.shape(), np.dtype(DTYPES[value.data_type()])
        size = int(np.prod(shape)) * dtype.itemsize
        memory = cupy.cuda.UnownedMemory(value.data_ptr(), size, value, self._device_id)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))
