"""The contract between all packages: the chain of steps and its tensors, parameters, configs, manifests, samples.

Every module may import it; it imports only ``errors``. It must not import NumPy, Triton's stub or torch.
"""
