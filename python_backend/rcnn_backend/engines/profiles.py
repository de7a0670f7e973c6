"""Optimisation profiles: the ranges of input shapes for which a TensorRT plan is built."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rcnn_backend.errors import InvalidInputError

Shape = tuple[int, ...]


class ShapeRange(NamedTuple):
    """The shapes from ``min`` to ``max``, axis by axis; the plan is tuned for ``opt``."""

    min: Shape
    opt: Shape
    max: Shape

    def takes(self, shape: Shape) -> bool:
        """Whether the shape is within the range on every axis."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )

    def overlaps(self, other: "ShapeRange") -> bool:
        """Whether some shape is within both ranges."""
        starts, ends = zip(self.min, other.min, strict=True), zip(self.max, other.max, strict=True)
        return all(max(low) <= min(high) for low, high in zip(starts, ends, strict=True))

    def __str__(self) -> str:
        return f"{list(self.min)} to {list(self.max)}"


Profile = Mapping[str, ShapeRange]  # by input name


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """The number of the first profile that accepts all the shapes.

    Raises:
        InvalidInputError: no profile does; the message names each refused tensor with the ranges of all profiles.
    """
    for index, profile in enumerate(profiles):
        if all(profile[name].takes(shape) for name, shape in shapes.items()):
            return index
    faults = []
    for name, shape in shapes.items():
        ranges = [profile[name] for profile in profiles]
        if len(profiles) > 1 or not ranges[0].takes(shape):
            told = ", ".join(f"profile {index}: {range_}" for index, range_ in enumerate(ranges))
            faults.append(f"{name} is {list(shape)}; {told}")
    raise InvalidInputError(
        f"the TensorRT plan does not accept this shape: {'. '.join(faults)}. Send another size or fewer images, or "
        "export again with other --shapes"
    )


def to_json(profiles: Sequence[Profile]) -> list[dict[str, list[str]]]:
    """The profiles as a manifest stores them, each shape as ``1x3x800x1344``."""
    return [
        {name: ["x".join(map(str, shape)) for shape in range_] for name, range_ in profile.items()}
        for profile in profiles
    ]


def from_json(profiles: Sequence[Mapping[str, Sequence[str]]]) -> list[Profile]:
    """The profiles of a manifest."""
    return [
        {
            name: ShapeRange(*(tuple(int(side) for side in shape.split("x")) for shape in shapes))
            for name, shapes in profile.items()
        }
        for profile in profiles
    ]
