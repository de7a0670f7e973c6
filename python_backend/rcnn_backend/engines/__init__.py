"""The engines, all with the same interface and one in each file, the code that builds them, and their CUDA graphs.

This package imports ``operators`` and the packages that ``operators`` imports. It does not import Triton.
"""
