"""Fixtures for the tests of several subpackages."""

from collections.abc import Callable

import pytest
from rcnn_backend.engines.tensorrt_package import ErrorLog, trt


@pytest.fixture(scope="session")
def count_int8_layers() -> Callable[[bytes], int]:
    """Parses an ONNX file with TensorRT and counts the convolutions and matrix products whose data and weights are both
    dequantised.
    """

    def count(graph: bytes) -> int:
        log = ErrorLog()
        network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        assert parser.parse(graph), log
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        dequantized = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE}
        counted = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
        return sum(
            all(getattr(layer.get_input(index), "name", None) in dequantized for index in (0, 1))
            for layer in layers
            if layer.type in counted
        )

    return count
