"""What a Python model does inside Triton's stub: requests in, responses out, metrics, the check for lost tensors.

It imports ``engines`` and the layers below them, but not the launcher, ``server``.
"""
