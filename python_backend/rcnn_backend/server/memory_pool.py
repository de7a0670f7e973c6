"""The size of Triton's CUDA memory pool, which holds the tensors between the steps of an ensemble.

The pool has 64 MiB on each GPU by default and does not grow. A tensor that does not fit goes to Triton's
pinned memory, where the tensor of a Python step is lost. Without pinned memory it goes to ordinary memory,
which is only slower. So the pool is made large enough, and pinned memory is turned off.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelOutput

from rcnn_backend.contract.chain_types import bind, level_names
from rcnn_backend.contract.configs import read_configs, to_json
from rcnn_backend.contract.find_chain import find_chain
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
    read_parameters,
)
from rcnn_backend.errors import RepositoryError
from rcnn_backend.server.gpus import find_gpus

TRITON_DEFAULT_BYTES = 64 << 20
GPU_SHARE = 0.4  # the engines and the kernels need the rest
COPIES = 2  # the step that made a tensor holds it, and so does the next one, batched; and there are gaps
ELEMENT_BYTES = {
    **dict.fromkeys(("TYPE_BOOL", "TYPE_INT8", "TYPE_UINT8"), 1),
    **dict.fromkeys(("TYPE_FP16", "TYPE_BF16", "TYPE_INT16", "TYPE_UINT16"), 2),
    **dict.fromkeys(("TYPE_FP32", "TYPE_INT32", "TYPE_UINT32"), 4),
    **dict.fromkeys(("TYPE_FP64", "TYPE_INT64", "TYPE_UINT64"), 8),
    "TYPE_STRING": 0,  # never on a GPU
}


@dataclass(frozen=True)
class MemoryPool:
    """``flags``: for tritonserver. ``summary``: a line about the pool; empty if no pool was sized."""

    flags: list[str]
    summary: str


def size_pool(
    repository: Path, served: Sequence[str] | None, images_in_flight: int, flags: Sequence[str]
) -> MemoryPool:
    """Fits the pool of each visible GPU to the largest detector.

    Args:
        served: the models that are loaded; None if any model of the repository may be loaded.
        flags: the caller's flags for tritonserver, which take precedence.

    Returns:
        No flags on a machine without a GPU.

    Raises:
        RepositoryError: a config of a served detector cannot be understood.
    """
    num_gpus, gpu_bytes = find_gpus()
    if not num_gpus:
        return MemoryPool([], "")
    pinned, cuda = "--pinned-memory-pool-byte-size", "--cuda-memory-pool-byte-size"
    chosen = [] if any(flag.startswith(pinned) for flag in flags) else [f"{pinned}=0"]
    per_image = 0 if any(flag.startswith(cuda) for flag in flags) else _largest_image(repository, served)
    if not per_image:
        return MemoryPool(chosen, "")
    size = pool_bytes(per_image, images_in_flight, gpu_bytes)
    chosen += [f"{cuda}={gpu}:{size}" for gpu in range(num_gpus)]
    return MemoryPool(chosen, _summary(size, per_image, images_in_flight, num_gpus))


def pool_bytes(image_bytes: int, images_in_flight: int, gpu_bytes: int) -> int:
    """The size for that number of images, at most GPU_SHARE of the GPU's memory, at least Triton's default."""
    wanted = images_in_flight * COPIES * image_bytes
    return max(TRITON_DEFAULT_BYTES, min(wanted, int(GPU_SHARE * gpu_bytes)))


def image_bytes(configs: Mapping[str, ModelConfig], ensemble: str) -> int:
    """Bytes of all tensors between the steps of a detector, for one image of the largest size.

    0 for a model that is not an ensemble with the steps of a declared chain.

    Raises:
        RepositoryError: a step has no config, or a config lacks a parameter or a tensor.
    """
    models = [step.model_name for step in configs[ensemble].ensemble_scheduling.step]
    found = find_chain(models)
    if found is None:
        return 0
    chain, detector = found
    proposals = read_parameters(ProposalParameters, _as_dict(configs, f"{detector}_proposals"))
    strides = read_parameters(PoolParameters, _as_dict(configs, f"{detector}_proposals")).feature_strides
    detections = read_parameters(DetectionParameters, _as_dict(configs, f"{detector}_detections"))
    size_hw = _largest_size_hw(
        read_parameters(PreprocessParameters, _as_dict(configs, f"{detector}_preprocess"))
    )
    largest = {
        **_named_sides("", size_hw),
        "anchors": proposals.max_rpn_boxes,
        "proposals": proposals.padded_counts[-1],
        "head_detections": detections.detections_per_img,
    }
    levels = {
        name: _named_sides("level_", [math.ceil(side / stride) for side in size_hw])
        for name, stride in zip(level_names(len(strides)), strides, strict=True)
    }
    total = 0
    for step, tensor in chain.tensors_between(len(strides)):
        output = _output(configs, f"{detector}_{step.name}", tensor.name)
        sizes = bind(tensor.shape, largest | levels.get(tensor.name, {}))
        elements = math.prod(size if dim == -1 else dim for dim, size in zip(output.dims, sizes, strict=True))
        total += elements * ELEMENT_BYTES[DataType.Name(output.data_type)]
    return total


def _named_sides(prefix: str, size_hw: Sequence[int]) -> dict[str, int]:
    return {f"{prefix}height": size_hw[0], f"{prefix}width": size_hw[1]}


def _output(configs: Mapping[str, ModelConfig], model: str, name: str) -> ModelOutput:
    """A model's declaration of one output."""
    outputs = {output.name: output for output in _config(configs, model).output}
    if name not in outputs:
        raise RepositoryError(
            f"{model}/config.pbtxt has no output {name!r}, which a later step takes: export the detector again with rcnn-export"
        )
    return outputs[name]


def _largest_image(repository: Path, served: Sequence[str] | None) -> int:
    """``image_bytes`` of the largest detector that is served."""
    try:
        configs = read_configs(repository)
        return max(image_bytes(configs, name) for name in (configs if served is None else served))
    except RepositoryError:
        if served is not None:
            raise
        return 0  # the faulty model may never be loaded


def _summary(size: int, per_image: int, images_in_flight: int, num_gpus: int) -> str:
    place = "GPU 0" if num_gpus == 1 else f"each of {num_gpus} GPUs"
    pool, each = f"CUDA memory pool: {_readable(size)} on {place}", f"({_readable(per_image)} each, twice)"
    covered = size // (COPIES * per_image)
    if covered >= images_in_flight:
        return f"{pool}, for {images_in_flight} images in flight {each}"
    limit = f"at most {GPU_SHARE:.0%} of its memory"
    return f"{pool}, {limit}, for {covered} of {images_in_flight} images in flight {each}; more are slower"


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _largest_size_hw(parameters: PreprocessParameters) -> tuple[int, int]:
    """The padded size of the largest image; an image that fits none of padded_sizes_hw keeps its own size."""
    sides = parameters.fixed_size_hw or (min(parameters.min_size, parameters.max_size), parameters.max_size)
    divisor = parameters.size_divisible
    height, width = (math.ceil(side / divisor) * divisor for side in sides)
    return max([(height, width), *((h, w) for h, w in parameters.padded_sizes_hw)], key=math.prod)


def _config(configs: Mapping[str, ModelConfig], model: str) -> ModelConfig:
    if model not in configs:
        raise RepositoryError(f"there is no {model}/config.pbtxt: export the detector again with rcnn-export")
    return configs[model]


def _as_dict(configs: Mapping[str, ModelConfig], model: str) -> dict[str, Any]:
    """A model's config in the JSON form that Triton gives its Python models."""
    return to_json(_config(configs, model))
