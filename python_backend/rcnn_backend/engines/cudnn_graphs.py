"""cuDNN graphs: a convolution with bias, residual and ReLU in one kernel. Needs nvidia-cudnn-frontend.

Tensors are in channels-last order (NHWC), and sums are in FP32. FP32 is computed in FP32, not in TF32. INT8 products
are summed in INT32; scales, bias and residual are then applied in FP32. An INT8 result is rounded to the nearest integer,
with halves to the even one, and clamped: the kernels that cuDNN 9.19 makes for compute capability 9.0 convert with the
instructions F2I.S8 and F2IP.S8.
"""

from collections.abc import Sequence
from typing import Any

import cudnn
import torch
from torch import Tensor

from rcnn_backend.engines.convolution import Convolution

MAX_WORKSPACE_BYTES = 1 << 26
X, WEIGHT, BIAS, RESIDUAL, SCALE, RESIDUAL_SCALE, RESULT = range(1, 8)  # numbers of a graph's tensors
DATA_TYPES = {
    torch.float16: cudnn.data_type.HALF,
    torch.float32: cudnn.data_type.FLOAT,
    torch.int8: cudnn.data_type.INT8,
}
COMPILED = cudnn.behavior_note.RUNTIME_COMPILATION
INEXACT_IN_FP32 = [
    cudnn.numerical_note.TENSOR_CORE,  # TF32
    cudnn.numerical_note.DOWN_CONVERT_INPUTS,
    cudnn.numerical_note.REDUCED_PRECISION_REDUCTION,
    cudnn.numerical_note.FFT,
    cudnn.numerical_note.WINOGRAD,
]


class CudnnGraph:
    """The graph of one convolution, with the plans that cuDNN has for it.

    A plan whose kernel cuDNN compiles takes half a second to build, again for each shape. For FP16 such plans are left out;
    for INT8 cuDNN 9.19 has no others.

    Attributes:
        plans: the index of each plan by its name, starting with those that cuDNN expects to be fast.

    Raises:
        Exception: one of several types from cuDNN, which has no plan for this convolution.
    """

    def __init__(self, convolution: Convolution, handle: Any) -> None:
        self._handle = handle
        self._output = convolution.output
        self._dtype = convolution.result_dtype or convolution.dtype
        is_int8 = convolution.dtype == torch.int8
        self._graph = graph = cudnn.pygraph(
            io_data_type=DATA_TYPES[convolution.dtype],
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
            handle=handle,
        )
        channels = (1, convolution.weight[0], 1, 1)
        of_channels = torch.float32 if is_int8 else convolution.dtype  # scales and bias
        x = self._tensor("x", X, convolution.x, convolution.dtype)
        weight = self._tensor("weight", WEIGHT, convolution.weight, convolution.dtype)
        result = graph.conv_fprop(
            image=x,
            weight=weight,
            padding=list(convolution.padding),
            stride=list(convolution.stride),
            dilation=list(convolution.dilation),
            compute_data_type=cudnn.data_type.INT32 if is_int8 else cudnn.data_type.FLOAT,
        )
        if is_int8:
            result = graph.mul(a=result, b=self._tensor("scale", SCALE, channels, of_channels))
        if convolution.has_bias:
            result = graph.add(a=result, b=self._tensor("bias", BIAS, channels, of_channels))
        if convolution.has_residual:
            dtype = convolution.residual_dtype or convolution.dtype
            residual = self._tensor("residual", RESIDUAL, self._output, dtype)
            if is_int8:
                scale = self._tensor("residual_scale", RESIDUAL_SCALE, channels, of_channels)
                residual = graph.mul(a=residual, b=scale)
            result = graph.add(a=result, b=residual)
        if convolution.relu:
            result = graph.relu(input=result)
        result.set_output(True).set_data_type(DATA_TYPES[self._dtype]).set_uid(RESULT)
        result.set_dim(list(self._output)).set_stride(_channels_last_strides(self._output))
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A])
        if convolution.dtype == torch.float32:
            graph.deselect_numeric_notes(INEXACT_IN_FP32)
        graph.deselect_workspace_greater_than(MAX_WORKSPACE_BYTES)
        graph.check_support()
        self.plans: dict[str, int] = {
            graph.get_plan_name_at_index(index): index
            for index in range(graph.get_execution_plan_count())
            if convolution.dtype != torch.float16
            or COMPILED not in graph.get_behavior_notes_for_plan_at_index(index)
        }

    def build(self, index: int) -> int:
        """Builds the plan of this index; returns the bytes of its workspace."""
        self._graph.build_plan_at_index(index)
        return int(self._graph.get_workspace_size_plan_at_index(index))

    def run(self, index: int, workspace_bytes: int, *tensors: Tensor | None) -> Tensor:
        """Runs a plan that has been built, on the stream of the handle, and returns the result.

        Args:
            tensors: in the order of their numbers, starting with X.
        """
        x = tensors[0]
        assert x is not None
        result = torch.empty(
            self._output, dtype=self._dtype, device=x.device, memory_format=torch.channels_last
        )
        workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=x.device)
        addresses = {
            number: tensor.data_ptr() for number, tensor in enumerate(tensors, X) if tensor is not None
        }
        addresses[RESULT] = result.data_ptr()
        self._graph.execute_plan_at_index(addresses, workspace.data_ptr(), index, self._handle)
        return result

    def _tensor(self, name: str, number: int, shape: Sequence[int], dtype: torch.dtype) -> Any:
        strides = _channels_last_strides(shape)
        return self._graph.tensor(
            name=name, uid=number, dim=list(shape), stride=strides, data_type=DATA_TYPES[dtype]
        )


def _channels_last_strides(shape: Sequence[int]) -> list[int]:
    _, channels, height, width = shape
    return [height * width * channels, 1, width * channels, channels]
