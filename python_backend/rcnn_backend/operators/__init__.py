"""What runs between the engines, one concept a file: NumPy and ONNX operators, and in ``gpu/`` those in CuPy and CUDA.

It imports ``contract``, ``devices`` and ``errors``. No Triton and no files enter here.
"""
