"""The whole detector in one process: the order of calls that the ensemble spreads over its steps."""

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rcnn_backend.batches import run_batches
from rcnn_backend.contract.chain import LABELS, Chain, ChainStep, chain_of_answers, pyramid
from rcnn_backend.contract.configs import read_config
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    HeadParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
    read_dtype,
    read_parameters,
)
from rcnn_backend.devices import Array, Cpu, Device, Gpu
from rcnn_backend.engines.load import Engine, load_engine
from rcnn_backend.errors import InvalidInputError, RepositoryError
from rcnn_backend.operators import detections as detecting
from rcnn_backend.operators import preprocess as preprocessing
from rcnn_backend.operators import proposals as proposing
from rcnn_backend.operators.decode import ImageDecoder
from rcnn_backend.operators.detections import Detections, detect, override
from rcnn_backend.operators.heads import ANSWERS, Counts, pool_detections, run_packed
from rcnn_backend.operators.preprocess import preprocess
from rcnn_backend.operators.proposals import propose
from rcnn_backend.operators.sizes import group_by_size, padded_size_hw, resized_size_hw

VERSION = "1"


@dataclass(frozen=True)
class Head:
    """A head that runs on the final detections: its step in the chain, its engine, what it pools, and its answers."""

    step: ChainStep
    engine: Engine
    parameters: HeadParameters
    pooling: PoolParameters
    answer: Callable[[Array, Array, Array, Counts], dict[str, Array]]

    def run(self, pooled: Array, labels: Array) -> Array:
        """What its engine makes of pooled features [B, M, C, h, w] and labels [B, D]: [B, M, ...]."""
        features, *also = self.step.inputs
        inputs = {features.name: pooled} | ({LABELS.name: labels} if LABELS in also else {})
        (made,) = self.step.outputs
        return self.engine.run(inputs)[made.name]


@dataclass(frozen=True)
class Pipeline:
    """A detector loaded from a model repository, on the CPU or on a GPU.

    >>> pipeline = Pipeline.load(Path("model_repository"), "faster_rcnn")
    >>> detections = pipeline.detect([Path("photo.jpg").read_bytes()])
    """

    chain: Chain
    device: Device
    decoder: ImageDecoder
    engines: Mapping[str, Engine]  # by the step's name
    preprocess_parameters: PreprocessParameters
    proposal_parameters: ProposalParameters
    pool_parameters: PoolParameters
    detection_parameters: DetectionParameters
    head: Head | None  # of a family with one on the final detections
    input_dtype: np.dtype[Any]
    class_names: list[str]

    @classmethod
    def load(
        cls,
        repository: Path,
        name: str,
        device: Device | None = None,
        load_engine: Callable[[Path, Device], Engine] = load_engine,
    ) -> "Pipeline":
        """Reads the configs and engines that rcnn-export wrote for the detector ``name``.

        Args:
            device: ``rcnn_backend.devices.Gpu(0)``, say; the CPU by default.
            load_engine: what loads the engine of a version folder for that device.

        Raises:
            RepositoryError: one of them is missing or wrong.
        """
        device = device or Cpu()
        config = read_config(repository / name)
        chain = _read_chain(config)
        engines = {
            step.name: load_engine(repository / f"{name}_{step.name}" / VERSION, device)
            for step in chain.engines
        }
        preprocess_config = read_config(repository / f"{name}_preprocess")
        preprocess_parameters = read_parameters(PreprocessParameters, preprocess_config)
        proposals_config = read_config(repository / f"{name}_proposals")
        detections_config = read_config(repository / f"{name}_detections")
        class_names = config.get("parameters", {}).get("class_names", {})
        head = None
        if chain.head:
            features_config = read_config(repository / f"{name}_{chain.head}_features")
            header = chain.step(f"{chain.head}_header")
            head = Head(
                header,
                engines[header.name],
                read_parameters(HeadParameters, features_config),
                read_parameters(PoolParameters, features_config),
                ANSWERS[chain.head],
            )
        return cls(
            chain=chain,
            device=device,
            decoder=ImageDecoder(preprocess_parameters, device),
            engines=engines,
            preprocess_parameters=preprocess_parameters,
            proposal_parameters=read_parameters(ProposalParameters, proposals_config),
            pool_parameters=read_parameters(PoolParameters, proposals_config),
            detection_parameters=read_parameters(DetectionParameters, detections_config),
            head=head,
            input_dtype=np.dtype(read_dtype(preprocess_config, "input")),
            class_names=json.loads(class_names.get("string_value", "[]")),
        )

    def detect(
        self, images: Sequence[bytes | npt.NDArray[np.uint8]], overrides: Mapping[str, Any] | None = None
    ) -> Detections:
        """Detects in one batch of images, encoded or uint8 RGB [h, w, 3].

        Args:
            overrides: score_thresh, nms_thresh or detections_per_img for this call.

        Returns:
            NumPy arrays; with ``masks``, or ``keypoints`` and ``keypoint_scores``, from a family that has them.

        Raises:
            InvalidInputError: an image or an override cannot be used.
        """
        parameters = override(self.detection_parameters, overrides or {})
        with self.device.active():
            return Detections.from_answers(
                self._download(self.run(self._read(images), [parameters] * len(images)))
            )

    def detect_requests(
        self, requests: Sequence[tuple[Sequence[Array], DetectionParameters]]
    ) -> list[Detections | Exception]:
        """Detects in the pixels of several requests, in one batch for all that are padded to the same size.

        Returns:
            For each request what ``run`` gives for it alone, as NumPy arrays, or why it cannot run.
        """
        groups = group_by_size([pixels for pixels, _ in requests], self.preprocess_parameters)
        results = run_batches(
            lambda numbers: self._detect_group([requests[number] for number in numbers]), groups, self.device
        )
        return [results[number] for number in range(len(requests))]

    def _detect_group(
        self, requests: Sequence[tuple[Sequence[Array], DetectionParameters]]
    ) -> list[Detections]:
        """Detects in one batch, and gives each request its part of the arrays."""
        pixels = [image for images, _ in requests for image in images]
        found = self.run(pixels, [parameters for images, parameters in requests for _ in images])
        arrays = self._download(found)
        ends = itertools.accumulate(len(images) for images, _ in requests)
        return [
            Detections.from_answers({name: array[end - len(images) : end] for name, array in arrays.items()})
            for (images, _), end in zip(requests, ends, strict=True)
        ]

    def _download(self, found: Detections) -> dict[str, npt.NDArray[Any]]:
        """What clients get, on the host."""
        names = [tensor.name for tensor in self.chain.answers]
        hosts = self.device.download([found.answer(name) for name in names])
        return dict(zip(names, hosts, strict=True))

    def run(self, pixels: Sequence[Array], parameters: Sequence[DetectionParameters]) -> Detections:
        """The order of calls, from uint8 RGB [h, w, 3] on the device to detections on the device.

        Args:
            parameters: the thresholds of each image.
        """
        network_input, image_sizes = preprocess(pixels, self.preprocess_parameters, self.input_dtype)
        class_scores, class_boxes, num_proposals, *features = self._networks(network_input, image_sizes)
        found = detect(
            class_scores,
            class_boxes,
            num_proposals,
            image_sizes,
            parameters,
            self.detection_parameters.detections_per_img,
        )
        return self._with_head(self.head, features, found, image_sizes) if self.head else found

    def _with_head(
        self, head: Head, features: Sequence[Array], found: Detections, image_sizes: Array
    ) -> Detections:
        """The detections with the head's answers; how many there are is waited for."""
        (counts,) = self.device.download([found.num_detections])
        pooled = pool_detections(features, found.detected_boxes, counts, head.parameters, head.pooling)
        made = run_packed(head.run, pooled, found.labels, counts, head.parameters)
        return found._replace(of_head=head.answer(made, found.detected_boxes, image_sizes, counts))

    @functools.cached_property
    def _networks(self) -> Callable[[Array, Array], Sequence[Array]]:
        """``run_networks``, as CUDA graphs if the device and all engines allow it."""
        run = functools.partial(
            run_networks,
            self.engines,
            self.proposal_parameters,
            self.pool_parameters,
            self.head is not None,
        )
        if not (isinstance(self.device, Gpu) and self._is_capturable):
            return run
        from rcnn_backend.engines.graphs import GraphCache  # needs CuPy

        return GraphCache(run, self.device)

    @property
    def _is_capturable(self) -> bool:
        return all(engine.is_capturable for engine in self.engines.values())

    def warm_up(self, max_batch_size: int) -> None:
        """On a GPU, compiles what ``run`` runs, and runs the networks on each size that is known beforehand.

        These are ``padded_sizes_hw``, or the size of the largest landscape picture if there are none. Engines
        that become CUDA graphs are captured for every batch up to ``max_batch_size`` of each size; others
        run one picture of each. What is not warmed: any other size of pictures, such as upright ones without
        ``padded_sizes_hw``. The first batches of such a size wait for their kernels and their graph.

        Raises:
            InvalidInputError: an engine takes none of these sizes.
        """
        if not self.device.is_gpu:
            return
        preprocessing.warm_up(self.preprocess_parameters, self.device, self.input_dtype)
        proposing.warm_up(self.proposal_parameters, self.pool_parameters, self.device)
        detecting.warm_up(self.detection_parameters, self.device)
        largest_batch = max_batch_size if self._is_capturable else 1
        sizes_hw = _sizes_to_warm(self.preprocess_parameters)
        refusals = []
        for size_hw in sizes_hw:
            try:
                for batch in range(largest_batch, 0, -1):  # the largest first: the others run in its memory
                    self._run_blank(batch, *size_hw)
            except InvalidInputError as error:  # which requests of this size get too
                refusals.append(error)
        if len(refusals) == len(sizes_hw):
            raise refusals[0]

    def _run_blank(self, batch: int, height: int, width: int) -> None:
        """Runs the networks twice on pictures of zeros, padded to that size: the second run is captured.

        A head of the final detections runs once for each number of them that it pads to.
        """
        network_input = self.device.upload(np.zeros((batch, 3, height, width), self.input_dtype))
        image_sizes = np.tile(np.array([height, width, height, width], np.float32), (batch, 1))
        for _ in range(2):
            outputs = self._networks(network_input, self.device.upload(image_sizes))
        if self.head:
            for count in self.head.parameters.padded_counts:
                found = self._blank_detections(batch, count)
                self._with_head(self.head, outputs[3:], found, self.device.upload(image_sizes))

    def _blank_detections(self, batch: int, count: int) -> Detections:
        """So many boxes of zeros in each image."""
        most = self.detection_parameters.detections_per_img
        boxes, scores = np.zeros((batch, most, 4), np.float32), np.zeros((batch, most), np.float32)
        labels, counts = np.zeros((batch, most), np.int64), np.full((batch, 1), count, np.int32)
        return Detections(*(self.device.upload(array) for array in (boxes, scores, labels, counts, boxes)))

    def _read(self, images: Sequence[bytes | npt.NDArray[np.uint8]]) -> list[Array]:
        encoded = [image for image in images if isinstance(image, bytes)]
        (decoded,) = self.decoder.decode_requests([encoded])
        if isinstance(decoded, InvalidInputError):
            raise decoded
        rest = iter(decoded)
        return [next(rest) if isinstance(image, bytes) else self.device.upload(image) for image in images]


def _read_chain(config: Mapping[str, Any]) -> Chain:
    """The family of a detector, from the outputs of the model that bears its name.

    Raises:
        RepositoryError: they are no family's.
    """
    outputs = [output["name"] for output in config["output"]]
    chain = chain_of_answers(outputs)
    if chain is None:
        raise RepositoryError(
            f"{config['name']}/config.pbtxt has the outputs {', '.join(outputs)}, which are no detector's: export it "
            "again with rcnn-export"
        )
    return chain


def _sizes_to_warm(parameters: PreprocessParameters) -> list[tuple[int, int]]:
    """Heights and widths of batches, the largest first."""
    landscape = resized_size_hw((parameters.min_size, parameters.max_size), parameters)
    known = [(height, width) for height, width in parameters.padded_sizes_hw]
    return sorted(known or [padded_size_hw([landscape], parameters)], key=math.prod, reverse=True)


def run_networks(
    engines: Mapping[str, Engine],
    parameters: ProposalParameters,
    pooling: PoolParameters,
    keeps_features: bool,
    network_input: Array,
    image_sizes: Array,
) -> list[Array]:
    """RPN, header and what lies between them: -> class_scores, class_boxes, num_proposals, and on demand the pyramid."""
    rpn_outputs = engines["rpn"].run({"input": network_input})
    features = pyramid(rpn_outputs)
    proposals = propose(rpn_outputs["rpn_boxes"], features, image_sizes, parameters, pooling)
    outputs = engines["header"].run(
        {"roialigned_feature": proposals.roialigned_feature, "proposals": proposals.boxes}
    )
    found = [outputs["class_scores"], outputs["class_boxes"], proposals.num_proposals]
    return [*found, *features] if keeps_features else found
