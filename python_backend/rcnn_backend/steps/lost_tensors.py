"""Checks that a Python step got the tensors that were sent to it.

On a GPU, Triton keeps the tensors between the steps of an ensemble in a pool of fixed size. When
the pool is full, a tensor can arrive as uninitialised memory, without any error. So every step also sends
samples of the tensors that it makes: for each image, the first few elements and the
largest magnitude in the middle of its part. The latter is rarely zero, and uninitialised memory
often is. An engine sends samples of its inputs, too. The next Python step takes samples of the tensors that
arrived and compares them with those that were sent.

Shapes: B images, S = NUM_SAMPLES samples of one tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.contract.chain_types import Chain, ChainStep, count_levels, expand, sample_columns
from rcnn_backend.contract.samples import FIRST, NUM_SAMPLES, SUFFIX
from rcnn_backend.devices import Array, Device
from rcnn_backend.errors import LostTensorError

Float = npt.NDArray[np.floating[Any]]
TINY = np.finfo(np.float32).tiny  # a GPU may flush smaller numbers to zero


class Sent(NamedTuple):
    """Samples of one tensor: taken by the step that received it, and by the step that sent it."""

    name: str
    arrived: Float  # [B, S], float16 for a float16 tensor, otherwise float32
    sent: Float  # [B, S] float32


def take_samples(tensors: Sequence[Array]) -> Array:
    """The samples of several tensors [B, ...], concatenated: float32 [B, sum of S]."""
    return _gather(tensors, [True] * len(tensors))


def _gather(tensors: Sequence[Array], sampled: Sequence[bool]) -> Array:
    """Concatenates the samples of each tensor [B, ...], or all of it [B, n] if not ``sampled``: float32 [B, ...].

    The first elements are taken along the last axis, at index 0 of the axes between it and the batch. The
    middle is the middle index of the last axis but one, with all indices of the other axes.
    """
    if not isinstance(tensors[0], np.ndarray):
        from rcnn_backend.operators.gpu.samples import gather  # needs CuPy

        return gather(tensors, sampled)
    parts = []
    for tensor, is_sampled in zip(tensors, sampled, strict=True):
        if not is_sampled:
            parts.append(tensor)
            continue
        first = tensor[(slice(None),) + (0,) * (tensor.ndim - 2)][:, :FIRST]
        parts.append(np.pad(first, ((0, 0), (0, FIRST - first.shape[1]))))
        middle = tensor if tensor.ndim == 2 else tensor[..., tensor.shape[-2] // 2, :]
        parts.append(np.abs(middle).max(axis=tuple(range(1, middle.ndim)))[:, None])
    return np.concatenate(parts, axis=1, dtype=np.float32)


def warm_up(device: Device) -> None:
    """Compiles the GPU kernels of ``take_samples``."""
    take_samples([device.upload(np.zeros((1, 1), np.float32))])


class Arrived:
    """Samples of all tensors of a batch as they arrived. On a GPU, their copy to the host has only begun."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        sampled = [not name.endswith(SUFFIX) for name in tensors]
        self._widths = {
            name: NUM_SAMPLES if is_sampled else int(tensor.shape[-1])
            for (name, tensor), is_sampled in zip(tensors.items(), sampled, strict=True)
        }
        samples = _gather(list(tensors.values()), sampled)
        self._samples: Float = samples if isinstance(samples, np.ndarray) else start_download(samples)
        self._halves = {name for name, tensor in tensors.items() if tensor.dtype == np.float16}

    def by_name(self) -> dict[str, Float]:
        """The samples [B, S] of each tensor, or the whole tensor [B, n] if it holds samples of others.

        Samples of a float16 tensor are float16, all others float32. On a GPU, the stream must have been
        synchronised before.
        """
        ends = np.cumsum(list(self._widths.values()))
        parts = np.split(self._samples, ends[:-1], axis=1)
        return {
            name: part.astype(np.float16) if name in self._halves else part
            for name, part in zip(self._widths, parts, strict=True)
        }


def start_download(samples: Array) -> Any:
    """Starts the copy to the host on the current stream; the array is filled once the stream is done."""
    import cupyx  # optional

    host = cupyx.empty_pinned(samples.shape, samples.dtype)
    samples.get(out=host, blocking=False)
    return host


def sent_to(chain: Chain, step: ChainStep, arrived: Mapping[str, Float]) -> Iterator[Sent]:
    """The tensors that the step got from earlier steps, and those that an engine before it got.

    Args:
        arrived: the result of ``Arrived.by_name``.
    """
    levels = count_levels(arrived)

    def samples(sender: ChainStep, name: str) -> Float:
        return arrived[sender.name + SUFFIX][:, sample_columns(sender, levels)[name]]

    for check in chain.checks(step):
        for name in (tensor.name for tensor in expand([check.tensor], levels)):
            got = samples(check.receiver, name) if check.receiver else arrived[name]
            yield Sent(name, got, samples(check.sender, name))


def find_lost(sent: Iterator[Sent], batch: int) -> list[list[str]]:
    """For each of the ``batch`` images, the names of the tensors that differ from what was sent.

    Raises:
        ValueError: a sender took a different number of samples.
    """
    lost: list[list[str]] = [[] for _ in range(batch)]
    for name, arrived, expected in sent:
        if np.array_equal(arrived, expected):
            continue
        if arrived.shape != expected.shape:
            raise ValueError(
                f"{expected.shape[1]} samples came with {name}, expected {arrived.shape[1]}: export the detector again"
            )
        for image in np.flatnonzero(~_are_same(arrived, expected).all(axis=1)):
            lost[image].append(name)
    return lost


def _are_same(arrived: Float, sent: Float) -> npt.NDArray[np.bool_]:
    """Which samples [B, S] differ by at most one unit in the last place of the type that arrived.

    An engine may take its samples before it rounds a tensor to float16, or compute them in a different
    order from the tensor. NaN equals only NaN.
    """
    with np.errstate(over="ignore"):  # values too large for float16 become infinite, as in the tensor
        rounded = sent.astype(arrived.dtype)
    same = np.abs(_places(arrived) - _places(rounded)) <= 1
    same |= np.maximum(np.abs(arrived), np.abs(sent)) <= TINY
    nans = np.isnan(arrived), np.isnan(sent)
    return np.where(nans[0] | nans[1], nans[0] & nans[1], same)


def _places(values: Float) -> npt.NDArray[np.int64]:
    """The rank of each value among all values of its type: neighbours are 1 apart, and both zeros are at 0."""
    magnitudes = np.abs(values).view(f"i{values.itemsize}").astype(np.int64)
    return np.where(np.signbit(values), -magnitudes, magnitudes)


def raise_if_lost(names: Sequence[str]) -> None:
    """Refuses a request that lost the tensors ``names``.

    Raises:
        LostTensorError: ``names`` is not empty; the message says which setting of the server to change.
    """
    if names:
        raise LostTensorError(
            f"{', '.join(dict.fromkeys(names))} got lost between two steps: Triton's CUDA memory pool is full. "
            "Start the server with a larger --cuda-memory-pool-byte-size=<gpu>:<bytes>, or with "
            "--pinned-memory-pool-byte-size=0 (then nothing is lost, it is only slower), or send fewer "
            "requests at a time"
        )
