"""Which family a torch detector belongs to, by its class."""

from rcnn_backend.contract.chain import FASTER_RCNN, MASK_RCNN, Chain
from torchvision.models.detection import FasterRCNN, MaskRCNN


def chain_of(model: FasterRCNN) -> Chain:
    """The chain of the detector's family."""
    return MASK_RCNN if isinstance(model, MaskRCNN) else FASTER_RCNN
