"""Selects the models of a repository that can be served. The engines of an ensemble may not be exported yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from rcnn_backend.contract.chain_types import FUSED, PIXELS, Chain
from rcnn_backend.contract.configs import read_configs
from rcnn_backend.contract.find_chain import detector_of, find_chain, is_step, nearest_chain
from rcnn_backend.errors import RepositoryError
from rcnn_backend.server.paths import PLAIN_CHARACTERS, is_plain


@dataclass(frozen=True)
class ModelSelection:
    """Which models are served, and which are not.

    ``served``: the names to load. ``skipped``: why each other model is not served, and the command that fixes it.
    ``detectors``: the served models that take picture files. ``ensembles``: the detectors that are ensembles, and for
    each whether its fused model could be served in its place.
    """

    served: list[str]
    skipped: dict[str, str]
    detectors: list[str]
    ensembles: dict[str, bool]

    def fuse(self, detectors: Sequence[str]) -> "ModelSelection":
        """The same selection if the fused models of ``detectors`` are served under the detectors' names."""
        fused = {f"{name}_{FUSED}" for name in detectors}
        return replace(self, skipped={name: why for name, why in self.skipped.items() if name not in fused})


def select_models(repository: Path, names: Sequence[str] = ()) -> ModelSelection:
    """Chooses ``names``, or every complete model; Triton loads the steps of an ensemble with it.

    A model is complete if its newest version folder holds a model file, and an ensemble if all
    its steps are complete. ``<name>_fused`` needs the steps of ``<name>`` and loads their engines a
    second time, so it is served only if it is named. ``<name>_pixels`` is served together with its ensemble,
    because it has the same steps. A detector that was never exported, such as the templates in git, is not
    mentioned unless it is named.

    Raises:
        RepositoryError: the folder does not exist or has no model, a config cannot be read, a name
            is unknown or not complete, or no model is complete.
    """
    configs = read_configs(repository)
    if unknown := [name for name in names if name not in configs]:
        raise RepositoryError(f"{repository} has no model {', '.join(unknown)}; it has {', '.join(configs)}")
    steps = {step for config in configs.values() for step in _steps(config)}
    chosen = [
        model
        for name in names
        for model in (name, f"{name}_{PIXELS}")
        if model == name or (model in configs and _detector_of(configs, model) == name)
    ]
    exported = [name for name in configs if name not in steps and not _is_template(repository, configs, name)]
    candidates = list(dict.fromkeys(chosen)) or exported
    if not candidates:
        raise RepositoryError(
            f"{repository} holds no exported detector yet: run `rcnn-export faster_rcnn --weights my.pth "
            f"--labels labels.txt --name my_detector --repository {repository}`"
        )
    faults = {name: _fault(repository, configs, name) for name in candidates}
    if not names:
        faults |= {
            name: f"it loads the engines a second time; to serve it, give --models {name}"
            for name, fault in faults.items()
            if not fault and _fused_detector(configs, name)
        }
    served = [name for name, fault in faults.items() if not fault]
    skipped = {name: fault for name, fault in faults.items() if fault}
    if skipped and (names or not served):
        lines = "\n".join(f"  {name}: {fault}" for name, fault in skipped.items())
        raise RepositoryError(f"{repository} is not complete:\n{lines}")
    ensembles = {
        name: f"{name}_{FUSED}" in configs
        and _fused_detector(configs, f"{name}_{FUSED}") == name
        and f"{name}_{FUSED}" not in served
        and not _fault(repository, configs, f"{name}_{FUSED}")
        for name in served
        if (found := find_chain(_steps(configs[name]))) and found[1] == name
    }
    detectors = [name for name in served if name in ensembles or _fused_detector(configs, name)]
    return ModelSelection(served, skipped, detectors, ensembles)


def _steps(config: ModelConfig) -> list[str]:
    return [step.model_name for step in config.ensemble_scheduling.step]


def _detector_of(configs: dict[str, ModelConfig], name: str) -> str:
    """The detector that the model belongs to; empty if there is none."""
    return detector_of(name, lambda model: _steps(configs[model]) if model in configs else []) or ""


def _fused_detector(configs: dict[str, ModelConfig], name: str) -> str:
    """The ensemble whose steps the model runs in one process; empty for any other model."""
    detector = _detector_of(configs, name)
    return detector if name == f"{detector}_{FUSED}" else ""


def _chain_of(configs: dict[str, ModelConfig], detector: str) -> Chain | None:
    """The family of a detector, even if some of its steps are missing; None for any other model."""
    return nearest_chain(detector, _steps(configs[detector])) if detector in configs else None


def _is_template(repository: Path, configs: dict[str, ModelConfig], name: str) -> bool:
    """Whether no engine of the model's detector was ever exported, so that no engine has a version folder.

    A step without a detector is also a template: Mask R-CNN's templates are only the steps that Faster R-CNN lacks.
    """
    detector = _detector_of(configs, name)
    if (chain := _chain_of(configs, detector)) is None:
        return is_step(name, [output.name for output in configs[name].output])
    return not any(any((repository / f"{detector}_{step.name}").glob("[0-9]*")) for step in chain.engines)


def _fault(repository: Path, configs: dict[str, ModelConfig], name: str) -> str:
    """What the model lacks and the command that writes it; empty if the model is complete."""
    if odd := _odd_names(configs, name):
        return f"Triton cannot start {', '.join(map(repr, odd))}: rename it, using only {PLAIN_CHARACTERS}"
    missing = _missing_files(repository, configs, name)
    if not missing:
        return ""
    fault = f"missing {', '.join(missing)}"
    detector = _detector_of(configs, name)
    if chain := _chain_of(configs, detector):
        family = chain.family
        option = "" if detector == family else f" --name {detector}"
        fault += f"; `rcnn-export {family}{option} --repository {repository}` writes it"
    return fault


def _odd_names(configs: dict[str, ModelConfig], name: str) -> list[str]:
    """The names of models and of their files that the shell would not pass on unchanged (see ``paths``)."""
    models = [name, *_steps(configs[name])]
    files = [configs[model].default_model_filename for model in models if model in configs]
    return [each for each in (*models, *files) if each and not is_plain(each)]


def _missing_files(repository: Path, configs: dict[str, ModelConfig], name: str) -> list[str]:
    if name not in configs:
        return [f"{name}/config.pbtxt"]
    config, folder = configs[name], repository / name
    versions = [path for path in folder.iterdir() if path.is_dir() and path.name.isdigit()]
    newest = max(versions, key=lambda path: int(path.name), default=folder / "1")
    if config.HasField("ensemble_scheduling"):
        own = [] if versions else [f"{name}/1/"]
        return own + [file for step in _steps(config) for file in _missing_files(repository, configs, step)]
    file_name = config.default_model_filename or "model.*"
    own = [] if any(newest.glob(file_name)) else [f"{name}/{newest.name}/{file_name}"]
    detector = _fused_detector(configs, name)
    return own + (_missing_files(repository, configs, detector) if detector else [])
