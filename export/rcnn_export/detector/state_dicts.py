"""Finds the state dict of a detector in a checkpoint.

A checkpoint nests state dicts in dicts, and wrappers put a prefix before every name: ``module.`` for
DistributedDataParallel, ``_orig_mod.`` for torch.compile, ``model.`` for a Lightning module. The names of every
torchvision R-CNN begin with ``backbone.``, ``rpn.`` and ``roi_heads.``, so any text before all three is a prefix.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rcnn_export.detector.foreign_weights import describe_names
from rcnn_export.detector.weights_file import SAVE_PLAIN, StandIn
from rcnn_export.errors import ExportError

PARTS = frozenset(("backbone", "rpn", "roi_heads"))
MAX_DEPTH = 20

# The keys under which training code usually saves the weights being trained.
_MODEL_KEYS = {
    "model",
    "model_state_dict",
    "model_state",
    "state_dict",
    "net",
    "network",
    "detector",
    "weights",
}
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGE = re.compile(r"(ema|swa|average|averaged|shadow|teacher)(?![a-z])", re.IGNORECASE)
_INNER_WRAPPER = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


@dataclass(frozen=True)
class StateDict:
    """The tensors of one detector, by their names in the detector.

    Attributes:
        path: the keys that lead to them in the file, separated by dots.
        prefix: the prefix removed from each name, including its last dot.
        num_left_out: how many tensors in the same dict are not part of a detector.
        batch_norm_eps: the eps of a whole pickled model; None if there is none, or if there are several.
    """

    tensors: dict[str, Tensor]
    path: str
    prefix: str
    num_left_out: int
    batch_norm_eps: float | None

    @property
    def key(self) -> str:
        """Its name for ``--weights-key``; empty for a plain state dict."""
        return ".".join(filter(None, (self.path, self.prefix.rstrip("."))))

    @property
    def is_average(self) -> bool:
        """Whether its key shows that it is an average over training, such as an EMA."""
        return _AVERAGE.search(self.key) is not None

    @property
    def is_usual(self) -> bool:
        """Whether its key is a common one for the weights being trained."""
        return set(self.key.split(".")) <= _MODEL_KEYS | _WRAPPERS | {""}


def choose_state_dict(content: Any, file: str, key: str | None) -> tuple[StateDict, list[StateDict]]:
    """The detector's state dict in the ``content`` of a file, and the other state dicts in it.

    If there are several, the weights being trained are preferred to their average (EMA), and those under a usual key,
    such as ``model``, ``state_dict`` or ``model_state_dict``, to others.

    Args:
        key: the key to use instead, with dots between nested keys.

    Raises:
        ExportError: there is none, there is none under ``key``, or the rules do not decide between several.
    """
    found = list(_find(content))
    if not found:
        raise ExportError(_describe(content, file))
    chosen = found
    if key is not None:
        chosen = [each for each in found if f"{each.key}.".startswith(f"{key}.")]
        if not chosen:
            keys = ", ".join(each.key for each in found if each.key) or "a plain state dict, without keys"
            raise ExportError(f"{file} has no detector under --weights-key {key}: it has {keys}")
    for is_better in (lambda each: not each.is_average, lambda each: each.is_usual):
        if len(chosen) > 1:
            chosen = list(filter(is_better, chosen)) or chosen
    if len(chosen) > 1:
        keys = ", ".join(each.key for each in chosen)
        raise ExportError(f"{file} holds several detectors, {keys}: choose one with --weights-key")
    return chosen[0], [each for each in found if each is not chosen[0]]


def _find(content: Any) -> Iterator[StateDict]:
    """Every detector in ``content``, in the order of the file."""
    for path, tensors, eps in _named_tensors(content, set()):
        names_of: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in _prefixes(tensors)}
        left_out = 0
        for name, tensor in tensors.items():
            owners = [prefix for prefix in names_of if name.startswith(prefix)]
            if owners:
                owner = max(owners, key=len)
                names_of[owner][_INNER_WRAPPER.sub("", name[len(owner) :])] = tensor
            elif name != "n_averaged":  # AveragedModel's count of updates
                left_out += 1
        for prefix, own in names_of.items():
            yield StateDict(own, ".".join(path), prefix, left_out, eps)


def _prefixes(names: Mapping[str, Tensor]) -> list[str]:
    parts_after: dict[str, set[str]] = defaultdict(set)
    for name in names:
        words = name.split(".")
        for position, word in enumerate(words):
            if word in PARTS:
                parts_after["".join(f"{before}." for before in words[:position])].add(word)
    return [prefix for prefix, parts in parts_after.items() if parts == PARTS]


def _named_tensors(
    node: Any, seen: set[int], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor], float | None]]:
    """Every dict or pickled model under ``node`` that contains tensors by name, once.

    Yields the keys that lead to it, its tensors, and the eps of batch normalisation of a model.
    """
    if len(path) > MAX_DEPTH or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, StandIn):
        if isinstance(node.state.get("_modules"), Mapping):
            yield path, *_state_dict_of(node)
            return
        node = node.state
    if isinstance(node, Mapping):
        tensors = {
            name: value for name, value in node.items() if isinstance(name, str) and isinstance(value, Tensor)
        }
        if tensors:
            yield path, tensors, None
        children: Any = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from _named_tensors(child, seen, (*path, str(key)))


def _state_dict_of(model: StandIn) -> tuple[dict[str, Tensor], float | None]:
    """The ``state_dict()`` of a pickled model, and its eps of batch normalisation if it has exactly one."""
    tensors: dict[str, Tensor] = {}
    eps: set[float] = set()
    for prefix, attributes in _modules(model):
        unsaved = attributes.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            own = attributes.get(kind)
            for name, value in own.items() if isinstance(own, Mapping) else ():
                if isinstance(value, Tensor) and not (isinstance(unsaved, set) and name in unsaved):
                    tensors[f"{prefix}{name}"] = value
                    if name == "running_var" and isinstance(attributes.get("eps"), float):
                        eps.add(attributes["eps"])
    return tensors, eps.pop() if len(eps) == 1 else None


def _modules(module: StandIn, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield prefix, module.state
    children = module.state.get("_modules")
    for name, child in children.items() if isinstance(children, Mapping) else ():
        if isinstance(child, StandIn) and prefix.count(".") < MAX_DEPTH:
            yield from _modules(child, f"{prefix}{name}.")


def _describe(content: Any, file: str) -> str:
    """Describes the content of a file without a detector."""
    groups = [tensors for _, tensors, _ in _named_tensors(content, set())]
    if not groups:
        kind = type(content).__name__
        return (
            f"{file} holds no state dict: no tensors with names, but an object of type {kind}. {SAVE_PLAIN}"
        )
    names = max(groups, key=len)
    return f"{file} holds {describe_names(names)}. Give weights of a torchvision Faster R-CNN"
