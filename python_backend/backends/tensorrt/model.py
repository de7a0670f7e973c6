"""Triton's tensorrt backend for servers that lack the C++ one, such as the server from pip.

Put this folder in ``--backend-directory`` as ``tensorrt/``; any config that says
``backend: "tensorrt"`` then runs its ``model.plan`` here.
"""

from rcnn_backend.steps.engine_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
