"""What the samples of a tensor are; see ``rcnn_backend.steps.lost_tensors`` for what they prove.

Of each image's part of a tensor: its first FIRST elements, filled up with zeros where the last axis has
fewer, and the largest magnitude of its middle.
"""

FIRST = 4  # elements
NUM_SAMPLES = FIRST + 1  # of one tensor
SUFFIX = "_samples"  # of the tensors that hold samples of others
