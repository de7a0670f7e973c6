"""Proof that a Python step got the tensors that were sent to it.

On a GPU, Triton keeps what goes between the steps of an ensemble in a pool of fixed size. Once
that is full, a tensor can arrive as memory that nobody wrote, without any error. So whoever
makes tensors sends samples of them along: of each image's part the first few elements, and the
largest magnitude of its middle, which is not zero as memory that nobody wrote often is. An engine
sends samples of what it got and of what it made, and the next Python step compares.

Shapes: B images, S samples of one tensor, see ``num_samples``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.devices import Array, Device
from rcnn_backend.errors import LostTensorError

Float = npt.NDArray[np.float32]

FIRST = 4  # elements
WIDE = FIRST + 1  # samples of a tensor whose last axis has FIRST elements or more
SUFFIX = "_samples"  # of the tensors that hold samples of others


class Sent(NamedTuple):
    """Samples of one tensor: of what arrived, and those that were sent with it."""

    name: str
    arrived: Float  # [B, S]
    sent: Float  # [B, S]


def take_samples(tensors: Sequence[Array]) -> Array:
    """The samples of several tensors [B, ...] side by side: float32 [B, sum of S]."""
    return _gather(tensors, [True] * len(tensors))


def num_samples(columns: int) -> int:
    """S of a tensor whose last axis has so many elements."""
    return min(FIRST, columns) + 1


def _gather(tensors: Sequence[Array], sampled: Sequence[bool]) -> Array:
    """Side by side, float32 [B, ...]: the samples of each tensor [B, ...], or, not ``sampled``, all of it [B, n].

    The first elements are those along the last axis, at 0 of all others but the first. The middle is
    that of the last axis but one, at every place of the others.
    """
    if not isinstance(tensors[0], np.ndarray):
        from rcnn_backend.operators.gpu.samples import gather  # needs CuPy

        return gather(tensors, sampled)
    parts = []
    for tensor, is_sampled in zip(tensors, sampled, strict=True):
        if not is_sampled:
            parts.append(tensor)
            continue
        parts.append(tensor[(slice(None),) + (0,) * (tensor.ndim - 2)][:, :FIRST])
        middle = tensor if tensor.ndim == 2 else tensor[..., tensor.shape[-2] // 2, :]
        parts.append(np.abs(middle).max(axis=tuple(range(1, middle.ndim)))[:, None])
    return np.concatenate(parts, axis=1, dtype=np.float32)


def warm_up(device: Device) -> None:
    """Compiles what ``take_samples`` runs on a GPU."""
    take_samples([device.upload(np.zeros((1, 1), np.float32))])


class Arrived:
    """Samples of all tensors of a batch as they arrived, on their way to the host."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        sampled = [not name.endswith(SUFFIX) for name in tensors]
        self._widths = {
            name: num_samples(tensor.shape[-1]) if is_sampled else int(tensor.shape[-1])
            for (name, tensor), is_sampled in zip(tensors.items(), sampled, strict=True)
        }
        samples = _gather(list(tensors.values()), sampled)
        self._samples: Float = samples if isinstance(samples, np.ndarray) else start_download(samples)

    def by_name(self) -> dict[str, Float]:
        """[B, S] of each tensor, all of one that holds samples; on a GPU the stream is done by then."""
        ends = np.cumsum(list(self._widths.values()))
        parts = np.split(self._samples, ends[:-1], axis=1)
        return dict(zip(self._widths, parts, strict=True))


def start_download(samples: Array) -> Any:
    """Starts the copy to the host on the current stream."""
    import cupyx  # optional

    host = cupyx.empty_pinned(samples.shape, samples.dtype)
    samples.get(out=host, blocking=False)
    return host


def sent_to_proposals(arrived: Mapping[str, Float]) -> Iterator[Sent]:
    """What the proposals step gets, by way of the RPN engine and past it, from ``Arrived.by_name``."""
    preprocess, rpn = _Reader(arrived["preprocess_samples"]), _Reader(arrived["rpn_samples"])
    yield Sent("input", rpn.read(WIDE), preprocess.read(WIDE))
    yield Sent("image_sizes", arrived["image_sizes"], preprocess.read(WIDE))
    features = sorted(name for name in arrived if name.startswith("feature_"))
    for name in ("rpn_boxes", *features):
        yield Sent(name, arrived[name], rpn.read(arrived[name].shape[1]))


def sent_to_detections(arrived: Mapping[str, Float]) -> Iterator[Sent]:
    """What the detections step gets, by way of the header engine and past it, from ``Arrived.by_name``."""
    proposals, header = _Reader(arrived["proposals_samples"]), _Reader(arrived["header_samples"])
    pooled = arrived["proposals_samples"].shape[1] - WIDE - num_samples(1)
    yield Sent("roialigned_feature", header.read(pooled), proposals.read(pooled))
    yield Sent("proposals", header.read(WIDE), proposals.read(WIDE))
    yield Sent("num_proposals", arrived["num_proposals"], proposals.read(num_samples(1)))
    yield Sent("image_sizes", arrived["image_sizes"], arrived["preprocess_samples"][:, WIDE:])
    for name in ("class_scores", "class_boxes"):
        yield Sent(name, arrived[name], header.read(arrived[name].shape[1]))


class _Reader:
    """Hands out the columns of samples [B, ...] from left to right."""

    def __init__(self, samples: Float) -> None:
        self._samples = samples
        self._next = 0

    def read(self, count: int) -> Float:
        self._next += count
        return self._samples[:, self._next - count : self._next]


def find_lost(sent: Iterator[Sent], batch: int) -> list[list[str]]:
    """For each of the ``batch`` images the tensors that are not what was sent.

    Raises:
        ValueError: a sender took another number of samples.
    """
    lost: list[list[str]] = [[] for _ in range(batch)]
    for name, arrived, expected in sent:
        if np.array_equal(arrived, expected):
            continue
        if arrived.shape != expected.shape:
            raise ValueError(
                f"{expected.shape[1]} samples came with {name}, expected {arrived.shape[1]}: export the detector again"
            )
        same = (arrived == expected) | (np.isnan(arrived) & np.isnan(expected))
        for image in np.flatnonzero(~same.all(axis=1)):
            lost[image].append(name)
    return lost


def raise_if_lost(names: Sequence[str]) -> None:
    """Raises LostTensorError if there is a name, saying which setting of the server to change."""
    if names:
        raise LostTensorError(
            f"{', '.join(dict.fromkeys(names))} got lost between two steps: Triton's CUDA memory pool is full. "
            "Start the server with a larger --cuda-memory-pool-byte-size=<gpu>:<bytes>, or with "
            "--pinned-memory-pool-byte-size=0 (then nothing is lost, it is only slower), or send fewer "
            "requests at a time"
        )
