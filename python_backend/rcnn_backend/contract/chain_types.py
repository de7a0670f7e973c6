"""The parts of a chain of steps: its tensors, its steps, and what is derived from them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from rcnn_backend.contract.samples import NUM_SAMPLES, SUFFIX

FP32, FP16, INT32, INT64 = "TYPE_FP32", "TYPE_FP16", "TYPE_INT32", "TYPE_INT64"
UINT8, BYTES = "TYPE_UINT8", "TYPE_STRING"
NETWORK = "network"  # FP32, or FP16 in an FP16 export
LEVEL = "feature_"  # feature_0 is the finest level from which RoIs are pooled
PIXELS, FUSED = "pixels", "fused"  # <name>_pixels takes pixels, <name>_fused runs all steps in one process


@dataclass(frozen=True)
class Tensor:
    """A tensor of a chain. ``is_pyramid``: there is one for each pooled level, ``feature_0`` and so on."""

    name: str
    data_type: str
    shape: tuple[int | str, ...]
    is_optional: bool = False
    is_pyramid: bool = False


@dataclass(frozen=True)
class ChainStep:
    """One model of the ensemble.

    ``stages``: what rcnn-verify compares with torchvision for this step, in this order.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_engine: bool = False
    stages: tuple[str, ...] = ()

    @property
    def counted(self) -> str:
        """The output that says how many rows of the other outputs are real; empty if there is none."""
        return next((tensor.name for tensor in self.outputs if tensor.name.startswith("num_")), "")

    @property
    def sampled(self) -> tuple[Tensor, ...]:
        """The tensors whose samples the step sends: its outputs, and for an engine also its inputs."""
        return (*self.inputs, *self.outputs) if self.is_engine else self.outputs


@dataclass(frozen=True)
class Check:
    """A comparison that a Python step makes: did ``receiver`` get ``tensor`` as ``sender`` sent it?

    Both send samples of the tensor. If ``receiver`` is None, the checking step received the tensor and samples it.
    """

    tensor: Tensor
    receiver: ChainStep | None
    sender: ChainStep


@dataclass(frozen=True)
class Chain:
    """The steps of one family, in the order in which data flows through them.

    ``answers``: what clients get; these are the outputs of the family's ensembles and its fused model. No step takes an
    answer as its input: Triton skips the steps that no requested answer needs, and then also drops every answer that
    only such a step takes, even if it was requested.
    ``head``: the head that runs on the final detections, such as ``mask``; the names of its steps begin with it.
    """

    family: str
    steps: tuple[ChainStep, ...]
    answers: tuple[Tensor, ...] = ()
    head: str = ""

    @property
    def engines(self) -> list[ChainStep]:
        """The steps that are engines."""
        return [step for step in self.steps if step.is_engine]

    @property
    def stages(self) -> list[str]:
        """The stages that rcnn-verify compares with torchvision."""
        return [stage for step in self.steps for stage in step.stages]

    @property
    def head_steps(self) -> tuple[ChainStep, ...]:
        """The steps of the head that runs on the final detections; empty without a head."""
        detections = [step.name for step in self.steps].index("detections")
        return self.steps[detections + 1 :]

    def step(self, name: str) -> ChainStep:
        """The step with this name.

        Raises:
            KeyError: the family has no such step.
        """
        return {step.name: step for step in self.steps}[name]

    def model_names(self, detector: str) -> list[str]:
        """The models of a detector. Those that answer clients come first."""
        return [detector, *(f"{detector}_{part}" for part in (PIXELS, FUSED)), *self.step_names(detector)]

    def step_names(self, detector: str) -> list[str]:
        """The models of a detector's steps."""
        return [f"{detector}_{step.name}" for step in self.steps]

    def inputs(self, step: ChainStep, levels: int) -> list[Tensor]:
        """All inputs of the step's model, including those with samples, for a pyramid with ``levels`` levels."""
        return [*expand(step.inputs, levels), *(samples_of(sender, levels) for sender in self._senders(step))]

    def outputs(self, step: ChainStep, levels: int) -> list[Tensor]:
        """All outputs of the step's model, including its samples if a later step compares them."""
        samples = [samples_of(step, levels)] if self.sends_samples(step) else []
        return [*expand(step.outputs, levels), *samples]

    def sends_samples(self, step: ChainStep) -> bool:
        """Whether a later step compares the samples of this one."""
        return any(step in self._senders(other) for other in self.steps)

    def checks(self, step: ChainStep) -> list[Check]:
        """The comparisons of a Python step: all tensors that it got, and all that an engine before it got."""
        if step.is_engine:
            return []
        found = []
        for sender in self.steps:
            made = [tensor for tensor in step.inputs if self._sender(tensor) is sender]
            if sender.is_engine and made:
                found += [self._check(tensor, sender) for tensor in sender.inputs]
        return found + [self._check(tensor, None) for tensor in step.inputs if self._sender(tensor)]

    def tensors_between(self, levels: int) -> Iterator[tuple[ChainStep, Tensor]]:
        """Each tensor that one step makes and another takes, with its maker."""
        taken = {tensor.name for step in self.steps for tensor in self.inputs(step, levels)}
        for step in self.steps:
            for tensor in self.outputs(step, levels):
                if tensor.name in taken:
                    yield step, tensor

    def _check(self, tensor: Tensor, receiver: ChainStep | None) -> Check:
        sender = self._sender(tensor)
        assert sender is not None, f"no step makes {tensor.name}"
        return Check(tensor, receiver, sender)

    def _sender(self, tensor: Tensor) -> ChainStep | None:
        """The step that makes the tensor; None if a client sends it."""
        return next((step for step in self.steps if tensor in step.outputs), None)

    def _senders(self, step: ChainStep) -> list[ChainStep]:
        """The steps whose samples the step takes."""
        checks = self.checks(step)
        return [sender for sender in self.steps if any(sender in (c.sender, c.receiver) for c in checks)]


def expand(tensors: Collection[Tensor], levels: int) -> list[Tensor]:
    """The tensors, with one for each level in place of the pyramid."""
    return [
        replace(tensor, name=name)
        for tensor in tensors
        for name in (level_names(levels) if tensor.is_pyramid else [tensor.name])
    ]


def level_names(levels: int) -> list[str]:
    """The names of the tensors of a pyramid with ``levels`` pooled levels, finest first."""
    return [f"{LEVEL}{level}" for level in range(levels)]


def count_levels(names: Collection[str]) -> int:
    """How many pyramid levels are among the names of tensors."""
    return sum(name.startswith(LEVEL) for name in names)


def pyramid(tensors: Mapping[str, Any]) -> list[Any]:
    """The pyramid levels among the tensors, finest first."""
    return [tensors[name] for name in level_names(count_levels(tensors))]


def samples_of(step: ChainStep, levels: int) -> Tensor:
    """The tensor with all samples that the step sends: NUM_SAMPLES of each tensor in ``step.sampled``, concatenated."""
    return Tensor(step.name + SUFFIX, FP32, (NUM_SAMPLES * len(expand(step.sampled, levels)),))


@cache  # it is needed for every batch
def sample_columns(step: ChainStep, levels: int) -> Mapping[str, slice]:
    """The columns of each tensor's samples among all samples that the step sends."""
    names = [tensor.name for tensor in expand(step.sampled, levels)]
    return {name: slice(first * NUM_SAMPLES, (first + 1) * NUM_SAMPLES) for first, name in enumerate(names)}


def bind(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> list[int]:
    """The shape in numbers; -1 for a word that is not in ``sizes``."""
    return [size if isinstance(size, int) else sizes.get(size, -1) for size in shape]
