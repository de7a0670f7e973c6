"""Times Pipeline and torchvision in this process, from uint8 pictures on the device to answers on the host."""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from gpu_report import OURS, THEIRS, InProcess, name_of
from rcnn_backend.contract.chain import MASKS, RLES
from rcnn_backend.pipeline import Pipeline
from rcnn_export.detector.load import Detector
from torchvision.models.detection import FasterRCNN
from unpasted import unpasted

TURNS = 30
MASK_THRESH = 0.5
HEADS = ("box_head", "mask_head", "keypoint_head")  # torchvision's heads, which torch.compile compiles

Run = Callable[[Sequence[torch.Tensor], int], list[int]]


class Contender(NamedTuple):
    """``run`` takes uint8 RGB pictures [h, w, 3] on the device and the largest number of detections for each.

    It returns the number of detections of each picture, once the whole answer is on the host.
    """

    name: str
    run: Run


def measure_in_process(
    detector: Detector,
    pipeline: Pipeline,
    pictures: Sequence[np.ndarray],
    batches: Sequence[int],
    detections: Sequence[int],
    compiles: bool,
) -> list[InProcess]:
    """The median time for each contender, batch size and number of detections; the contenders take turns.

    Raises:
        ValueError: a picture has fewer detections than asked for.
    """
    target = torch.device("cuda" if pipeline.device.is_gpu else "cpu")
    contenders = make_contenders(detector, pipeline, target, compiles)
    uploaded = [torch.from_numpy(pixels).to(target) for pixels in pictures]
    rows = []
    for count in detections:
        for size in batches:
            batch = [uploaded[index % len(uploaded)] for index in range(size)]
            for contender in contenders:
                for _ in range(3):
                    check_counts(contender.name, contender.run(batch, count), count)
            turns = [[timed(contender, batch, count) for contender in contenders] for _ in range(TURNS)]
            for contender, times in zip(contenders, zip(*turns, strict=True), strict=True):
                median = statistics.median(times)
                rows.append(InProcess(name_of(detector), count, contender.name, size, median))
    return rows


def make_contenders(
    detector: Detector, pipeline: Pipeline, target: torch.device, compiles: bool
) -> list[Contender]:
    """torchvision in several ways, and the pipeline."""
    model = copy.deepcopy(detector.model).eval().to(target)
    contenders = [
        torchvision_contender("torchvision FP32", model, target, amp=False),
        torchvision_contender(THEIRS, model, target),
    ]
    if compiles:
        compiled = copy.deepcopy(model)
        compiled.backbone.compile()
        for head in filter(None, (getattr(compiled.roi_heads, name, None) for name in HEADS)):
            head.compile()
        contenders.append(torchvision_contender(f"{THEIRS}, compiled", compiled, target))
    if MASKS in detector.chain.answers:
        contenders.append(torchvision_contender(f"{THEIRS}, masks pasted", model, target, pastes=True))
    return [*contenders, Contender(OURS, lambda batch, count: run_pipeline(pipeline, batch, count))]


def torchvision_contender(
    name: str, model: FasterRCNN, target: torch.device, amp: bool = True, pastes: bool = False
) -> Contender:
    """The torch model itself. Pasted masks are thresholded at MASK_THRESH on the device and copied to the host as bool."""
    autocast = torch.autocast(target.type, enabled=amp and target.type == "cuda")

    def run(batch: Sequence[torch.Tensor], count: int) -> list[int]:
        model.roi_heads.detections_per_img = count
        ending = contextlib.nullcontext() if pastes else unpasted(model)
        with torch.inference_mode(), autocast, ending:
            found = model([picture.permute(2, 0, 1) / 255 for picture in batch])
            if pastes:
                found = [image | {"masks": image["masks"] > MASK_THRESH} for image in found]
            hosts = [{key: value.cpu() for key, value in image.items()} for image in found]
        return [len(image["scores"]) for image in hosts]

    return Contender(name, run)


def run_pipeline(pipeline: Pipeline, batch: Sequence[torch.Tensor], count: int) -> list[int]:
    """Runs the pipeline on the same pictures, without copying them."""
    wanted = {tensor.name for tensor in pipeline.chain.answers} - {RLES.name}
    options = pipeline.read_options({"detections_per_img": count}, wanted)
    with pipeline.device.active():
        pixels = [pipeline.device.import_array(picture) for picture in batch]
        (found,) = pipeline.detect_requests([(pixels, options)])
    if isinstance(found, Exception):
        raise found
    return [int(number) for number in found.num_detections[:, 0]]


def timed(contender: Contender, batch: Sequence[torch.Tensor], count: int) -> float:
    """Milliseconds of one run."""
    started = time.perf_counter()
    contender.run(batch, count)
    return 1e3 * (time.perf_counter() - started)


def check_counts(name: str, found: Sequence[int], count: int) -> None:
    """Checks that each picture has exactly ``count`` detections.

    Raises:
        ValueError: a picture has another number.
    """
    if any(number != count for number in found):
        raise ValueError(
            f"{name} found {', '.join(map(str, found))} detections, expected {count} in each picture: give --detections "
            "numbers that every picture reaches"
        )
