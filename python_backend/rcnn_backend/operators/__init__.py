"""The computations between the engines, one concept per file: in NumPy and OpenVINO here, in CuPy and CUDA in ``gpu/``.

This package imports ``contract``, ``devices`` and ``errors``. It does not import Triton, and reads no files except its
own CUDA sources.
"""
