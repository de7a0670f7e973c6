"""The OpenAPI descriptions of the requests of Label Studio."""

from __future__ import annotations

from typing import Any

_STRING = {"type": "string"}
_CONFIG = {**_STRING, "description": "The labelling config of a project, in XML."}
_TASK = {
    "type": "object",
    "required": ["id", "data"],
    "properties": {
        "id": {"type": "integer"},
        "data": {"type": "object", "description": "Contains the picture: an address, or a data: URI."},
    },
}
_PREDICTION = {
    "type": "object",
    "required": ["model_version", "score", "result"],
    "properties": {
        "model_version": _STRING,
        "score": {"type": "number", "description": "The mean of the regions' scores, 0 without regions."},
        "result": {"type": "array", "items": {"type": "object"}, "description": "Regions."},
    },
}
_FAILED = {"type": "object", "required": ["error"], "properties": {"error": _STRING}}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


# path below /label-studio/MODEL -> method, and what differs between the descriptions
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "health": (
        "get",
        {
            "summary": "Report whether the detector is ready.",
            "answer": _object(status=_STRING, model_class=_STRING),
        },
    ),
    "setup": (
        "post",
        {
            "summary": "Check whether a labelling config has labels of the detector.",
            "body": _object(schema=_CONFIG),
            "answer": _object(model_version=_STRING),
        },
    ),
    "predict": (
        "post",
        {
            "summary": "Predict the regions of tasks.",
            "body": _object(tasks={"type": "array", "items": _TASK}, label_config=_CONFIG),
            "answer": _object(
                results={
                    "type": "array",
                    "items": {"anyOf": [_PREDICTION, _FAILED]},
                    "description": "In the order of the tasks; a task that failed has an error.",
                }
            ),
        },
    ),
    "webhook": (
        "post",
        {
            "summary": "Receive an event, which changes nothing.",
            "body": _object(action=_STRING),
            "answer": {"type": "object"},
        },
    ),
}
