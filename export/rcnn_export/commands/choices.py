"""The choices of the options that ``--help`` names.

They are repeated here because the modules that define them import torch, which takes seconds. A test compares both.
"""

TORCHVISION_MODELS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
)
DEFAULT_MODELS = {  # of each family
    "faster_rcnn": "fasterrcnn_resnet50_fpn",
    "mask_rcnn": "maskrcnn_resnet50_fpn",
    "keypoint_rcnn": "keypointrcnn_resnet50_fpn",
}
DEFAULT_MODEL = DEFAULT_MODELS["faster_rcnn"]
ENGINES = ("onnx", "cudnn", "aoti", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION_METHODS = ("max", "percentile")
NUM_CALIBRATION_PICTURES = 300
EXAMPLE_SHAPES = "1x320x320,4x800x1344,8x1344x1344"
MAX_BATCH = 128  # pictures
