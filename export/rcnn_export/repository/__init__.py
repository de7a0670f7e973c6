"""Writes a detector into a Triton model repository: configs, engines, labels, all or nothing.

The one folder that knows Triton's model configuration and the names of model folders. No comparison with
torchvision, and no training.
"""
