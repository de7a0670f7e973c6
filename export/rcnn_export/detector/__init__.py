"""The torch detector: its model and weights, where it is cut into networks, and its settings.

The lowest folder. It uses torch and torchvision only: no ONNX, no engines, and nothing of Triton.
"""
