"""Which family and which detector models belong to, by their names and outputs."""

from collections.abc import Callable, Collection

from rcnn_backend.contract.chain import CHAINS
from rcnn_backend.contract.chain_types import Chain, count_levels


def find_chain(models: Collection[str]) -> tuple[Chain, str] | None:
    """The family and the name of the detector whose steps the ``models`` are; None if they are not all there."""
    for chain in sorted(CHAINS.values(), key=lambda chain: -len(chain.steps)):
        first = f"_{chain.steps[0].name}"
        for detector in (model.removesuffix(first) for model in models if model.endswith(first)):
            if set(chain.step_names(detector)) <= set(models):
                return chain, detector
    return None


def chain_of_answers(outputs: Collection[str]) -> Chain | None:
    """The family whose ensembles and fused model have these outputs; None if none has.

    Some may be left out: then it is the family with the fewest answers that has these.
    """
    having = [c for c in CHAINS.values() if {*outputs} <= {tensor.name for tensor in c.answers}]
    return min(having, key=lambda chain: len(chain.answers), default=None)


def chain_of_step(name: str, outputs: Collection[str]) -> Chain:
    """The family whose step ``name`` has these outputs. Families that share a step are the same to it.

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
    """The family that has the most steps of the detector among the ``models``; None if none has any."""
    shared = {family: len({*chain.step_names(detector)} & {*models}) for family, chain in CHAINS.items()}
    family = max(shared, key=lambda family: shared[family])
    return CHAINS[family] if shared[family] else None


def detector_of(model: str, steps_of: Callable[[str], Collection[str]]) -> str | None:
    """The detector that has the model: as its ensemble, a step, or its pixels or fused model. None if none has.

    A name alone does not tell: ``my_mask_header`` may be the header of ``my_mask``, or the mask header of ``my``.

    Args:
        steps_of: the models of the steps of an ensemble in the repository; nothing for any other name.
    """
    words = model.split("_")
    for detector in ("_".join(words[:end]) for end in range(len(words), 0, -1)):
        chain = nearest_chain(detector, steps_of(detector))
        if chain and model in chain.model_names(detector):
            return detector
    return None


def is_step(model: str, outputs: Collection[str]) -> bool:
    """Whether a model has the name and the outputs of a step, whatever its detector."""
    return any(
        model.endswith(f"_{step.name}")
        and {tensor.name for tensor in chain.outputs(step, count_levels(outputs))} == {*outputs}
        for chain in CHAINS.values()
        for step in chain.steps
    )
