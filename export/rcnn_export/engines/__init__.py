"""From a detector's modules to files that an engine loads: ONNX graphs, exported programs, AOTInductor packages, plan profiles.

Knows precisions and shapes. No model configuration of Triton, and no folder of a repository.
"""
