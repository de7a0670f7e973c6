"""Compares each stage of the fused pipeline with its floor: the shortest time that the GPU's measured rates allow."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from rcnn_backend.contract.chain_types import pyramid
from rcnn_backend.devices import Array, Device, Gpu
from rcnn_backend.engines.load import Engine
from rcnn_backend.operators.detections import detect, override
from rcnn_backend.operators.heads import ANSWERS, HeadOutput, pool_detections, real_rows, run_packed
from rcnn_backend.operators.preprocess import preprocess
from rcnn_backend.operators.proposals import propose
from rcnn_backend.pipeline import Pipeline
from rcnn_export.detector.load import Detector
from rcnn_export.engines.stages import Stage, engine_stage
from torch.utils.flop_counter import FlopCounterMode

RUNS = 20
MATRIX_SIDE = 8192
COPY_BYTES = 1 << 30
META = {"f": torch.float32, "i": torch.int64}  # by NumPy's kind; the modules are FP32 here


class StageTime(NamedTuple):
    """Milliseconds per batch, and the fewest that the bytes or the operations of the stage can take."""

    stage: str
    time_ms: float
    floor_ms: float


def measure_stages(
    pipeline: Pipeline,
    detector: Detector,
    pictures: Sequence[np.ndarray],
    encoded: Sequence[bytes],
    detections: int,
) -> list[StageTime]:
    """Times the stages of one batch. Each is run many times by itself.

    Args:
        pictures: uint8 RGB [h, w, 3].
        encoded: the same as JPEGs.
        detections: the largest number of detections for each.
    """
    device = pipeline.device
    target = torch.device("cuda" if device.is_gpu else "cpu")
    dtype = torch.float16 if pipeline.input_dtype == np.float16 else torch.float32
    bytes_per_ms, flop_per_ms = measure_bandwidth(target), measure_matrix_rate(target, dtype)

    with device.active():
        pixels = [device.upload(picture) for picture in pictures]
        network_input, sizes = preprocess(pixels, pipeline.preprocess_parameters, pipeline.input_dtype)
        rpn = pipeline.engines["rpn"].run({"input": network_input})
        proposals = propose(
            rpn["rpn_boxes"], pyramid(rpn), sizes, pipeline.proposal_parameters, pipeline.pool_parameters
        )
        pooled = {"roialigned_feature": proposals.roialigned_feature, "proposals": proposals.boxes}
        classes = pipeline.engines["header"].run(pooled)
        scores, boxes = classes["class_scores"], classes["class_boxes"]
        parameters = [override(pipeline.detection_parameters, {"detections_per_img": detections})] * len(
            pixels
        )
        most = pipeline.detection_parameters.detections_per_img

        def flop_ms(stage: Stage, *inputs: Any) -> float:
            return count_flop(stage, inputs) / flop_per_ms

        def bytes_ms(*arrays: Any) -> float:
            return float(sum(array.nbytes for array in arrays) / bytes_per_ms)

        stages: list[tuple[str, Callable[[], object], float]] = [
            ("decode JPEGs", lambda: pipeline.decoder.decode_requests([encoded]), bytes_ms(*pixels)),
            (
                "preprocess",
                lambda: preprocess(pixels, pipeline.preprocess_parameters, pipeline.input_dtype),
                bytes_ms(*pixels, network_input),
            ),
            (
                "RPN engine",
                as_served(pipeline.engines["rpn"], {"input": network_input}, device),
                flop_ms(engine_stage(detector.model, "rpn"), network_input),
            ),
            (
                "NMS, RoIAlign",
                lambda: propose(
                    rpn["rpn_boxes"],
                    pyramid(rpn),
                    sizes,
                    pipeline.proposal_parameters,
                    pipeline.pool_parameters,
                ),
                bytes_ms(rpn["rpn_boxes"], *pyramid(rpn), proposals.roialigned_feature),
            ),
            (
                "header engine",
                as_served(pipeline.engines["header"], pooled, device),
                flop_ms(engine_stage(detector.model, "header"), *pooled.values()),
            ),
            (
                "detections",
                lambda: detect(scores, boxes, proposals.num_proposals, sizes, parameters, most),
                bytes_ms(scores, boxes),
            ),
        ]
        if head := pipeline.head:
            found = detect(scores, boxes, proposals.num_proposals, sizes, parameters, most)
            (counts,) = device.download([found.num_detections])

            def pool() -> Any:
                return pool_detections(
                    pyramid(rpn), found.detected_boxes, counts, head.parameters, head.pooling
                )

            features = pool()
            made = head.run(features, found.labels)
            header = pipeline.chain.step(f"{pipeline.chain.head}_header")
            inputs = (features, found.labels)[: len(header.inputs)]
            output = HeadOutput(real_rows(made, counts), found.detected_boxes, sizes, counts)
            first = head.answering_steps[0].name
            stages += [
                (f"{pipeline.chain.head} RoIAlign", pool, bytes_ms(features)),
                (
                    f"{pipeline.chain.head} header engine",
                    lambda: head.run(features, found.labels),
                    flop_ms(engine_stage(detector.model, header.name), *inputs),
                ),
                (
                    f"{pipeline.chain.head} packing",
                    lambda: run_packed(lambda *_: made, features, found.labels, counts, head.parameters),
                    bytes_ms(features, features),
                ),
                (
                    first,
                    lambda: ANSWERS[first](output),
                    bytes_ms(made),
                ),
            ]
        return [StageTime(name, time_ms(run, device.synchronize), floor_ms) for name, run, floor_ms in stages]


def as_served(engine: Engine, inputs: Mapping[str, Array], device: Device) -> Callable[[], object]:
    """Runs the engine on these inputs, as a CUDA graph if the pipeline captures engines of its kind."""
    if not isinstance(device, Gpu) or not engine.is_capturable:
        return lambda: engine.run(inputs)
    from rcnn_backend.engines.graphs import GraphCache  # needs CuPy

    def run(*arrays: Array) -> list[Array]:
        return list(engine.run(dict(zip(inputs, arrays, strict=True))).values())

    graphs = GraphCache(run, device)
    for _ in range(2):
        graphs(*inputs.values())
    return lambda: graphs(*inputs.values())


def measure_bandwidth(target: torch.device) -> float:
    """Bytes read or written per millisecond, by a copy."""
    source = torch.zeros(COPY_BYTES if target.type == "cuda" else COPY_BYTES >> 4, dtype=torch.uint8)
    source = source.to(target)
    copied = torch.empty_like(source)
    return 2 * source.nbytes / time_ms(lambda: copied.copy_(source), _synchronizer(target))


def measure_matrix_rate(target: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per millisecond, by a square matrix product; FP32 does not use TF32."""
    side = MATRIX_SIDE if target.type == "cuda" else MATRIX_SIDE >> 4
    left, right = (torch.randn(side, side, device=target, dtype=dtype) for _ in range(2))
    return 2 * side**3 / time_ms(lambda: left @ right, _synchronizer(target))


def count_flop(stage: Stage, inputs: Sequence[Any]) -> float:
    """Floating-point operations of the convolutions and matrix products, from the shapes of the inputs."""
    module = copy.deepcopy(stage.module).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*(torch.empty(array.shape, dtype=META[array.dtype.kind], device="meta") for array in inputs))
    return float(counter.get_total_flops())


def time_ms(run: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Milliseconds per run, over many runs in a row."""
    for _ in range(math.ceil(RUNS / 4)):
        run()
    synchronize()
    started = time.perf_counter()
    for _ in range(RUNS):
        run()
    synchronize()
    return 1e3 * (time.perf_counter() - started) / RUNS


def _synchronizer(target: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if target.type == "cuda" else lambda: None
