"""The sample: pictures of digits, composed from data inside Python packages, and light detectors for them.

It provides a dataset for ``train``, which never imports it. No engines, and nothing of Triton.
"""
