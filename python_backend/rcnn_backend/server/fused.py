"""Serves a detector's fused model under the detector's own name: one process for all steps, with clients unchanged."""

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from rcnn_backend.contract.chain_types import FUSED, PIXELS
from rcnn_backend.contract.configs import read_configs


def write_view(repository: Path, detectors: Sequence[str], view: Path) -> Path:
    """Makes a model repository of links into ``repository`` in which each of ``detectors`` is its fused model.

    ``<name>_pixels`` passes its pixels to ``<name>``, so that the engines are loaded only once.

    Args:
        detectors: ensembles whose ``<name>_fused`` is complete.
        view: a folder that does not exist yet.
    """
    view.mkdir()
    for folder in repository.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            (view / folder.name).symlink_to(folder.resolve())
    configs = read_configs(repository)
    for name in detectors:
        fused = configs[f"{name}_{FUSED}"]
        fused.name = name
        _replace(view / name, repository / f"{name}_{FUSED}", fused)
        if pixels := configs.get(f"{name}_{PIXELS}"):
            _hand_on(pixels, name)
            _replace(view / f"{name}_{PIXELS}", repository / f"{name}_{PIXELS}", pixels)
    return view


def _hand_on(ensemble: ModelConfig, model: str) -> None:
    """Makes ``model`` the only step of an ensemble that has the same tensors."""
    del ensemble.ensemble_scheduling.step[:]
    step = ensemble.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    step.input_map.update({tensor.name: tensor.name for tensor in ensemble.input})
    step.output_map.update({tensor.name: tensor.name for tensor in ensemble.output})


def _replace(link: Path, folder: Path, config: ModelConfig) -> None:
    """Replaces a link by a folder with the given config and links to all other files of ``folder``."""
    link.unlink()
    link.mkdir()
    (link / "config.pbtxt").write_text(text_format.MessageToString(config))
    for path in folder.iterdir():
        if path.name != "config.pbtxt":
            (link / path.name).symlink_to(path.resolve())
