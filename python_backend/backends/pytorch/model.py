"""A pytorch backend for exported programs and AOTInductor packages, which Triton's C++ backend of that name cannot run.

Put this folder in ``--backend-directory`` as ``pytorch/``; any config that says
``backend: "pytorch"`` then runs its ``model.cudnn.pt2`` or ``model.pt2`` here.
"""

from rcnn_backend.steps.engine_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
