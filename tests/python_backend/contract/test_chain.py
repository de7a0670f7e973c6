"""What is derived from the declared families: which one models belong to, and what their steps check."""

import pytest
from rcnn_backend.contract.chain import (
    CHAINS,
    FASTER_RCNN,
    MASK_RCNN,
    Chain,
    chain_of_answers,
    chain_of_step,
    find_chain,
    nearest_chain,
)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_a_family_is_found_by_its_models_and_by_its_answers(chain: Chain) -> None:
    assert find_chain(chain.step_names("my_detector")) == (chain, "my_detector")
    assert nearest_chain("my_detector", chain.step_names("my_detector")) is chain
    assert chain_of_answers([tensor.name for tensor in chain.answers]) is chain


def test_the_same_step_of_two_families_is_told_by_its_outputs() -> None:
    for chain in (FASTER_RCNN, MASK_RCNN):
        outputs = [tensor.name for tensor in chain.outputs(chain.step("detections"), 4)]
        assert chain_of_step("detections", outputs) is chain
    with pytest.raises(KeyError, match="'detections' with the outputs boxes"):
        chain_of_step("detections", ["boxes"])


def test_every_tensor_between_the_steps_is_checked() -> None:
    """By the step that gets it, and what an engine gets by the step behind it: so no chain ends with an engine."""
    for chain in CHAINS.values():
        assert not chain.steps[-1].is_engine
        checked = {check.tensor.name for step in chain.steps for check in chain.checks(step)}
        made = {tensor.name for step in chain.steps for tensor in step.outputs}
        taken = {tensor.name for step in chain.steps for tensor in step.inputs}
        assert checked == made & taken


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_no_step_takes_an_answer(chain: Chain) -> None:
    """Triton would not make it for a request that does not need that step."""
    taken = {tensor for step in chain.steps for tensor in step.inputs}
    assert taken.isdisjoint(chain.answers)


def test_masks_add_their_steps_to_those_of_boxes() -> None:
    names = [step.name for step in MASK_RCNN.steps]
    own = ["mask_features", "mask_header", "masks", "rles"]
    assert names == [step.name for step in FASTER_RCNN.steps] + own
    assert MASK_RCNN.stages == [*FASTER_RCNN.stages, "mask_features", "masks"]
    senders = [tensor.name for tensor in MASK_RCNN.inputs(MASK_RCNN.step("masks"), 4)]
    assert senders[2:] == ["detections_samples", "mask_features_samples", "mask_header_samples"]
    senders = [tensor.name for tensor in MASK_RCNN.inputs(MASK_RCNN.step("rles"), 4)]
    assert senders[4:6] == ["preprocess_samples", "detections_samples"]
    assert senders[6:] == ["mask_features_samples", "mask_header_samples"]
