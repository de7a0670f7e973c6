"""Finds the family and the detector that models belong to, by their names and outputs."""

from collections.abc import Callable, Collection

from rcnn_backend.contract.chain import CHAINS
from rcnn_backend.contract.chain_types import Chain, count_levels


def find_chain(models: Collection[str]) -> tuple[Chain, str] | None:
    """The family and the name of a detector all of whose steps are among ``models``; None if there is none."""
    for chain in sorted(CHAINS.values(), key=lambda chain: -len(chain.steps)):
        first = f"_{chain.steps[0].name}"
        for detector in (model.removesuffix(first) for model in models if model.endswith(first)):
            if set(chain.step_names(detector)) <= set(models):
                return chain, detector
    return None


def chain_of_answers(outputs: Collection[str]) -> Chain | None:
    """The family whose ensembles and fused model have these outputs; None if no family has.

    Some outputs may be missing: of the families that have the given outputs, this is the one with the fewest answers.
    """
    having = [c for c in CHAINS.values() if {*outputs} <= {tensor.name for tensor in c.answers}]
    return min(having, key=lambda chain: len(chain.answers), default=None)


def chain_of_step(name: str, outputs: Collection[str]) -> Chain:
    """A family whose step ``name`` has these outputs. If several families share the step, any of them will do.

    Raises:
        KeyError: no family has such a step.
    """
    for chain in CHAINS.values():
        for step in chain.steps:
            made = {tensor.name for tensor in chain.outputs(step, count_levels(outputs))}
            if step.name == name and made == {*outputs}:
                return chain
    raise KeyError(f"no family has a step {name!r} with the outputs {', '.join(outputs)}")


def nearest_chain(detector: str, models: Collection[str]) -> Chain | None:
    """The family with the most steps of the detector among ``models``; None if no family has any."""
    shared = {family: len({*chain.step_names(detector)} & {*models}) for family, chain in CHAINS.items()}
    family = max(shared, key=lambda family: shared[family])
    return CHAINS[family] if shared[family] else None


def detector_of(model: str, steps_of: Callable[[str], Collection[str]]) -> str | None:
    """The detector that the model belongs to, as its ensemble, a step, or its pixels or fused model; None without one.

    The name alone is ambiguous: ``my_mask_header`` may be the header of ``my_mask``, or the mask header of ``my``.

    Args:
        steps_of: returns the models of the steps of an ensemble in the repository, and nothing for other names.
    """
    words = model.split("_")
    for detector in ("_".join(words[:end]) for end in range(len(words), 0, -1)):
        chain = nearest_chain(detector, steps_of(detector))
        if chain and model in chain.model_names(detector):
            return detector
    return None


def is_step(model: str, outputs: Collection[str]) -> bool:
    """Whether a model has the name and the outputs of a step of any detector."""
    return any(
        model.endswith(f"_{step.name}")
        and {tensor.name for tensor in chain.outputs(step, count_levels(outputs))} == {*outputs}
        for chain in CHAINS.values()
        for step in chain.steps
    )
