"""Compares an exported detector with torchvision, stage by stage.

Reads exports and runs them. Nothing that writes an export, and nothing that trains, may import from here.
"""
