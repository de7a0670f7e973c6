"""The command ``rcnn-serve``: finds tritonserver, starts it, watches it and drains it.

It imports ``contract`` and ``errors``, but not NumPy, CuPy or torch, so that it starts in a second.
"""
