"""The whole detector in one process: the same sequence of calls that the ensemble distributes over its steps."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.batches import run_batches
from rcnn_backend.contract.chain import RLES
from rcnn_backend.contract.chain_types import Chain, pyramid
from rcnn_backend.contract.configs import read_config
from rcnn_backend.contract.find_chain import chain_of_answers
from rcnn_backend.contract.parameters import (
    DetectionParameters,
    HeadParameters,
    PoolParameters,
    PreprocessParameters,
    ProposalParameters,
    RleParameters,
    read_dtype,
    read_parameters,
    read_threads,
)
from rcnn_backend.devices import Array, Cpu, Device, Gpu
from rcnn_backend.engines.head import Head
from rcnn_backend.engines.load import Engine, load_engine
from rcnn_backend.errors import InvalidInputError, RepositoryError
from rcnn_backend.operators import detections as detecting
from rcnn_backend.operators import preprocess as preprocessing
from rcnn_backend.operators import proposals as proposing
from rcnn_backend.operators import rles as pasting
from rcnn_backend.operators.decode import ImageDecoder
from rcnn_backend.operators.detections import Detections, detect, override
from rcnn_backend.operators.preprocess import preprocess
from rcnn_backend.operators.proposals import propose
from rcnn_backend.operators.sizes import batch_size_hw, group_by_size, padded_size_hw, resized_size_hw

VERSION = "1"
# On a CPU. While an engine uses all cores for one image, NumPy processes the other image on one core.
IMAGES_AT_ONCE = 2


class Options(NamedTuple):
    """The settings of one request."""

    detections: DetectionParameters
    rles: RleParameters | None  # only for a family with masks
    wanted: frozenset[str]  # names of the requested answers; a head computes only these


def load_configured_engine(version_dir: Path, device: Device) -> Engine:
    """The engine of a version folder, with the number of threads from the model's config."""
    return load_engine(version_dir, device, read_threads(read_config(version_dir.parent)))


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
    head: Head | None  # only for a family with a head on the final detections
    input_dtype: np.dtype[Any]
    class_names: list[str]

    @classmethod
    def load(
        cls,
        repository: Path,
        name: str,
        device: Device | None = None,
        load_engine: Callable[[Path, Device], Engine] = load_configured_engine,
    ) -> "Pipeline":
        """Reads the configs and engines that rcnn-export wrote for the detector ``name``.

        Args:
            device: for example ``rcnn_backend.devices.Gpu(0)``; the CPU by default.
            load_engine: loads the engine of a version folder for that device.

        Raises:
            RepositoryError: a config or an engine is missing or wrong.
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
            rles_config = read_config(repository / f"{name}_rles") if RLES in chain.answers else None
            head = Head(
                chain,
                device,
                engines[f"{chain.head}_header"],
                read_parameters(HeadParameters, features_config),
                read_parameters(PoolParameters, features_config),
                read_parameters(RleParameters, rles_config) if rles_config else None,
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

    def read_options(self, request: Mapping[str, Any], wanted: Collection[str] | None = None) -> Options:
        """The options of a request.

        Args:
            request: the request's parameters: score_thresh, nms_thresh, detections_per_img, mask_thresh.
            wanted: the names of the answers that the request asks for; None for all.

        Raises:
            InvalidInputError: a parameter cannot be used.
        """
        rle_parameters = self.head.rle_parameters if self.head else None
        answers = [tensor.name for tensor in self.chain.answers]
        return Options(
            override(self.detection_parameters, request, has_masks=rle_parameters is not None),
            pasting.override(rle_parameters, request) if rle_parameters else None,
            frozenset(answers if wanted is None else wanted),
        )

    def detect(
        self,
        images: Sequence[bytes | npt.NDArray[np.uint8]],
        overrides: Mapping[str, Any] | None = None,
        wanted: Collection[str] | None = None,
    ) -> Detections:
        """Detects objects in one batch of images, encoded or uint8 RGB [h, w, 3].

        Args:
            overrides: score_thresh, nms_thresh, detections_per_img or mask_thresh for this call.
            wanted: the names of the answers to compute; None for all.

        Returns:
            NumPy arrays; masks and keypoints only if the family has them and they are wanted.

        Raises:
            InvalidInputError: an image or an override cannot be used.
        """
        options = self.read_options(overrides or {}, wanted)
        with self.device.active():
            found = self.run(self._read(images), [options] * len(images))
            return Detections.from_answers(self._download(found))

    def detect_requests(
        self, requests: Sequence[tuple[Sequence[Array], Options]]
    ) -> list[Detections | Exception]:
        """Detects objects in the pixels of several requests. Requests padded to the same size share one batch.

        Returns:
            For each request, what ``run`` returns for it alone, as NumPy arrays, or the error. A request may also get
            answers that only another request of its batch wants.
        """
        groups = group_by_size([pixels for pixels, _ in requests], self.preprocess_parameters)
        results = run_batches(
            lambda numbers: self._detect_group([requests[number] for number in numbers]), groups, self.device
        )
        return [results[number] for number in range(len(requests))]

    def _detect_group(self, requests: Sequence[tuple[Sequence[Array], Options]]) -> list[Detections]:
        """Runs one batch and gives each request its part of the arrays."""
        pixels = [image for images, _ in requests for image in images]
        found = self.run(pixels, [options for images, options in requests for _ in images])
        arrays = self._download(found)
        ends = itertools.accumulate(len(images) for images, _ in requests)
        return [
            Detections.from_answers({name: array[end - len(images) : end] for name, array in arrays.items()})
            for (images, _), end in zip(requests, ends, strict=True)
        ]

    def _download(self, found: Detections) -> dict[str, npt.NDArray[Any]]:
        """The answers as arrays on the host."""
        arrays = found.answers
        on_device = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
        hosts = self.device.download([arrays[name] for name in on_device])
        return arrays | dict(zip(on_device, hosts, strict=True))

    def run(self, pixels: Sequence[Array], options: Sequence[Options]) -> Detections:
        """The sequence of calls, from uint8 RGB [h, w, 3] on the device to detections on the device.

        A GPU runs the images as one batch. A CPU runs each image separately, padded to the batch's size, because the
        features of several images together take more memory and time.

        Args:
            options: the options of each image's request. Every answer that one of them wants is computed for all.
        """
        wanted = frozenset[str]().union(*(each.wanted for each in options))
        if self.device.is_gpu:
            return self._run_batch(pixels, options, wanted, self.preprocess_parameters)
        padded_hw = batch_size_hw(pixels, self.preprocess_parameters)
        padding = dataclasses.replace(self.preprocess_parameters, padded_sizes_hw=[list(padded_hw)])
        found = self._workers.map(
            lambda image, own: self._run_batch([image], [own], wanted, padding), pixels, options
        )
        return Detections.concatenate(list(found))

    def _run_batch(
        self,
        pixels: Sequence[Array],
        options: Sequence[Options],
        wanted: Collection[str],
        parameters: PreprocessParameters,
    ) -> Detections:
        network_input, image_sizes = preprocess(pixels, parameters, self.input_dtype)
        class_scores, class_boxes, num_proposals, *features = self._networks(network_input, image_sizes)
        found = detect(
            class_scores,
            class_boxes,
            num_proposals,
            image_sizes,
            [each.detections for each in options],
            self.detection_parameters.detections_per_img,
        )
        if self.head is None:
            return found
        rle_parameters = [each.rles for each in options if each.rles]
        return self.head.answer(features, found, image_sizes, wanted, rle_parameters)

    @functools.cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(IMAGES_AT_ONCE, "image")

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
        """On a GPU, compiles the kernels of ``run`` and runs the networks on each size that is known beforehand.

        These sizes are ``padded_sizes_hw``, or the size of the largest landscape picture if there are none. For
        each size, engines that become CUDA graphs are captured for every batch size up to ``max_batch_size``; others
        run one picture. No other size is warmed up, such as that of portrait pictures without ``padded_sizes_hw``.
        The first batches of such a size wait for their kernels and their graph.

        Raises:
            InvalidInputError: an engine accepts none of these sizes.
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
                for batch in range(largest_batch, 0, -1):  # the largest first: the others reuse its memory
                    self._run_blank(batch, *size_hw)
            except InvalidInputError as error:  # requests of this size get the same error
                refusals.append(error)
        if len(refusals) == len(sizes_hw):
            raise refusals[0]

    def _run_blank(self, batch: int, height: int, width: int) -> None:
        """Runs the networks twice on black pictures of this padded size: the second run is captured.

        A head on the final detections runs once for each number of detections that it pads to.
        """
        network_input = self.device.upload(np.zeros((batch, 3, height, width), self.input_dtype))
        image_sizes = np.tile(np.array([height, width, height, width], np.float32), (batch, 1))
        for _ in range(2):
            outputs = self._networks(network_input, self.device.upload(image_sizes))
        if self.head:
            most = self.detection_parameters.detections_per_img
            self.head.warm_up(outputs[3:], self.device.upload(image_sizes), most)

    def _read(self, images: Sequence[bytes | npt.NDArray[np.uint8]]) -> list[Array]:
        encoded = [image for image in images if isinstance(image, bytes)]
        (decoded,) = self.decoder.decode_requests([encoded])
        if isinstance(decoded, InvalidInputError):
            raise decoded
        rest = iter(decoded)
        return [next(rest) if isinstance(image, bytes) else self.device.upload(image) for image in images]


def _read_chain(config: Mapping[str, Any]) -> Chain:
    """The family of a detector, found by the outputs of the model with the detector's name.

    Raises:
        RepositoryError: no family has these outputs.
    """
    outputs = [output["name"] for output in config["output"]]
    chain = chain_of_answers(outputs)
    if chain is None:
        raise RepositoryError(
            f"{config['name']}/config.pbtxt has the outputs {', '.join(outputs)}, which no kind of detector has: "
            "export it again with rcnn-export"
        )
    return chain


def _sizes_to_warm(parameters: PreprocessParameters) -> list[tuple[int, int]]:
    """The (height, width) of each batch to warm up, largest first."""
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
    """RPN, proposals and header -> class_scores, class_boxes, num_proposals and, if ``keeps_features``, the pyramid."""
    rpn_outputs = engines["rpn"].run({"input": network_input})
    features = pyramid(rpn_outputs)
    proposals = propose(rpn_outputs["rpn_boxes"], features, image_sizes, parameters, pooling)
    outputs = engines["header"].run(
        {"roialigned_feature": proposals.roialigned_feature, "proposals": proposals.boxes}
    )
    found = [outputs["class_scores"], outputs["class_boxes"], proposals.num_proposals]
    return [*found, *features] if keeps_features else found
