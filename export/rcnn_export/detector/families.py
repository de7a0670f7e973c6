"""Which family a torch detector belongs to, by its class."""

from rcnn_backend.contract.chain import CHAINS, FASTER_RCNN, KEYPOINT_RCNN, MASK_RCNN
from rcnn_backend.contract.chain_types import Chain
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN

# torchvision's class of each family; subclasses of FasterRCNN come first
KINDS: dict[str, type[FasterRCNN]] = {
    MASK_RCNN.family: MaskRCNN,
    KEYPOINT_RCNN.family: KeypointRCNN,
    FASTER_RCNN.family: FasterRCNN,
}


def chain_of(model: FasterRCNN) -> Chain:
    """The chain of the detector's family."""
    return CHAINS[next(family for family, kind in KINDS.items() if isinstance(model, kind))]
