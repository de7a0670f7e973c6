"""torchvision's Mask R-CNN without its last step, which pastes each mask into an empty picture.

This project returns masks in the frames of their boxes and leaves pasting to the client. For comparisons, torchvision
is stopped at the same place.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from torchvision.models.detection import FasterRCNN


@contextlib.contextmanager
def unpasted(model: FasterRCNN) -> Iterator[None]:
    """While this context is active, a model with masks returns them as [n, 28, 28], in the frames of their boxes."""
    postprocess = model.transform.postprocess

    def resize_boxes(result: list[dict[str, Any]], *sizes: Any) -> list[dict[str, Any]]:
        masks = [{"masks": image.pop("masks").squeeze(1)} if "masks" in image else {} for image in result]
        return [image | mask for image, mask in zip(postprocess(result, *sizes), masks, strict=True)]

    model.transform.postprocess = resize_boxes
    try:
        yield
    finally:
        del model.transform.postprocess  # the class's own method is visible again
