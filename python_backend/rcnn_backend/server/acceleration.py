"""Makes detectors fast: with MPS for the processes of their steps on a GPU, or with their fused models anywhere.

Without either, the five steps of an ensemble take turns on the GPU. On a CPU, passing tensors between processes
takes a seventh of a request's time, and the processes need more than twice the memory.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rcnn_backend.contract.chain_types import FUSED
from rcnn_backend.errors import RepositoryError, ServerError
from rcnn_backend.server.gpus import steps_use_gpu
from rcnn_backend.server.model_selection import ModelSelection
from rcnn_backend.server.mps import running_mps

AUTO, ON, OFF = "auto", "on", "off"


@dataclass(frozen=True)
class Acceleration:
    """What was chosen for the server.

    ``environment``: variables for the server. ``fused``: the detectors that are served by their fused models.
    ``notes``: lines for the user about these choices.
    """

    environment: Mapping[str, str]
    fused: list[str]
    notes: list[str]


def accelerate(
    mps: str, fused: str, models: ModelSelection | None, folder: Path, opened: contextlib.ExitStack
) -> Acceleration:
    """Starts MPS and chooses the detectors to serve by their fused models.

    Args:
        mps: AUTO: on a GPU, start MPS if possible; ON: start it or raise an error.
        fused: AUTO: wherever MPS is off; ON: always.
        models: the models to serve; None if they are not known here, and then nothing is fused.
        folder: for the files of MPS.
        opened: ends MPS when it is closed.

    Raises:
        ServerError: MPS is ON and cannot be started.
        RepositoryError: the fused models are ON and one is missing.
    """
    on_gpu = AUTO in (mps, fused) and steps_use_gpu()
    environment: Mapping[str, str] | None = None
    notes = []
    if mps == ON or (mps == AUTO and on_gpu):
        try:
            environment = opened.enter_context(running_mps(folder))
            notes.append("MPS is on: the processes of the steps run concurrently on the GPU")
        except ServerError as error:
            if mps == ON:
                raise ServerError(f"MPS cannot be started: {error}. --mps auto serves without it") from error
            notes.append(
                f"MPS is off, and without it an ensemble serves less than half as many pictures a second: {error}"
            )
    ensembles = models.ensembles if models else {}
    if fused == ON and (lacking := [name for name, is_fusible in ensembles.items() if not is_fusible]):
        raise RepositoryError(
            f"--fused on needs {lacking[0]}_{FUSED}, which is missing or served by its own name: export the "
            "detector again, or omit --fused"
        )
    fusible = [name for name, is_fusible in ensembles.items() if is_fusible]
    if fused == ON or (fused == AUTO and environment is None):
        notes += [
            f"{name} is served by {name}_{FUSED}: one process, faster than the steps" for name in fusible
        ]
        return Acceleration(environment or {}, fusible, notes)
    if on_gpu:
        notes += [f"{name}_{FUSED} is faster still: --fused on serves it as {name}" for name in fusible]
    return Acceleration(environment or {}, [], notes)
