"""Which names a detector may have in a model repository, and which of the repository's folders belong to it."""

import re
from functools import partial
from pathlib import Path

from rcnn_backend.contract.chain import CHAINS
from rcnn_backend.contract.chain_types import Chain
from rcnn_backend.contract.configs import read_steps
from rcnn_backend.contract.find_chain import detector_of, nearest_chain

from rcnn_export.errors import ExportError
from rcnn_export.repository.configs import template_dir

MAX_FILE_NAME = 255  # bytes, on every usual file system


def check_name(name: str, chain: Chain, repository: Path) -> None:
    """Refuses a name that a detector of that family cannot have in the repository.

    Raises:
        ExportError: it is not a Triton model name, is too long, or one of its folders belongs to another detector.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ExportError(f"the name {name!r} is not a model name: use letters, digits, '_', '-' and '.'")
    models = chain.model_names(name)
    if (excess := max(map(len, models)) - MAX_FILE_NAME) > 0:
        raise ExportError(
            f"the name {name[:20]}... has {len(name)} characters: use at most {len(name) - excess}, as the folders of "
            "the steps add theirs"
        )
    for model in models:
        other = detector_of(model, partial(read_steps, repository))
        if other not in (None, name):
            raise ExportError(
                f"the detector {other} in {repository} has a model {model}, which {name} would replace: choose "
                "another name"
            )


def outdated_models(name: str, chain: Chain, repository: Path) -> list[str]:
    """The models of the earlier export of that name that an export of the family ``chain`` does not have.

    Raises:
        ExportError: they are templates, which later exports need.
    """
    steps_of = partial(read_steps, repository)
    earlier = nearest_chain(name, steps_of(name))
    outdated = [
        model
        for model in (earlier.model_names(name) if earlier else [])
        if model not in chain.model_names(name)
        and detector_of(model, steps_of) == name
        and (repository / model).exists()
    ]
    if outdated and name in CHAINS and repository.resolve() == template_dir().resolve():
        raise ExportError(
            f"{repository} has the templates of {name}, which an export of {chain.family} under this name would "
            "remove: choose another name"
        )
    return outdated
