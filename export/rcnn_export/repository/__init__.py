"""Writes a detector into a Triton model repository: configs, engines and labels, all of them or none.

Only this folder knows Triton's model configuration and the names of model folders. It does not compare with
torchvision, and does not train.
"""
