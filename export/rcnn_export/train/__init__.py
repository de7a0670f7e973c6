"""Trains a detector on any dataset of samples, evaluates it, and writes its weights.

Reads COCO files. The command passes in the pictures of the sample. No engines, and nothing of Triton.
"""
