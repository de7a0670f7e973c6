"""The sizes that pictures are resized and padded to. Sizes are (height, width) in pixels."""

import math
from collections.abc import Sequence

from rcnn_backend.contract.parameters import PreprocessParameters
from rcnn_backend.devices import Array
from rcnn_backend.errors import InvalidInputError


def resized_size_hw(size_hw: Sequence[int], parameters: PreprocessParameters) -> tuple[int, int]:
    """The resized size: the short side becomes ``min_size``, unless the long one would then exceed ``max_size``."""
    if parameters.fixed_size_hw is not None:
        height, width = parameters.fixed_size_hw
        return height, width
    scale = min(parameters.min_size / min(size_hw), parameters.max_size / max(size_hw))
    height, width = (math.floor(side * scale) for side in size_hw)
    if not (height and width):
        raise InvalidInputError(
            f"the image of {size_hw[1]}x{size_hw[0]} pixels is too elongated: resized to at most "
            f"{parameters.max_size} pixels, its short side vanishes. Crop it",
            "too_elongated",
        )
    return height, width


def padded_size_hw(sizes_hw: Sequence[tuple[int, int]], parameters: PreprocessParameters) -> tuple[int, int]:
    """H and W of a batch of images whose resized sizes are ``sizes_hw``.

    This is the size in ``padded_sizes_hw`` with the smallest area that holds all images, the first among equal areas.
    If none holds them all, it is the largest sides rounded up to a multiple of ``size_divisible``, as in torchvision.
    """
    divisor = parameters.size_divisible
    height, width = (math.ceil(max(sides) / divisor) * divisor for sides in zip(*sizes_hw, strict=True))
    fitting = [(h, w) for h, w in parameters.padded_sizes_hw if h >= height and w >= width]
    return min(fitting, key=math.prod, default=(height, width))


def batch_size_hw(images: Sequence[Array], parameters: PreprocessParameters) -> tuple[int, int]:
    """H and W of a batch of images [h, w, 3]."""
    return padded_size_hw([resized_size_hw(image.shape[:2], parameters) for image in images], parameters)


def group_by_size(requests: Sequence[Sequence[Array]], parameters: PreprocessParameters) -> list[list[int]]:
    """The indices of the requests, grouped so that all images of a group get the same H and W."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, images in enumerate(requests):
        groups.setdefault(batch_size_hw(images, parameters), []).append(index)
    return list(groups.values())
