"""The optimisation profiles of a detector's plans, from the batch sizes and picture sizes that it must accept.

    --shapes 1x320x320,4x800x1344,8x1344x1344      smallest, best and largest batch of one profile

B images, H and W the sides of the RPN's input in pixels, R RoIs per image.
"""

import re
from collections.abc import Sequence

from rcnn_backend.contract.chain_types import ChainStep, bind
from rcnn_backend.engines.profiles import Profile, ShapeRange
from torchvision.models.detection import FasterRCNN

from rcnn_export.detector.families import chain_of
from rcnn_export.detector.parameters import head_parameters, preprocess_parameters, proposal_parameters
from rcnn_export.detector.shapes import round_up, tensor_sizes
from rcnn_export.errors import ExportError

EXAMPLE = "1x320x320,4x800x1344,8x1344x1344"
DEFAULT_BATCHES = (1, 4, 8)


def parse_shapes(text: str) -> ShapeRange:
    """One profile's smallest, best and largest B x H x W.

    If two shapes are given, the last is also the best; a single shape is all three.

    Raises:
        ValueError: the text is something else.
    """
    shapes = [tuple(int(side) for side in part.split("x")) for part in text.split(",") if _is_shape(part)]
    if len(shapes) != len(text.split(",")) or not 1 <= len(shapes) <= 3:
        raise ValueError(f"{text!r} is not a list of one to three BATCHxHEIGHTxWIDTH such as {EXAMPLE}")
    range_ = ShapeRange(shapes[0], shapes[len(shapes) // 2], shapes[-1])
    if not range_.takes(range_.opt):
        raise ValueError(
            f"{text!r}: expected the smallest, the best and the largest, none larger than the next"
        )
    return range_


def plan_profiles(model: FasterRCNN, shapes: Sequence[ShapeRange] = ()) -> dict[str, list[Profile]]:
    """The profiles of each engine by its step's name; without shapes, ``_default_shapes``.

    Raises:
        ExportError: see ``_rpn_profiles``.
    """
    shapes = shapes or _default_shapes(model)
    return {
        step.name: _rpn_profiles(model, shapes) if step.name == "rpn" else _roi_profiles(model, shapes, step)
        for step in chain_of(model).engines
    }


def _default_shapes(model: FasterRCNN) -> list[ShapeRange]:
    """One profile for all picture sizes that the detector's own transform makes."""
    transform = preprocess_parameters(model)
    divisor = transform.size_divisible
    if transform.fixed_size_hw is not None:
        largest = best = tuple(round_up(side, divisor) for side in transform.fixed_size_hw)
    else:
        best = (round_up(transform.min_size, divisor), round_up(transform.max_size, divisor))
        largest = (best[1], best[1])
    sides = ((divisor, divisor), best, largest)
    return [ShapeRange(*((batch, *side) for batch, side in zip(DEFAULT_BATCHES, sides, strict=True)))]


def _rpn_profiles(model: FasterRCNN, shapes: Sequence[ShapeRange]) -> list[Profile]:
    """One profile for each of the shapes.

    Raises:
        ExportError: two shapes overlap, so that either could run; no shape takes some batch size below the largest; or a
            side is not a multiple of the size that pictures are padded to.
    """
    divisor = model.transform.size_divisible
    for range_ in shapes:
        if any(side % divisor for shape in range_ for side in shape[1:]):
            raise ExportError(
                f"--shapes {_to_text(range_)}: pictures are padded to multiples of {divisor}, so heights and "
                "widths must be such multiples"
            )
    for index, one in enumerate(shapes):
        for other in shapes[index + 1 :]:
            if one.overlaps(other):
                raise ExportError(
                    f"--shapes {_to_text(one)} and {_to_text(other)} overlap: batches that fit both could run in "
                    "either profile. Begin one above the end of the other, in batch size, height or width"
                )
    batches = {batch for range_ in shapes for batch in range(range_.min[0], range_.max[0] + 1)}
    if missing := sorted(set(range(1, max(batches) + 1)) - batches):
        raise ExportError(
            f"no --shapes takes a batch of {missing[0]}, and Triton makes batches of every size up to the "
            f"largest, {max(batches)}: widen one of them"
        )
    return [{"input": ShapeRange(*((batch, 3, *sides) for batch, *sides in range_))} for range_ in shapes]


def _roi_profiles(model: FasterRCNN, shapes: Sequence[ShapeRange], step: ChainStep) -> list[Profile]:
    """The profiles of an engine that runs on RoIs: one for each range of batch sizes in the shapes. Overlaps are joined."""
    proposals, detections = proposal_parameters(model).padded_counts, head_parameters(model).padded_counts
    fixed = tensor_sizes(model)
    fewest = fixed | {"proposals": proposals[0], "head_detections": detections[0]}
    usual = fixed | {"proposals": proposals[-1], "head_detections": detections[len(detections) // 2]}
    most = fixed | {"proposals": proposals[-1], "head_detections": detections[-1]}
    joined: list[ShapeRange] = []
    for batches in sorted(ShapeRange(*((shape[0],) for shape in range_)) for range_ in shapes):
        if joined and joined[-1].overlaps(batches):
            last = joined.pop()
            batches = ShapeRange(last.min, max(last.opt, batches.opt), max(last.max, batches.max))
        joined.append(batches)
    profiles: list[Profile] = []
    for (smallest,), (best,), (largest,) in joined:
        sizes = ((smallest, fewest), (best, usual), (largest, most))
        profiles.append(
            {
                tensor.name: ShapeRange(*((batch, *bind(tensor.shape, rows)) for batch, rows in sizes))
                for tensor in step.inputs
            }
        )
    return profiles


def _is_shape(text: str) -> bool:
    return re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", text) is not None


def _to_text(range_: ShapeRange) -> str:
    return ",".join("x".join(map(str, shape)) for shape in range_)
