"""torchvision's Mask R-CNN without its last step, in which each mask is pasted into a picture of its own.

This project answers masks in the frames of their boxes and leaves pasting to the client. A comparison of the two
stops torchvision at the same place.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torchvision.models.detection import FasterRCNN


@contextlib.contextmanager
def unpasted(model: FasterRCNN) -> Iterator[None]:
    """While this is entered, the model answers masks [n, 28, 28] in the frames of their boxes, if it has masks."""
    postprocess = model.transform.postprocess

    def resize_boxes(result: list[dict[str, Any]], *sizes: Any) -> list[dict[str, Any]]:
        masks = [{"masks": image.pop("masks").squeeze(1)} if "masks" in image else {} for image in result]
        return [image | mask for image, mask in zip(postprocess(result, *sizes), masks, strict=True)]

    model.transform.postprocess = resize_boxes
    try:
        yield
    finally:
        del model.transform.postprocess  # the class has its own
