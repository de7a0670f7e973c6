"""``import tensorrt`` in the GPU image: NVIDIA's bindings to the TensorRT libraries of the server.

The image's build runs it as a program, to check that both have the same version.
"""

import ctypes
import sys

from tensorrt_bindings import *  # noqa: F403
from tensorrt_bindings import __version__

if __name__ == "__main__":
    library = ctypes.CDLL(f"libnvinfer.so.{__version__.partition('.')[0]}")
    number = library.getInferLibVersion()  # 101501 is 10.15.1
    served = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    if not f"{__version__}.".startswith(f"{served}."):
        sys.exit(
            f"TENSORRT_VERSION is {__version__} and the server has TensorRT {served}: set the version that belongs "
            "to TRITON_RELEASE in deploy/docker/versions.env"
        )
