"""The operators on an NVIDIA GPU: CuPy arrays in and out, on the current CuPy stream. The kernels lie in ``cuda/``.

Nothing here waits for the GPU: the results are ready when the stream gets there.
"""
