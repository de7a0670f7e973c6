"""The whole detector in one process: the order of calls that the ensemble spreads over its steps."""

import functools
import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.batches import run_batches
from rcnn_backend.contract.chain import MASKS, RLES, Chain, chain_of_answers, pyramid
from rcnn_backend.contract.configs import read_config
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    HeadParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
    RleParameters,
    read_dtype,
    read_parameters,
)
from rcnn_backend.devices import Array, Cpu, Device, Gpu
from rcnn_backend.engines.load import Engine, load_engine
from rcnn_backend.errors import InvalidInputError, RepositoryError
from rcnn_backend.operators import detections as detecting
from rcnn_backend.operators import preprocess as preprocessing
from rcnn_backend.operators import proposals as proposing
from rcnn_backend.operators import rles as pasting
from rcnn_backend.operators.decode import ImageDecoder
from rcnn_backend.operators.detections import Detections, detect, override
from rcnn_backend.operators.heads import pool_detections, run_packed
from rcnn_backend.operators.preprocess import preprocess
from rcnn_backend.operators.proposals import propose
from rcnn_backend.operators.rles import encode_rles
from rcnn_backend.operators.sizes import group_by_size, padded_size_hw, resized_size_hw

VERSION = "1"


@dataclass(frozen=True)
class Head:
    """A head that runs on the final detections: its engine, and what it pools."""

    engine: Engine
    parameters: HeadParameters
    pooling: PoolParameters


class Options(NamedTuple):
    """What a request chooses."""

    detections: DetectionParameters
    rles: RleParameters | None  # of a family with masks
    wanted: frozenset[str]  # the answers by name; of masks and rles, others are not computed


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
    mask_head: Head | None  # of a family with masks
    rle_parameters: RleParameters | None  # likewise
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
        mask_head = rle_parameters = None
        if MASKS in chain.answers:
            features_config = read_config(repository / f"{name}_mask_features")
            mask_head = Head(
                engines["mask_header"],
                read_parameters(HeadParameters, features_config),
                read_parameters(PoolParameters, features_config),
            )
            rle_parameters = read_parameters(RleParameters, read_config(repository / f"{name}_rles"))
        return cls(
            chain=chain,
            device=device,
            decoder=ImageDecoder(preprocess_parameters, device),
            engines=engines,
            preprocess_parameters=preprocess_parameters,
            proposal_parameters=read_parameters(ProposalParameters, proposals_config),
            pool_parameters=read_parameters(PoolParameters, proposals_config),
            detection_parameters=read_parameters(DetectionParameters, detections_config),
            mask_head=mask_head,
            rle_parameters=rle_parameters,
            input_dtype=np.dtype(read_dtype(preprocess_config, "input")),
            class_names=json.loads(class_names.get("string_value", "[]")),
        )

    def read_options(self, request: Mapping[str, Any], wanted: Collection[str] | None = None) -> Options:
        """The options of a request.

        Args:
            request: its parameters: score_thresh, nms_thresh, detections_per_img, mask_thresh.
            wanted: the names of the answers that it asks for; None for all.

        Raises:
            InvalidInputError: a parameter cannot be used.
        """
        has_masks = self.rle_parameters is not None
        answers = [tensor.name for tensor in self.chain.answers]
        return Options(
            override(self.detection_parameters, request, has_masks=has_masks),
            pasting.override(self.rle_parameters, request) if self.rle_parameters else None,
            frozenset(answers if wanted is None else wanted),
        )

    def detect(
        self,
        images: Sequence[bytes | npt.NDArray[np.uint8]],
        overrides: Mapping[str, Any] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Detections:
        """Detects in one batch of images, encoded or uint8 RGB [h, w, 3].

        Args:
            overrides: score_thresh, nms_thresh, detections_per_img or mask_thresh for this call.
            wanted: the names of the answers to compute; None for all.

        Returns:
            NumPy arrays; masks and run-length codes from a family that has them, if they are wanted.

        Raises:
            InvalidInputError: an image or an override cannot be used.
        """
        options = self.read_options(overrides or {}, wanted)
        with self.device.active():
            return Detections(**self._download(self.run(self._read(images), [options] * len(images))))

    def detect_requests(
        self, requests: Sequence[tuple[Sequence[Array], Options]]
    ) -> list[Detections | Exception]:
        """Detects in the pixels of several requests, in one batch for all that are padded to the same size.

        Returns:
            For each request what ``run`` gives for it alone, as NumPy arrays, or why it cannot run. It may also get
            what only another request of its batch wants.
        """
        groups = group_by_size([pixels for pixels, _ in requests], self.preprocess_parameters)
        results = run_batches(
            lambda numbers: self._detect_group([requests[number] for number in numbers]), groups, self.device
        )
        return [results[number] for number in range(len(requests))]

    def _detect_group(self, requests: Sequence[tuple[Sequence[Array], Options]]) -> list[Detections]:
        """Detects in one batch, and gives each request its part of the arrays."""
        pixels = [image for images, _ in requests for image in images]
        found = self.run(pixels, [options for images, options in requests for _ in images])
        arrays = self._download(found)
        ends = itertools.accumulate(len(images) for images, _ in requests)
        return [
            Detections(**{name: array[end - len(images) : end] for name, array in arrays.items()})
            for (images, _), end in zip(requests, ends, strict=True)
        ]

    def _download(self, found: Detections) -> dict[str, npt.NDArray[Any]]:
        """What was computed for clients, on the host."""
        answers = [tensor.name for tensor in self.chain.answers]
        made = {name: array for name in answers if (array := getattr(found, name)) is not None}
        names = [name for name in made if name != RLES.name]  # which are there already
        made.update(zip(names, self.device.download([made[name] for name in names]), strict=True))
        return made

    def run(self, pixels: Sequence[Array], options: Sequence[Options]) -> Detections:
        """The order of calls, from uint8 RGB [h, w, 3] on the device to detections on the device.

        Args:
            options: of each image's request; what one of them wants is computed for all.
        """
        network_input, image_sizes = preprocess(pixels, self.preprocess_parameters, self.input_dtype)
        class_scores, class_boxes, num_proposals, *features = self._networks(network_input, image_sizes)
        found = detect(
            class_scores,
            class_boxes,
            num_proposals,
            image_sizes,
            [each.detections for each in options],
            self.detection_parameters.detections_per_img,
        )
        wanted = frozenset().union(*(each.wanted for each in options))
        if self.mask_head and not wanted.isdisjoint({MASKS.name, RLES.name}):
            masks = self._masks(self.mask_head, features, found)
            if RLES.name in wanted:
                found = found._replace(rles=self._rles(masks, found, image_sizes, options))
            if MASKS.name in wanted:
                found = found._replace(masks=masks)
        return found

    def _rles(
        self, masks: Array, found: Detections, image_sizes: Array, options: Sequence[Options]
    ) -> npt.NDArray[np.object_]:
        """Run-length codes [B, D] of the masks, on the host."""
        boxes, counts, sizes = self.device.download([found.detected_boxes, found.num_detections, image_sizes])
        return encode_rles(masks, boxes, counts, sizes, [each.rles for each in options if each.rles])

    def _masks(self, head: Head, features: Sequence[Array], found: Detections) -> Array:
        """Masks [B, D, h, w] of the detections; how many there are is waited for."""

        def run(mask_features: Array, labels: Array) -> Array:
            return head.engine.run({"mask_features": mask_features, "detected_labels": labels})[
                "mask_probabilities"
            ]

        (counts,) = self.device.download([found.num_detections])
        pooled = pool_detections(features, found.detected_boxes, counts, head.parameters, head.pooling)
        return run_packed(run, pooled, found.labels, counts, head.parameters)

    @functools.cached_property
    def _networks(self) -> Callable[[Array, Array], Sequence[Array]]:
        """``run_networks``, as CUDA graphs if the device and all engines allow it."""
        run = functools.partial(
            run_networks,
            self.engines,
            self.proposal_parameters,
            self.pool_parameters,
            self.mask_head is not None,
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
        if self.mask_head:
            pasting.warm_up(self.device)
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
        if self.mask_head:
            for count in self.mask_head.parameters.padded_counts:
                self._masks(self.mask_head, outputs[3:], self._blank_detections(batch, count))

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
