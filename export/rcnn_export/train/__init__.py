"""Trains a detector on any dataset of samples, evaluates it, and writes its weights.

Reads COCO files. The sample's pictures are handed in by the command. No engines, and nothing of Triton.
"""
