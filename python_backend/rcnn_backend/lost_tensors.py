"""Proof that a Python step got the tensors that were sent to it.

On a GPU, Triton keeps what goes between the steps of an ensemble in a pool of fixed size. Once
that is full, a tensor can arrive as memory that nobody wrote, without any error. So whoever
makes tensors sends samples of them along: the first few elements of each image's part. An
engine sends samples of what it got and of what it made, and the next Python step compares.

Shapes: B images, S samples of one tensor: SAMPLES, or its last axis where that is shorter.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.devices import Array, Device
from rcnn_backend.errors import LostTensorError

SAMPLES = 4


class Sent(NamedTuple):
    """A tensor as it arrived, and the samples that its sender took of it."""

    name: str
    arrived: Array  # [B, ...]
    samples: Array  # [B, S]


def take_samples(tensors: Sequence[Array]) -> Array:
    """The samples of several tensors [B, ...] side by side: float32 [B, sum of S]."""
    if not isinstance(tensors[0], np.ndarray):
        from rcnn_backend.gpu import samples  # needs CuPy

        return samples.take_samples(tensors)
    corners = [tensor[(slice(None),) + (0,) * (tensor.ndim - 2)][:, :SAMPLES] for tensor in tensors]
    return np.concatenate(corners, axis=1, dtype=np.float32)


def warm_up(device: Device) -> None:
    """Compiles what ``take_samples`` runs on a GPU."""
    if device.is_gpu:
        from rcnn_backend.gpu import samples  # needs CuPy

        samples.warm_up()


def sent_to_proposals(tensors: Mapping[str, Array]) -> list[Sent]:
    """What reached the proposals step: by way of the RPN engine, and past it."""
    preprocess, rpn = tensors["preprocess_samples"], _Reader(tensors["rpn_samples"])
    features = sorted(name for name in tensors if name.startswith("feature_"))
    return [
        Sent("input", rpn.read(SAMPLES), preprocess[:, :SAMPLES]),
        Sent("image_sizes", tensors["image_sizes"], preprocess[:, SAMPLES:]),
        *(Sent(name, tensors[name], rpn.read_for(tensors[name])) for name in ("rpn_boxes", *features)),
    ]


def sent_to_detections(tensors: Mapping[str, Array]) -> list[Sent]:
    """What reached the detections step: by way of the header engine, and past it."""
    preprocess = tensors["preprocess_samples"]
    proposals, header = _Reader(tensors["proposals_samples"]), _Reader(tensors["header_samples"])
    pooled = tensors["proposals_samples"].shape[1] - SAMPLES - 1
    return [
        Sent("roialigned_feature", header.read(pooled), proposals.read(pooled)),
        Sent("proposals", header.read(SAMPLES), proposals.read(SAMPLES)),
        Sent("num_proposals", tensors["num_proposals"], proposals.read(1)),
        Sent("image_sizes", tensors["image_sizes"], preprocess[:, SAMPLES:]),
        *(
            Sent(name, tensors[name], header.read_for(tensors[name]))
            for name in ("class_scores", "class_boxes")
        ),
    ]


class _Reader:
    """Hands out the columns of samples [B, ...] from left to right."""

    def __init__(self, samples: Array) -> None:
        self._samples = samples
        self._next = 0

    def read(self, count: int) -> Array:
        self._next += count
        return self._samples[:, self._next - count : self._next]

    def read_for(self, tensor: Array) -> Array:
        return self.read(min(SAMPLES, tensor.shape[-1]))


class Comparison:
    """Samples of what arrived beside those that were sent, on their way to the host.

    Raises:
        ValueError: a sender took another number of samples.
    """

    def __init__(self, sent: Sequence[Sent]) -> None:
        self._names = [tensor.name for tensor in sent]
        self._widths = [tensor.samples.shape[1] for tensor in sent]
        for tensor, width in zip(sent, self._widths, strict=True):
            if width != min(SAMPLES, tensor.arrived.shape[-1]):
                raise ValueError(
                    f"{width} samples came with {tensor.name} {tensor.arrived.shape}: export the detector again"
                )
        samples = take_samples([tensor.arrived for tensor in sent] + [tensor.samples for tensor in sent])
        self._samples = samples if isinstance(samples, np.ndarray) else _start_download(samples)

    def lost(self) -> list[list[str]]:
        """For each image the tensors that are not those that were sent; on a GPU the stream is done by then."""
        total = sum(self._widths)
        arrived, expected = self._samples[:, :total], self._samples[:, total:]  # [B, total]
        if np.array_equal(arrived, expected):
            return [[] for _ in arrived]
        differs = ~((arrived == expected) | (np.isnan(arrived) & np.isnan(expected)))
        first = np.cumsum([0, *self._widths[:-1]])
        by_tensor = np.logical_or.reduceat(differs, first, axis=1)  # [B, tensors]
        return [[name for name, lost in zip(self._names, row, strict=True) if lost] for row in by_tensor]


def raise_if_lost(names: Sequence[str]) -> None:
    """Raises LostTensorError if there is a name, saying which setting of the server to change."""
    if names:
        raise LostTensorError(
            f"{', '.join(dict.fromkeys(names))} got lost between two steps: Triton's CUDA memory pool is full. Start the "
            "server with a larger --cuda-memory-pool-byte-size=<gpu>:<bytes>, or with "
            "--pinned-memory-pool-byte-size=0 (then nothing is lost, it is only slower), or send fewer "
            "requests at a time"
        )


def _start_download(samples: Array) -> npt.NDArray[np.float32]:
    """Starts the copy to the host on the current stream."""
    import cupyx  # optional

    host: npt.NDArray[np.float32] = cupyx.empty_pinned(samples.shape, samples.dtype)
    samples.get(out=host, blocking=False)
    return host
