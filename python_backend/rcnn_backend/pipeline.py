"""The whole detector in one process: the order of calls that the ensemble spreads over its steps."""

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
# On a CPU. While an engine takes all cores for one image, NumPy on one core works on the other.
IMAGES_AT_ONCE = 2


class Options(NamedTuple):
    """What a request chooses."""

    detections: DetectionParameters
    rles: RleParameters | None  # of a family with masks
    wanted: frozenset[str]  # the answers by name; of a head's, others are not computed


def load_configured_engine(version_dir: Path, device: Device) -> Engine:
    """The engine of a version folder, with the threads that the model's config gives it."""
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
    head: Head | None  # of a family with one on the final detections
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
            request: its parameters: score_thresh, nms_thresh, detections_per_img, mask_thresh.
            wanted: the names of the answers that it asks for; None for all.

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
        """Detects in one batch of images, encoded or uint8 RGB [h, w, 3].

        Args:
            overrides: score_thresh, nms_thresh, detections_per_img or mask_thresh for this call.
            wanted: the names of the answers to compute; None for all.

        Returns:
            NumPy arrays; of masks and keypoints those that the family has and that are wanted.

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
            Detections.from_answers({name: array[end - len(images) : end] for name, array in arrays.items()})
            for (images, _), end in zip(requests, ends, strict=True)
        ]

    def _download(self, found: Detections) -> dict[str, npt.NDArray[Any]]:
        """What was computed for clients, on the host."""
        arrays = found.answers
        on_device = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
        hosts = self.device.download([arrays[name] for name in on_device])
        return arrays | dict(zip(on_device, hosts, strict=True))

    def run(self, pixels: Sequence[Array], options: Sequence[Options]) -> Detections:
        """The order of calls, from uint8 RGB [h, w, 3] on the device to detections on the device.

        A GPU runs the images as one batch. A CPU runs each by itself, padded to the batch's size: the features of
        several together take more memory and time.

        Args:
            options: of each image's request; what one of them wants is computed for all.
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

        A head of the final detections runs for each number of them that it pads to.
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
