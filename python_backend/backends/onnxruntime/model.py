"""Triton's onnxruntime backend for servers that lack the C++ one, such as the server from pip.

Put this folder in ``--backend-directory`` as ``onnxruntime/``; any config that says
``backend: "onnxruntime"`` then runs its ``model.onnx`` here: in OpenVINO on a CPU, in ONNX Runtime on a GPU.
"""

from rcnn_backend.steps.engine_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
