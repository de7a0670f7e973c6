"""The class of the made-up family."""

from torchvision.models.detection import FasterRCNN


class AngleRCNN(FasterRCNN):
    """A FasterRCNN whose ``roi_heads`` also have ``angle_roi_pool``, ``angle_head`` and ``angle_predictor``."""
