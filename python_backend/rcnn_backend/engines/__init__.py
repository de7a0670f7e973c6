"""The engines behind one interface, one a file, with what builds them and their CUDA graphs.

It imports ``operators`` and what lies below them. No Triton enters here.
"""
