"""The steps of each family of detectors. They are declared only here.

Everything else is derived from these declarations: the wiring of the ensembles, the names of the models, the samples
by which a step finds lost tensors, the size of the memory pool, the engines to export, and the stages of rcnn-verify.

Shapes are those of one image, without the batch axis. A word stands for a size that varies:

    picture_height, picture_width   a picture as sent, in pixels
    height, width                   a padded batch, in pixels
    level_height, level_width       one level of the feature pyramid
    channels                        of the feature pyramid
    anchors, proposals, detections  rows per image
    classes                         foreground classes
    pooled_height, pooled_width     one pooled RoI
    head_detections                 detections per image, padded to one of a few sizes
    head_pooled_height, ..._width   one RoI pooled for the head that runs on the detections
    map_height, map_width           one mask or heatmap
    keypoints                       of one detection
"""

from dataclasses import replace

from rcnn_backend.contract.chain_types import (
    BYTES,
    FP16,
    FP32,
    INT32,
    INT64,
    NETWORK,
    PIXELS,
    UINT8,
    Chain,
    ChainStep,
    Tensor,
)

IMAGE = Tensor("image", BYTES, (1,), is_optional=True)
PIXEL_IMAGE = Tensor(PIXELS, UINT8, ("picture_height", "picture_width", 3), is_optional=True)
INPUT = Tensor("input", NETWORK, (3, "height", "width"))
IMAGE_SIZES = Tensor("image_sizes", FP32, (4,))
RPN_BOXES = Tensor("rpn_boxes", FP32, ("anchors", 6))
FEATURES = Tensor("features", NETWORK, ("channels", "level_height", "level_width"), is_pyramid=True)
PROPOSALS = Tensor("proposals", FP32, ("proposals", 4))
POOLED = Tensor("roialigned_feature", NETWORK, ("proposals", "channels", "pooled_height", "pooled_width"))
NUM_PROPOSALS = Tensor("num_proposals", INT32, (1,))
CLASS_SCORES = Tensor("class_scores", FP32, ("proposals", "classes"))
CLASS_BOXES = Tensor("class_boxes", FP32, ("proposals", "classes", 4))
BOXES = Tensor("boxes", FP32, ("detections", 4))
SCORES = Tensor("scores", FP32, ("detections",))
LABELS = Tensor("labels", INT64, ("detections",))
NUM_DETECTIONS = Tensor("num_detections", INT32, (1,))

# The detections as inputs of later steps.
DETECTED_BOXES = Tensor("detected_boxes", FP32, ("detections", 4))  # in pixels of the resized image
DETECTED_LABELS = Tensor("detected_labels", INT64, ("detections",))
NUM_DETECTED = Tensor("num_detected", INT32, (1,))
MASK_PROBABILITIES = Tensor("mask_probabilities", FP16, ("head_detections", "map_height", "map_width"))
MASKS = Tensor("masks", FP16, ("detections", "map_height", "map_width"))
RLES = Tensor("rles", BYTES, ("detections",))
HEATMAPS = Tensor("heatmaps", NETWORK, ("head_detections", "keypoints", "map_height", "map_width"))
KEYPOINTS = Tensor("keypoints", FP32, ("detections", "keypoints", 3))
KEYPOINT_SCORES = Tensor("keypoint_scores", FP32, ("detections", "keypoints"))

TO_CLASS_BOXES = (
    ChainStep("preprocess", (IMAGE, PIXEL_IMAGE), (INPUT, IMAGE_SIZES), stages=("input",)),
    ChainStep("rpn", (INPUT,), (RPN_BOXES, FEATURES), is_engine=True, stages=("features", "rpn_boxes")),
    ChainStep(
        "proposals",
        (RPN_BOXES, FEATURES, IMAGE_SIZES),
        (PROPOSALS, POOLED, NUM_PROPOSALS),
        stages=("proposals", "roialigned_feature"),
    ),
    ChainStep("header", (POOLED, PROPOSALS), (CLASS_SCORES, CLASS_BOXES), is_engine=True, stages=("header",)),
)
DETECTIONS = ChainStep(
    "detections",
    (CLASS_SCORES, CLASS_BOXES, NUM_PROPOSALS, IMAGE_SIZES),
    (BOXES, SCORES, LABELS, NUM_DETECTIONS),
    stages=("detections",),
)
FASTER_RCNN = Chain("faster_rcnn", (*TO_CLASS_BOXES, DETECTIONS), DETECTIONS.outputs)


def with_head(
    family: str, head: str, also: tuple[Tensor, ...], made: Tensor, stage: str, *last: ChainStep
) -> Chain:
    """Faster R-CNN with a head that runs on the final detections.

    Args:
        also: tensors of the detections that the head's engine takes in addition to their pooled features.
        made: the output of the engine.
        stage: the name of this output in rcnn-verify.
        last: the steps that answer. An engine is never the last step of a chain, because the step after it compares
            the engine's inputs and outputs with what arrived.
    """
    shape = ("head_detections", "channels", "head_pooled_height", "head_pooled_width")
    features = Tensor(f"{head}_features", NETWORK, shape)
    steps = (
        *TO_CLASS_BOXES,
        replace(DETECTIONS, outputs=(*DETECTIONS.outputs, DETECTED_BOXES, *also, NUM_DETECTED)),
        ChainStep(
            features.name, (FEATURES, DETECTED_BOXES, NUM_DETECTED), (features,), stages=(features.name,)
        ),
        ChainStep(f"{head}_header", (features, *also), (made,), is_engine=True, stages=(stage,)),
        *last,
    )
    return Chain(family, steps, (*FASTER_RCNN.answers, *(out for step in last for out in step.outputs)), head)


MASK_RCNN = with_head(
    "mask_rcnn",
    "mask",
    (DETECTED_LABELS,),
    MASK_PROBABILITIES,
    "masks",
    ChainStep("masks", (MASK_PROBABILITIES, NUM_DETECTED), (MASKS,)),
    ChainStep("rles", (MASK_PROBABILITIES, DETECTED_BOXES, NUM_DETECTED, IMAGE_SIZES), (RLES,)),
)
KEYPOINT_RCNN = with_head(
    "keypoint_rcnn",
    "keypoint",
    (),
    HEATMAPS,
    "heatmaps",
    ChainStep(
        "keypoints",
        (HEATMAPS, DETECTED_BOXES, NUM_DETECTED, IMAGE_SIZES),
        (KEYPOINTS, KEYPOINT_SCORES),
        stages=("keypoints",),
    ),
)
CHAINS = {chain.family: chain for chain in (FASTER_RCNN, MASK_RCNN, KEYPOINT_RCNN)}
