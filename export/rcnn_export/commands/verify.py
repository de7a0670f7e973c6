"""The command ``rcnn-verify``: compares an exported detector with torchvision's, stage by stage."""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from rcnn_backend.contract.chain import CHAINS, FASTER_RCNN
from rcnn_backend.contract.manifest import read_manifest
from rcnn_backend.errors import InvalidInputError, RepositoryError
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.operators.detections import Detections
from rcnn_backend.pipeline import VERSION
from rcnn_client import RcnnError
from rcnn_client._connection import Connection
from rcnn_client.tools.picture_files import picture_suffixes
from rich.console import Console
from rich.markup import escape
from tritonclient.utils import InferenceServerException

from rcnn_export.commands.verify_arguments import parse
from rcnn_export.detector.load import Detector, load_detector
from rcnn_export.engines.precision import PRECISIONS, Precision
from rcnn_export.errors import INTERRUPTED, ExportError
from rcnn_export.repository.average_precision import read_annotated
from rcnn_export.repository.sensitivity import NUM_PICTURES
from rcnn_export.verify.bisect import bisect, check_builder
from rcnn_export.verify.engines import load_pipeline
from rcnn_export.verify.pipeline_stages import PipelineStages, unpad_detections
from rcnn_export.verify.reference import ImageDetections
from rcnn_export.verify.report import make_table, print_verdict
from rcnn_export.verify.sample_pictures import sample_pictures
from rcnn_export.verify.sensitivity import make_cost_table, measure_costs
from rcnn_export.verify.stages import Verification

HOLDS, DIVERGES, UNUSABLE = 0, 1, 2
SERVER_TIMEOUT_S = 600.0
ENGINE_OF_STAGE = {
    stage: step.name for chain in CHAINS.values() for step in chain.engines for stage in step.stages
}
TABLE_WIDTH = 80  # columns; a narrower table would leave out numbers

Picture = tuple[str, bytes]  # its name, and an encoded file


def main(argv: list[str] | None = None) -> int:
    """Verifies a detector; exit code 0 if every stage agrees, 1 if one diverges, 2 with the reason if it cannot run."""
    arguments = parse(argv)
    try:
        return _verify(arguments)
    except KeyboardInterrupt:
        print("rcnn-verify: interrupted", file=sys.stderr)
        return INTERRUPTED


def _verify(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, TABLE_WIDTH)
    started = time.monotonic()

    def report(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/dim]  {escape(line)}")

    try:
        if arguments.bisect:
            check_builder()
        detector = load_reference(arguments, report)
        report(f"Loaded {detector.model_name} with weights {detector.weights}")
        pipeline = load_pipeline(arguments.repository, arguments.name, arguments.engine)
        precision = read_precision(arguments.repository, arguments.name)
        pictures = read_pictures(arguments.images) if arguments.images else list(sample_pictures().items())
        if arguments.sensitivity:
            most_px = pipeline.preprocess_parameters.max_image_pixels
            images = [decode(picture, most_px) for picture in pictures[:NUM_PICTURES]]
            annotated = None
            if arguments.annotations:
                annotations, folder = arguments.annotations
                annotated = read_annotated(annotations, folder, detector, report)
            costs = measure_costs(
                detector.model, arguments.repository, arguments.name, images, annotated, report
            )
            console.print(make_cost_table(costs, f"{arguments.name}: what each layer costs alone"))
            return HOLDS
        verification = Verification(
            detector.model, PipelineStages(pipeline), served=bool(arguments.server), precision=precision
        )
        server = None
        if arguments.server:
            server = Connection(arguments.server, None, None).open(triton.InferenceServerClient, 0)
        batches = deal(pictures, arguments.batch)
        report(
            f"Comparing {len(pictures)} pictures in {len(batches)} batches; the 12 of the default take a ResNet50-FPN "
            "1 to 2 minutes on two cores"
        )
        for number, batch in enumerate(batches):
            images = [decode(picture, pipeline.preprocess_parameters.max_image_pixels) for picture in batch]
            served = ask_server(server, arguments.name, [encoded for _, encoded in batch]) if server else None
            verification.add(f"batch {number}", images, served)
            report(f"Batch {number + 1} of {len(batches)}: {', '.join(name for name, _ in batch)}")
    except InferenceServerException as error:
        print(f"rcnn-verify: the server {arguments.server}: {error}", file=sys.stderr)
        return UNUSABLE
    except (ExportError, RepositoryError, InvalidInputError, RcnnError, OSError) as error:
        print(f"rcnn-verify: {error}", file=sys.stderr)
        return UNUSABLE
    sizes = ", ".join(str(size) for size in arguments.batch)
    console.print(
        make_table(verification, f"{arguments.name}: {len(pictures)} pictures in batches of {sizes}")
    )
    print_verdict(console, verification)
    if arguments.bisect and verification.first_divergence:
        _print_layer(console, arguments, verification, pipeline.input_dtype)
    return HOLDS if verification.holds else DIVERGES


def load_reference(arguments: argparse.Namespace, report: Callable[[str], None]) -> Detector:
    """The torch detector that the engines were exported from, as given by the arguments or else by the manifest.

    Raises:
        RepositoryError: no manifest.
        ExportError: the weights do not exist, or are not those of the engines.
    """
    version_dir = arguments.repository / f"{arguments.name}_{FASTER_RCNN.engines[0].name}" / VERSION
    manifest = read_manifest(version_dir)
    exported_from = Path(manifest["weights"])
    if not arguments.weights and exported_from.is_absolute() and not exported_from.exists():
        raise ExportError(
            f"the weights {exported_from} that {arguments.name} was exported from no longer exist: give them "
            "as --weights FILE"
        )
    key, eps = arguments.weights_key, arguments.batch_norm_eps
    detector = load_detector(
        arguments.model or manifest["model"],
        arguments.weights or manifest["weights"],
        len(manifest["class_names"]),
        num_keypoints=len(manifest.get("keypoint_names", [])) or None,
        weights_key=manifest.get("weights_key") if key is None and not arguments.weights else key,
        batch_norm_eps=manifest.get("batch_norm_eps") if eps is None else eps,
        report=report,
    )
    if detector.weights_hash != manifest["weights_sha256"]:
        raise ExportError(
            f"{detector.model_name} with weights {detector.weights} is not what {version_dir} was exported from: "
            f"sha256 {detector.weights_hash[:12]}, the manifest has {manifest['weights_sha256'][:12]}. Give the "
            "--model, --weights and --weights-key of the export, or export again (random weights may differ "
            "between CPUs)"
        )
    return dataclasses.replace(
        detector, class_names=manifest["class_names"], keypoint_names=manifest.get("keypoint_names", [])
    )


def read_precision(repository: Path, name: str) -> Precision:
    """The precision that the engines were exported in.

    Raises:
        RepositoryError: no manifest.
        ExportError: an unknown precision.
    """
    version_dir = repository / f"{name}_rpn" / VERSION
    exported = read_manifest(version_dir)["precision"]
    if exported not in PRECISIONS:
        raise ExportError(
            f"{version_dir} was exported in {exported}, and this rcnn-verify knows {', '.join(PRECISIONS)}: "
            "verify with the version that exported it"
        )
    return PRECISIONS[exported]


def read_pictures(paths: Sequence[Path]) -> list[Picture]:
    """The files, and the files with a picture's suffix in each folder, sorted by name."""
    files = []
    for path in paths:
        in_folder = sorted(path.iterdir()) if path.is_dir() else ()
        files += [file for file in in_folder if file.suffix.lower() in picture_suffixes()] or [path]
    return [(file.name, file.read_bytes()) for file in files]


def decode(picture: Picture, max_image_pixels: int) -> npt.NDArray[np.uint8]:
    """The pixels as the server decodes them, uint8 RGB [H, W, 3].

    Raises:
        ExportError: they cannot be decoded; the message names the picture.
    """
    name, encoded = picture
    try:
        return decode_image(encoded, max_image_pixels)
    except InvalidInputError as error:
        raise ExportError(f"cannot read the picture {name}: {error}") from error


def deal(pictures: Sequence[Picture], sizes: Sequence[int]) -> list[list[Picture]]:
    """The pictures in batches of each size in turn.

    Each picture is in at least one batch, and there is at least one batch of each size. The
    last batches are filled up with the first pictures.
    """
    batches: list[list[Picture]] = []
    supply, dealt = itertools.cycle(pictures), 0
    for number, size in enumerate(itertools.cycle(sizes)):
        if dealt >= len(pictures) and number >= len(sizes):
            return batches
        batches.append(list(itertools.islice(supply, size)))
        dealt += size
    return batches


def ask_server(
    server: triton.InferenceServerClient, name: str, batch: Sequence[bytes]
) -> list[ImageDetections]:
    """The served detections of encoded pictures, sent as one request."""
    image = triton.InferInput("image", [len(batch), 1], "BYTES")
    image.set_data_from_numpy(np.array(batch, np.object_).reshape(-1, 1))
    answer = server.infer(name, [image], client_timeout=SERVER_TIMEOUT_S)
    arrays = {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}
    return unpad_detections(Detections.from_answers(arrays))


def _print_layer(
    console: Console, arguments: argparse.Namespace, verification: Verification, dtype: np.dtype[Any]
) -> None:
    """Prints the first layer of the diverging engine whose output in TensorRT differs from ONNX Runtime's."""
    stage, _ = verification.first_divergence or ("", "")
    step = ENGINE_OF_STAGE.get(stage)
    if step is None:
        console.print(f"{stage} is computed between the engines, so there is no layer to name")
        return
    version_dir = arguments.repository / f"{arguments.name}_{step}" / VERSION
    found = bisect(version_dir, verification.first_inputs(step, dtype), verification.precision.bounds.array)
    console.print(f"{step}: {found}" if found else f"{step}: every layer agrees with ONNX Runtime's")


if __name__ == "__main__":
    sys.exit(main())
