"""The command ``rcnn-serve``: finds tritonserver, starts it, watches it and drains it.

It imports ``contract`` and ``errors``. No arrays, no torch and no CuPy enter here: it starts in a second.
"""
