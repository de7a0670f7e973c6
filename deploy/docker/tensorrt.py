"""``import tensorrt`` in the GPU image: NVIDIA's bindings over the TensorRT libraries of the server.

Run as a program while the image is built, it checks that both are of one version.
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
            f"TENSORRT_VERSION is {__version__} and the server has TensorRT {served}: set the version that goes "
            "with TRITON_RELEASE in deploy/docker/versions.env"
        )
