"""The steps of each family of detectors. They are declared here and nowhere else.

Derived from these declarations: the wiring of the ensembles, the names of the models, the samples by which a step
finds lost tensors, the size of the memory pool, the engines to export, and the stages of rcnn-verify.

Shapes are those of one image, without the batch axis. A word stands for a size that is not the same everywhere:

    picture_height, picture_width   a picture as sent, in pixels
    height, width                   a padded batch, in pixels
    level_height, level_width       one level of the feature pyramid
    channels                        of the feature pyramid
    anchors, proposals, detections  rows an image
    classes                         foreground classes
    pooled_height, pooled_width     one pooled RoI
    head_detections                 detections an image, padded to one of a few sizes
    head_pooled_height, ..._width   one RoI pooled for the head that runs on the detections
    map_height, map_width           one mask or heatmap
    keypoints                       of one detection
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from rcnn_backend.contract.samples import NUM_SAMPLES, SUFFIX

FP32, FP16, INT32, INT64 = "TYPE_FP32", "TYPE_FP16", "TYPE_INT32", "TYPE_INT64"
UINT8, BYTES = "TYPE_UINT8", "TYPE_STRING"
NETWORK = "network"  # FP32, or FP16 in an FP16 export
LEVEL = "feature_"  # feature_0 is the finest level that RoIs are pooled from
PIXELS, FUSED = "pixels", "fused"  # <name>_pixels takes pixels, <name>_fused runs all steps in one process


@dataclass(frozen=True)
class Tensor:
    """``is_pyramid``: one such tensor for each pooled level, ``feature_0`` and so on."""

    name: str
    data_type: str
    shape: tuple[int | str, ...]
    is_optional: bool = False
    is_pyramid: bool = False


@dataclass(frozen=True)
class ChainStep:
    """One model of the ensemble.

    ``stages``: what rcnn-verify compares of the step with torchvision, in this order.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_engine: bool = False
    stages: tuple[str, ...] = ()

    @property
    def counted(self) -> str:
        """The output that says how many rows of the others are real; empty without one."""
        return next((tensor.name for tensor in self.outputs if tensor.name.startswith("num_")), "")

    @property
    def sampled(self) -> tuple[Tensor, ...]:
        """The tensors whose samples the step sends: what it made, and for an engine also what it got."""
        return (*self.inputs, *self.outputs) if self.is_engine else self.outputs


@dataclass(frozen=True)
class Check:
    """A comparison that a Python step makes: ``receiver`` got ``tensor`` from ``sender``.

    Both send samples of it; a ``receiver`` of None is the step that checks, which samples the tensor itself.
    """

    tensor: Tensor
    receiver: ChainStep | None
    sender: ChainStep


@dataclass(frozen=True)
class Chain:
    """The steps of one family, in the order the data flows.

    ``answers``: what clients get; its ensembles and its fused model have these outputs. No step takes one of them:
    Triton leaves out the steps that no wanted answer needs, and with them any answer that only they take, wanted or not.
    ``head``: what runs on the final detections, such as ``mask``; the names of its steps begin with it.
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
        """What rcnn-verify compares with torchvision."""
        return [stage for step in self.steps for stage in step.stages]

    @property
    def head_steps(self) -> tuple[ChainStep, ...]:
        """The steps of the head that runs on the final detections; none without one."""
        detections = [step.name for step in self.steps].index("detections")
        return self.steps[detections + 1 :]

    def step(self, name: str) -> ChainStep:
        """The step of that name.

        Raises:
            KeyError: the family has no such step.
        """
        return {step.name: step for step in self.steps}[name]

    def model_names(self, detector: str) -> list[str]:
        """The models of a detector, those that answer clients first."""
        return [detector, *(f"{detector}_{part}" for part in (PIXELS, FUSED)), *self.step_names(detector)]

    def step_names(self, detector: str) -> list[str]:
        """The models of a detector's steps."""
        return [f"{detector}_{step.name}" for step in self.steps]

    def inputs(self, step: ChainStep, levels: int) -> list[Tensor]:
        """All inputs of the step's model, with those that carry samples, for a pyramid of so many levels."""
        return [*expand(step.inputs, levels), *(samples_of(sender, levels) for sender in self._senders(step))]

    def outputs(self, step: ChainStep, levels: int) -> list[Tensor]:
        """All outputs of the step's model, with its samples where a later step compares them."""
        samples = [samples_of(step, levels)] if self.sends_samples(step) else []
        return [*expand(step.outputs, levels), *samples]

    def sends_samples(self, step: ChainStep) -> bool:
        """Whether a later step compares the samples of this one."""
        return any(step in self._senders(other) for other in self.steps)

    def checks(self, step: ChainStep) -> list[Check]:
        """What a Python step compares: all that it got, and all that an engine before it got."""
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
        """The step that makes the tensor; None for what a client sends."""
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
    """The tensors of a pyramid of so many pooled levels, finest first."""
    return [f"{LEVEL}{level}" for level in range(levels)]


def count_levels(names: Collection[str]) -> int:
    """How many pyramid levels are among the names of tensors."""
    return sum(name.startswith(LEVEL) for name in names)


def pyramid(tensors: Mapping[str, Any]) -> list[Any]:
    """The pyramid levels among the tensors, finest first."""
    return [tensors[name] for name in level_names(count_levels(tensors))]


def samples_of(step: ChainStep, levels: int) -> Tensor:
    """The tensor of all samples that the step sends: NUM_SAMPLES of each tensor in ``step.sampled``, side by side."""
    return Tensor(step.name + SUFFIX, FP32, (NUM_SAMPLES * len(expand(step.sampled, levels)),))


@cache  # it is asked for every batch
def sample_columns(step: ChainStep, levels: int) -> Mapping[str, slice]:
    """Where the samples of each tensor stand in those that the step sends."""
    names = [tensor.name for tensor in expand(step.sampled, levels)]
    return {name: slice(first * NUM_SAMPLES, (first + 1) * NUM_SAMPLES) for first, name in enumerate(names)}


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


def bind(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> list[int]:
    """The shape in numbers; -1 for a word that has no size here."""
    return [size if isinstance(size, int) else sizes.get(size, -1) for size in shape]


IMAGE = Tensor("image", BYTES, (1,), is_optional=True)
PIXEL_IMAGE = Tensor(PIXELS, UINT8, ("picture_height", "picture_width", 3), is_optional=True)
INPUT = Tensor("input", NETWORK, (3, "height", "width"))
IMAGE_SIZES = Tensor("image_sizes", FP32, (4,))
RPN_BOXES = Tensor("rpn_boxes", FP32, ("anchors", 6))
FEATURES = Tensor("features", NETWORK, ("channels", "level_height", "level_width"), is_pyramid=True)
PROPOSALS = Tensor("proposals", FP32, ("proposals", 4))
POOLED = Tensor("roialigned_feature", NETWORK, ("proposals", "channels", "pooled_height", "pooled_width"))
NUM_PROPOSALS = Tensor("num_proposals", INT32, (1,))
CLASS_SCORES = Tensor("class_scores", FP32, ("proposals", "classes"))
CLASS_BOXES = Tensor("class_boxes", FP32, ("proposals", "classes", 4))
BOXES = Tensor("boxes", FP32, ("detections", 4))
SCORES = Tensor("scores", FP32, ("detections",))
LABELS = Tensor("labels", INT64, ("detections",))
NUM_DETECTIONS = Tensor("num_detections", INT32, (1,))

# The detections for the steps behind them.
DETECTED_BOXES = Tensor("detected_boxes", FP32, ("detections", 4))  # in pixels of the resized image
DETECTED_LABELS = Tensor("detected_labels", INT64, ("detections",))
NUM_DETECTED = Tensor("num_detected", INT32, (1,))
MASK_PROBABILITIES = Tensor("mask_probabilities", FP16, ("head_detections", "map_height", "map_width"))
MASKS = Tensor("masks", FP16, ("detections", "map_height", "map_width"))
RLES = Tensor("rles", BYTES, ("detections",))
HEATMAPS = Tensor("heatmaps", NETWORK, ("head_detections", "keypoints", "map_height", "map_width"))
KEYPOINTS = Tensor("keypoints", FP32, ("detections", "keypoints", 3))
KEYPOINT_SCORES = Tensor("keypoint_scores", FP32, ("detections", "keypoints"))

TO_CLASS_BOXES = (
    ChainStep("preprocess", (IMAGE, PIXEL_IMAGE), (INPUT, IMAGE_SIZES), stages=("input",)),
    ChainStep("rpn", (INPUT,), (RPN_BOXES, FEATURES), is_engine=True, stages=("features", "rpn_boxes")),
    ChainStep(
        "proposals",
        (RPN_BOXES, FEATURES, IMAGE_SIZES),
        (PROPOSALS, POOLED, NUM_PROPOSALS),
        stages=("proposals", "roialigned_feature"),
    ),
    ChainStep("header", (POOLED, PROPOSALS), (CLASS_SCORES, CLASS_BOXES), is_engine=True, stages=("header",)),
)
DETECTIONS = ChainStep(
    "detections",
    (CLASS_SCORES, CLASS_BOXES, NUM_PROPOSALS, IMAGE_SIZES),
    (BOXES, SCORES, LABELS, NUM_DETECTIONS),
    stages=("detections",),
)
FASTER_RCNN = Chain("faster_rcnn", (*TO_CLASS_BOXES, DETECTIONS), DETECTIONS.outputs)


def with_head(
    family: str, head: str, also: tuple[Tensor, ...], made: Tensor, stage: str, *last: ChainStep
) -> Chain:
    """Faster R-CNN, and a head that runs on the final detections.

    Args:
        also: what its engine takes of the detections, beside their pooled features.
        made: what the engine makes of them.
        stage: what rcnn-verify calls that.
        last: the steps that answer. An engine ends no chain: its successor compares what it got and made with what
            arrived.
    """
    shape = ("head_detections", "channels", "head_pooled_height", "head_pooled_width")
    features = Tensor(f"{head}_features", NETWORK, shape)
    steps = (
        *TO_CLASS_BOXES,
        replace(DETECTIONS, outputs=(*DETECTIONS.outputs, DETECTED_BOXES, *also, NUM_DETECTED)),
        ChainStep(
            features.name, (FEATURES, DETECTED_BOXES, NUM_DETECTED), (features,), stages=(features.name,)
        ),
        ChainStep(f"{head}_header", (features, *also), (made,), is_engine=True, stages=(stage,)),
        *last,
    )
    return Chain(family, steps, (*FASTER_RCNN.answers, *(out for step in last for out in step.outputs)), head)


MASK_RCNN = with_head(
    "mask_rcnn",
    "mask",
    (DETECTED_LABELS,),
    MASK_PROBABILITIES,
    "masks",
    ChainStep("masks", (MASK_PROBABILITIES, NUM_DETECTED), (MASKS,)),
    ChainStep("rles", (MASK_PROBABILITIES, DETECTED_BOXES, NUM_DETECTED, IMAGE_SIZES), (RLES,)),
)
KEYPOINT_RCNN = with_head(
    "keypoint_rcnn",
    "keypoint",
    (),
    HEATMAPS,
    "heatmaps",
    ChainStep(
        "keypoints",
        (HEATMAPS, DETECTED_BOXES, NUM_DETECTED, IMAGE_SIZES),
        (KEYPOINTS, KEYPOINT_SCORES),
        stages=("keypoints",),
    ),
)
CHAINS = {chain.family: chain for chain in (FASTER_RCNN, MASK_RCNN, KEYPOINT_RCNN)}
