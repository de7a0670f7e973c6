"""Turns a torchvision detector into a Triton model repository, trains detectors and verifies exports.

Imports between its folders run one way: commands -> verify -> repository, digits -> engines, train ->
detector -> photos, errors. The test of imports checks this.
"""
