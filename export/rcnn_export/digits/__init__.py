"""The sample: pictures of digits, composed from data inside Python packages, and a light detector for them.

Gives ``train`` a dataset and is never imported by it. No engines, and nothing of Triton.
"""
