"""What all sides agree on: the chain of steps and its tensors, parameters, configs, manifests, samples.

Everybody may import it; it imports ``errors`` alone. No arrays, no Triton, no torch enter here.
"""
