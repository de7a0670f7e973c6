"""What is derived from the declared families: which family models belong to, and what their steps check."""

import pytest
from rcnn_backend.contract.chain import CHAINS, FASTER_RCNN, KEYPOINT_RCNN, MASK_RCNN
from rcnn_backend.contract.chain_types import Chain
from rcnn_backend.contract.find_chain import (
    chain_of_answers,
    chain_of_step,
    detector_of,
    find_chain,
    is_step,
    nearest_chain,
)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_a_family_is_found_by_its_models_and_by_its_answers(chain: Chain) -> None:
    assert find_chain(chain.step_names("my_detector")) == (chain, "my_detector")
    assert nearest_chain("my_detector", chain.step_names("my_detector")) is chain
    assert chain_of_answers([tensor.name for tensor in chain.answers]) is chain


def test_answers_may_be_left_out() -> None:
    assert chain_of_answers(["boxes", "masks"]) is MASK_RCNN
    assert chain_of_answers(["boxes", "keypoints"]) is KEYPOINT_RCNN
    assert chain_of_answers(["boxes"]) is FASTER_RCNN
    assert chain_of_answers(["boxes", "angles"]) is chain_of_answers(["masks", "keypoints"]) is None


def owner_in(repository: dict[str, Chain], model: str) -> str | None:
    """``detector_of`` among detectors of these names, each with its ensemble."""
    ensembles = {name: chain.step_names(name) for name, chain in repository.items()}
    return detector_of(model, lambda name: ensembles.get(name, []))


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
@pytest.mark.parametrize(
    "name", ["my", "my_mask", "a_fused", "a_pixels", "rpn", "x_keypoint", "x_masks", "b.2-c"]
)
def test_each_model_has_its_detector_whatever_its_name(chain: Chain, name: str) -> None:
    for model in chain.model_names(name):
        assert owner_in({name: chain}, model) == name


def test_names_that_begin_alike_are_distinguished_by_the_ensembles() -> None:
    repository = {"my": FASTER_RCNN, "my_mask": FASTER_RCNN, "other": MASK_RCNN}
    for name, chain in repository.items():
        for model in chain.model_names(name):
            assert owner_in(repository, model) == name
    assert owner_in({"my": MASK_RCNN}, "my_mask_header") == "my"
    assert owner_in({"my_mask": FASTER_RCNN}, "my_mask_header") == "my_mask"
    for stray in ("my_mask_features", "my_other", "mymask_rpn", "my", "rpn", "_rpn"):
        assert owner_in({"my_mask": MASK_RCNN}, stray) is None


def test_a_step_without_its_detector_is_recognised_by_name_and_outputs() -> None:
    assert is_step("my_masks", ["masks"]) and is_step("a_rpn", ["rpn_boxes", "feature_0", "rpn_samples"])
    assert not is_step("my_masks", ["labels"]) and not is_step("segment_anything", ["masks"])


def test_the_same_step_of_two_families_is_distinguished_by_its_outputs() -> None:
    for chain in (FASTER_RCNN, MASK_RCNN):
        outputs = [tensor.name for tensor in chain.outputs(chain.step("detections"), 4)]
        assert chain_of_step("detections", outputs) is chain
    with pytest.raises(KeyError, match="'detections' with the outputs boxes"):
        chain_of_step("detections", ["boxes"])


def test_every_tensor_between_the_steps_is_checked() -> None:
    """The receiving step checks a tensor; what an engine gets is checked by the step after it. So no engine is last."""
    for chain in CHAINS.values():
        assert not chain.steps[-1].is_engine
        checked = {check.tensor.name for step in chain.steps for check in chain.checks(step)}
        made = {tensor.name for step in chain.steps for tensor in step.outputs}
        taken = {tensor.name for step in chain.steps for tensor in step.inputs}
        assert checked == made & taken


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_no_step_takes_an_answer(chain: Chain) -> None:
    """Triton would drop the answer from a request that does not need that step."""
    taken = {tensor for step in chain.steps for tensor in step.inputs}
    assert taken.isdisjoint(chain.answers)


def test_a_head_adds_its_steps_to_those_of_boxes() -> None:
    for chain, steps, stages in (
        (MASK_RCNN, ["mask_features", "mask_header", "masks", "rles"], ["mask_features", "masks"]),
        (
            KEYPOINT_RCNN,
            ["keypoint_features", "keypoint_header", "keypoints"],
            ["keypoint_features", "heatmaps", "keypoints"],
        ),
    ):
        assert [step.name for step in chain.steps] == [*(step.name for step in FASTER_RCNN.steps), *steps]
        assert [step.name for step in chain.head_steps] == steps
        assert chain.stages == [*FASTER_RCNN.stages, *stages]
    assert not FASTER_RCNN.head_steps
    senders = [tensor.name for tensor in MASK_RCNN.inputs(MASK_RCNN.step("masks"), 4)]
    assert senders[2:] == ["detections_samples", "mask_features_samples", "mask_header_samples"]
    senders = [tensor.name for tensor in MASK_RCNN.inputs(MASK_RCNN.step("rles"), 4)]
    assert senders[4:6] == ["preprocess_samples", "detections_samples"]
    assert senders[6:] == ["mask_features_samples", "mask_header_samples"]
