"""What a Python model does inside Triton's stub: requests in, responses out, metrics, the check for lost tensors.

It imports ``engines`` and what lies below them. The launcher, ``server``, does not enter here.
"""
