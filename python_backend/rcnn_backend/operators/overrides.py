"""The numbers by which a request overrides a detector's parameters."""

from collections.abc import Mapping
from typing import Any

from rcnn_backend.errors import InvalidInputError


def read_number(request: Mapping[str, Any], name: str, highest: float) -> float:
    """The request parameter ``name``.

    Raises:
        InvalidInputError: the value is not a number from 0 to ``highest``.
    """
    try:
        value = float(request[name])
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value <= highest:
        raise InvalidInputError(
            f"request parameter {name} is {request[name]!r}: expected a number from 0 to {highest:g}",
            "parameter",
        )
    return value
