"""The options of a single call."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypedDict, get_args

import numpy as np

from ._contract import Contract, MaskForm
from ._deadline import Deadline
from ._detections import Detections
from ._errors import InvalidParameterError


class DetectOptions(TypedDict, total=False):
    """The keyword arguments of `detect`, `detect_batch`, `detect_stream` and `detect_tiled`.

    Attributes:
        score_thresh: keep detections whose score is above this (0 to 1).
        nms_thresh: of two boxes of a class that overlap by more than this IoU (0 to 1), only the better is kept.
        detections_per_img: the largest number of detections per picture, of all classes; at most what the
            model was exported for. If one of these three is None, the model's own value applies.
        classes: names of the classes to keep; None keeps all.
        top_k: of the remaining detections, keep at most this many, the best ones.
        masks: how a Mask R-CNN sends its masks. "probabilities" are pasted into the picture here, at any
            threshold. "rle" are run-length codes that the server makes: less work here, and a smaller answer
            unless there are many large masks. "none" gives boxes only; the server then does not run the mask head.
        mask_thresh: pixels whose probability is above this (0 to 1) belong to the mask; None means 0.5.
        timeout_s: limit for each picture in seconds, including retries; None means the detector's own limit.
        request_id: names the request in the server's log; in a batch or stream, -0, -1, ... is added.
    """

    score_thresh: float | None
    nms_thresh: float | None
    detections_per_img: int | None
    classes: Collection[str] | None
    top_k: int | None
    masks: MaskForm
    mask_thresh: float | None
    timeout_s: float | None
    request_id: str


@dataclass(frozen=True)
class Options:
    """A call's `DetectOptions`.

    Raises:
        InvalidParameterError: an option is outside its range. Limits that depend on the model are checked later.
    """

    score_thresh: float | None = None
    nms_thresh: float | None = None
    detections_per_img: int | None = None
    classes: Collection[str] | None = None
    top_k: int | None = None
    masks: MaskForm = "probabilities"
    mask_thresh: float | None = None
    timeout_s: float | None = None
    request_id: str = ""

    def __post_init__(self) -> None:
        for name in ("score_thresh", "nms_thresh", "mask_thresh"):
            thresh = getattr(self, name)
            if thresh is not None and not (isinstance(thresh, int | float | np.number) and 0 <= thresh <= 1):
                raise InvalidParameterError(f"{name} is {thresh!r}, expected a number from 0 to 1")
        for name in ("detections_per_img", "top_k"):
            count = getattr(self, name)
            if count is not None and not (isinstance(count, int | np.integer) and count >= 1):
                raise InvalidParameterError(f"{name} is {count!r}, expected an integer, at least 1")
        if isinstance(self.classes, str) or not isinstance(self.classes, Collection | None):
            raise InvalidParameterError(f"classes is {self.classes!r}, expected a list of names")
        if self.masks not in get_args(MaskForm):
            raise InvalidParameterError(
                f"masks is {self.masks!r}, expected one of: {', '.join(get_args(MaskForm))}"
            )
        if self.timeout_s is not None:
            Deadline(self.timeout_s)
        if not isinstance(self.request_id, str):
            raise InvalidParameterError(f"request_id is {self.request_id!r}, expected a string")


def read_options(given: DetectOptions) -> Options:
    """Check a call's options.

    Raises:
        TypeError: there is no such option; the message lists the known options.
        InvalidParameterError: an option is outside its range.
    """
    known = [field.name for field in dataclasses.fields(Options)]
    if unknown := [name for name in given if name not in known]:
        raise TypeError(
            f"unknown option {', '.join(unknown)}: the options are {', '.join(known)}; detect_batch, "
            "detect_stream and detect_tiled also take in_flight"
        )
    return Options(**given)


class Request:
    """`Options` for a particular model: the parameters to send, the outputs to ask for, and which detections to keep.

    Raises:
        InvalidParameterError: the model lacks one of the classes, was exported for fewer detections, or returns no
            masks although `mask_thresh` is given.
    """

    def __init__(self, options: Options, contract: Contract) -> None:
        self.options, self.contract = options, contract
        self.parameters: dict[str, float | int] = {}
        for name in ("score_thresh", "nms_thresh"):
            if (thresh := getattr(options, name)) is not None:
                self.parameters[name] = float(thresh)
        if options.detections_per_img is not None:
            if options.detections_per_img > contract.max_detections:
                raise InvalidParameterError(
                    f"detections_per_img is {options.detections_per_img}, expected 1 to "
                    f"{contract.max_detections}, the most that the model was exported for"
                )
            self.parameters["detections_per_img"] = int(options.detections_per_img)
        self.output_shapes = contract.output_shapes(options.masks)
        self.mask_thresh = 0.5 if options.mask_thresh is None else float(options.mask_thresh)
        if options.mask_thresh is not None and contract.mask_size is None:
            raise InvalidParameterError(
                f"mask_thresh is {options.mask_thresh}, but the model returns no masks; leave it out"
            )
        if "rles" in self.output_shapes:
            self.parameters["mask_thresh"] = self.mask_thresh
        known = contract.class_names[1:]
        if unknown := [name for name in options.classes or () if name not in known]:
            raise InvalidParameterError(
                f"classes has {', '.join(map(repr, unknown))}, expected some of: {', '.join(known)}"
            )

    def keep(self, found: Detections) -> Detections:
        """The best `top_k` detections of the wanted classes."""
        if self.options.classes is not None:
            found = found[np.isin(found.class_names, list(self.options.classes))]
        return found[: self.options.top_k]
