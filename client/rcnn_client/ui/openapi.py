"""The description of the HTTP interface, in OpenAPI 3.1."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from .label_studio.description import METHODS
from .query import PARAMETERS

_NUMBER: dict[str, Any] = {"type": "number"}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_NUMBERS = {"type": "array", "items": _NUMBER}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}

_DETECTION = {
    "type": "object",
    "required": ["class_name", "label", "score", "box"],
    "additionalProperties": False,
    "properties": {
        "class_name": {"type": "string"},
        "label": {"type": "integer", "minimum": 1, "description": "Number of the class."},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "box": {
            **_NUMBERS,
            "minItems": 4,
            "maxItems": 4,
            "description": "x1, y1, x2, y2 in pixels of the upright picture.",
        },
        "segmentation": {
            "type": "object",
            "required": ["size", "counts"],
            "properties": {"size": _NUMBERS, "counts": {"type": "string"}},
            "description": "COCO's compressed run-length code of the mask, with rle=1, from a Mask R-CNN.",
        },
        "keypoints": {**_NUMBERS, "description": "x, y, visibility of each, from a Keypoint R-CNN."},
        "num_keypoints": {"type": "integer"},
        "keypoint_scores": {**_NUMBERS, "description": "Logits."},
    },
}
_STEP = {
    "type": "object",
    "required": ["name", "queue_ms", "compute_ms", "images_per_batch"],
    "properties": {
        "name": {"type": "string"},
        "queue_ms": _NUMBER,
        "compute_ms": _NUMBER,
        "images_per_batch": _NUMBER,
    },
}
_TIMING = {
    "type": "object",
    "description": "With timing=1, if Triton's statistics show it. Milliseconds.",
    "required": ["total_ms", "network_ms", "queue_ms", "compute_ms", "steps", "num_requests"],
    "properties": {
        "total_ms": {
            **_NUMBER,
            "description": "From sending the picture to Triton until its answer was read.",
        },
        "network_ms": {**_NUMBER, "description": "The part of total_ms outside Triton."},
        "queue_ms": {**_NUMBER, "description": "Waiting inside Triton, all steps."},
        "compute_ms": {**_NUMBER, "description": "Computing inside Triton, all steps."},
        "steps": {"type": "array", "items": _STEP},
        "num_requests": {
            "type": "integer",
            "description": "Requests answered in that time; if more than one, Triton's times are their mean.",
        },
    },
}
_FOUND = {
    "type": "object",
    "required": ["model", "image_size_hw", "orientation", "detections"],
    "properties": {
        "model": {"type": "string"},
        "image_size_hw": {
            "type": ["array", "null"],
            "items": {"type": "integer"},
            "description": "Height and width in pixels of the upright picture.",
        },
        "orientation": {
            "type": "integer",
            "minimum": 1,
            "maximum": 8,
            "description": "EXIF orientation of the picture as sent; 1 if it has none.",
        },
        "detections": {"type": "array", "items": _DETECTION, "description": "The best first."},
        "timing": _TIMING,
    },
}
_MODELS = {
    "type": "object",
    "required": ["url", "models"],
    "properties": {
        "url": {"type": "string", "description": "gRPC address of the server."},
        "models": _STRINGS,
    },
}
_MODEL = {
    "type": "object",
    "required": ["model", "class_names", "max_detections", "has_masks", "keypoint_names"],
    "properties": {
        "model": {"type": "string"},
        "class_names": {**_STRINGS, "description": "The index is the label; index 0 is the background."},
        "max_detections": {"type": "integer"},
        "has_masks": {"type": "boolean"},
        "keypoint_names": _STRINGS,
    },
}
_ANY_FILE: dict[str, Any] = {"schema": {}}
_BODY = {
    "required": True,
    "description": "A JPEG, PNG, WebP, TIFF, GIF or BMP; or a form with one file, of any name.",
    "content": {
        "image/*": _ANY_FILE,
        "application/octet-stream": _ANY_FILE,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "string", "contentMediaType": "image/*"}},
            }
        },
    },
}
_ERRORS = {
    "400": "The picture, or a parameter, is not valid.",
    "401": "The token is missing or wrong.",
    "403": "The request is for another host name, or comes from another site.",
    "404": "The server has no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "502": "The server failed.",
    "503": "The server is unavailable or overloaded; try again.",
    "504": "The server did not answer in time.",
}


def describe() -> dict[str, Any]:
    """The document that GET /openapi.json returns."""
    name_in_path = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    parameters = [
        {"name": name, "in": "query", "schema": parameter.schema, "description": parameter.description}
        for name, parameter in PARAMETERS.items()
    ]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rcnn-ui",
            "version": version("rcnn-client"),
            "description": "Detects objects in pictures with a detector on a Triton server.",
        },
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic", "description": "The token as the password."},
            }
        },
        "security": [{}, {"token": []}, {"password": []}],
        "paths": {
            "/detect": {
                "post": {
                    "summary": "Detect the objects in a picture.",
                    "parameters": parameters,
                    "requestBody": _BODY,
                    "responses": _responses(_json("The detections.", _FOUND), *_ERRORS),
                }
            },
            "/models": {
                "get": {
                    "summary": "List the detectors on the server.",
                    "responses": _responses(
                        _json("Their names.", _MODELS), "401", "403", "502", "503", "504"
                    ),
                }
            },
            "/models/{model}": {
                "get": {
                    "summary": "Describe a detector.",
                    "parameters": [name_in_path],
                    "responses": _responses(
                        _json("The detector.", _MODEL), "400", "401", "403", "404", "502", "503", "504"
                    ),
                }
            },
            "/picture": {
                "post": {
                    "summary": "Turn a picture upright and convert it to PNG.",
                    "requestBody": _BODY,
                    "responses": _responses(
                        {"description": "The picture.", "content": {"image/png": {}}},
                        *("400", "401", "403", "408", "413", "503"),
                    ),
                }
            },
        }
        | {
            f"/label-studio/{{model}}/{name}": {method: _of_label_studio(details, name_in_path)}
            for name, (method, details) in METHODS.items()
        },
    }


def _of_label_studio(details: dict[str, Any], name_in_path: dict[str, Any]) -> dict[str, Any]:
    answer = _responses(_json("As Label Studio expects it.", details["answer"]), *_ERRORS)
    described = {"summary": details["summary"], "parameters": [name_in_path], "responses": answer}
    if "body" in details:
        content = {"application/json": {"schema": details["body"]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _responses(success: dict[str, Any], *errors: str) -> dict[str, Any]:
    return {"200": success} | {status: _json(_ERRORS[status], _ERROR) for status in errors}
