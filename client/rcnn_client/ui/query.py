"""The query parameters of POST /detect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from .._errors import InvalidParameterError
from .._options import DetectOptions, read_options


@dataclass(frozen=True)
class Parameter:
    """One query parameter.

    Attributes:
        parse: text -> value; raises ValueError.
        expected: what errors say that the value should be.
        schema: its JSON schema.
        description: a sentence.
    """

    parse: Callable[[str], Any]
    expected: str
    schema: dict[str, Any]
    description: str


@dataclass(frozen=True)
class Query:
    """The parameters of one request.

    Attributes:
        model: the detector; empty for the only one on the server.
        options: the options of `detect`.
        has_timing: whether to return the timing.
    """

    model: str
    options: DetectOptions
    has_timing: bool


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def _parameter(kind: str, description: str, **limits: float) -> Parameter:
    parse, expected = {
        "number": (float, "a number from 0 to 1"),
        "integer": (int, "an integer, at least 1"),
        "boolean": (_flag, "0 or 1"),
        "string": (str, "a name"),
    }[kind]
    return Parameter(cast(Any, parse), expected, {"type": kind, **limits}, description)


_SHARE: dict[str, float] = {"minimum": 0, "maximum": 1}
_MODEL = "The detector. It may be left out if the server has only one."
_CLASSES = "Keep only the detections of this class. May be given several times."
PARAMETERS = {
    "model": _parameter("string", _MODEL),
    "score_thresh": _parameter(
        "number",
        "Keep detections whose score is above this; if left out, the model's own value applies.",
        **_SHARE,
    ),
    "nms_thresh": _parameter(
        "number",
        "Of two boxes of a class whose IoU is above this, only the better is kept; if left out, the model's own value applies.",
        **_SHARE,
    ),
    "detections_per_img": _parameter(
        "integer",
        "The largest number of detections, of all classes; if left out, the model's own value applies.",
        minimum=1,
    ),
    "classes": Parameter(str, "a name", {"type": "array", "items": {"type": "string"}}, _CLASSES),
    "top_k": _parameter(
        "integer", "Of the remaining detections, keep at most this many, the best ones.", minimum=1
    ),
    "rle": _parameter(
        "boolean", "1: return the masks of a Mask R-CNN as COCO's compressed run-length codes."
    ),
    "timing": _parameter("boolean", "1: return how the time was spent."),
}


def read_query(given: Mapping[str, str], get_all: Callable[[str], Sequence[str]]) -> Query:
    """Read the query parameters of a request.

    Args:
        given: their names; `get_all`: the values of one.

    Raises:
        InvalidParameterError: there is no such parameter, or it is outside its range.
    """
    values: dict[str, Any] = {}
    for name in given:
        if name not in PARAMETERS:
            raise InvalidParameterError(
                f"unknown parameter {name!r}: the parameters are {', '.join(PARAMETERS)}"
            )
        texts = get_all(name)
        values[name] = texts if name == "classes" else _read(name, texts)
    model, has_timing = values.pop("model", ""), values.pop("timing", False)
    values["masks"] = "rle" if values.pop("rle", False) else "none"
    options = cast(DetectOptions, values)
    read_options(options)
    return Query(model, options, has_timing)


def _read(name: str, texts: Sequence[str]) -> Any:
    if len(texts) > 1:
        raise InvalidParameterError(f"{name} is given {len(texts)} times, expected once")
    try:
        return PARAMETERS[name].parse(texts[0])
    except (ValueError, KeyError) as error:
        raise InvalidParameterError(
            f"{name} is {texts[0]!r}, expected {PARAMETERS[name].expected}"
        ) from error
