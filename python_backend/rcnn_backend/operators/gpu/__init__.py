"""The steps between the engines on an NVIDIA GPU: CuPy arrays in and out, on the current CuPy stream.

Nothing here waits for the GPU: results are ready once the stream gets there.
"""
