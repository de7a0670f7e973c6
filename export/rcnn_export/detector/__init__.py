"""The torch detector: which model and weights, where it is cut in two, and the settings that it has.

The lowest folder: torch and torchvision only. No ONNX, no engines, and nothing of Triton.
"""
