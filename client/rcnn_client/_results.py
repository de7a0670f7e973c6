"""The answers to several pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from ._detections import Detections
from ._errors import BatchError, InvalidParameterError, RcnnError
from ._images import image_name

AnyImage = TypeVar("AnyImage")


@dataclass(frozen=True, eq=False, repr=False)
class Result(Generic[AnyImage]):
    """One picture of a stream, and its answer.

    Attributes:
        image: the picture, as it was given.
        answer: its detections, or the error if it failed.
    """

    image: AnyImage
    answer: Detections | RcnnError

    def __repr__(self) -> str:
        return f"<Result of {image_name(self.image, type(self.image).__name__)}: {self.answer!r}>"

    @property
    def error(self) -> RcnnError | None:
        """The error, if there is one."""
        return self.answer if isinstance(self.answer, RcnnError) else None

    @property
    def detections(self) -> Detections:
        """The detections; raises the error if there is one."""
        if isinstance(self.answer, RcnnError):
            raise self.answer
        return self.answer


def check_stream(images: Any, in_flight: int) -> None:
    """Raises InvalidParameterError if `images` is a single picture, or `in_flight` is less than 1."""
    if isinstance(images, str | bytes | np.ndarray | Image.Image):
        raise InvalidParameterError(
            f"images is a {type(images).__name__}, expected several pictures, for example a list; detect takes one"
        )
    check_in_flight(in_flight)


def check_in_flight(in_flight: int) -> None:
    """Raises InvalidParameterError if `in_flight` is less than 1."""
    if in_flight < 1:
        raise InvalidParameterError(f"in_flight is {in_flight}, expected at least 1")


def window(in_flight: int) -> int:
    """How many pictures a stream holds; more than are in flight, so that a slow answer does not stop the others."""
    return 2 * in_flight


def gather(results: Iterable[Result[Any]]) -> list[Detections]:
    """Every picture's detections.

    Raises:
        BatchError: some pictures failed.
    """
    answers = [result.answer for result in results]
    errors = {index: answer for index, answer in enumerate(answers) if isinstance(answer, RcnnError)}
    found = [answer if isinstance(answer, Detections) else None for answer in answers]
    if errors:
        raise BatchError(found, errors)
    return [detections for detections in found if detections is not None]
