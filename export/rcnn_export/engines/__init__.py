"""Turns a detector's modules into files that an engine loads: ONNX graphs, exported programs, AOTInductor packages.

This folder knows precisions, shapes and the profiles of TensorRT plans. It knows nothing of Triton's model configuration or
of the folders of a repository.
"""
