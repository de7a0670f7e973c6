"""What the samples of a tensor are; see ``rcnn_backend.steps.lost_tensors`` for what they prove.

For each image's part of a tensor, these are its first FIRST elements, padded with zeros if the last axis has
fewer, and the largest magnitude in its middle.
"""

FIRST = 4  # elements
NUM_SAMPLES = FIRST + 1  # of one tensor
SUFFIX = "_samples"  # ends the names of tensors that hold samples of other tensors
