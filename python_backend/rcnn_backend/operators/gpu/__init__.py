"""The operators on an NVIDIA GPU: CuPy arrays in and out, on the current CuPy stream. The kernels are in ``cuda/``.

Except for ``rles``, nothing here waits for the GPU: the results are ready when the stream has executed the kernels.
"""
