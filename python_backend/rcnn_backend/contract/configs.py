"""Reads the config.pbtxt files of a model repository."""

from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from rcnn_backend.errors import RepositoryError


def read_config(model_dir: Path) -> dict[str, Any]:
    """A model's config.pbtxt in the JSON form that Triton gives its Python models.

    Raises:
        RepositoryError: the file does not exist or cannot be parsed.
    """
    path = model_dir / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}. Write it with rcnn-export") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path} is not a valid model config: {error}") from error
    return to_json(config)


def read_configs(repository: Path) -> dict[str, ModelConfig]:
    """The config of each model of the repository, by the model's name.

    Raises:
        RepositoryError: the folder does not exist, has no model, or has a config that cannot be read.
    """
    if not repository.is_dir():
        raise RepositoryError(
            f"there is no model repository {repository}: give the folder that rcnn-export wrote"
        )
    configs = {}
    for path in sorted(repository.glob("[!.]*/config.pbtxt")):
        try:
            configs[path.parent.name] = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        except (text_format.ParseError, OSError, UnicodeDecodeError) as error:
            raise RepositoryError(f"{path} cannot be read as a Triton model config: {error}") from error
    if not configs:
        raise RepositoryError(
            f"{repository} holds no model (no */config.pbtxt): fill it with "
            f"`rcnn-export faster_rcnn --repository {repository}`"
        )
    return configs


def read_steps(repository: Path, name: str) -> list[str]:
    """The models of an ensemble's steps; empty for any other name, or if the config cannot be read."""
    try:
        config = read_config(repository / name)
    except RepositoryError:
        return []
    return [step["model_name"] for step in config.get("ensemble_scheduling", {}).get("step", [])]


def to_json(config: ModelConfig) -> dict[str, Any]:
    """A config in the JSON form that Triton gives its Python models."""
    form: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return form
