"""The ranges of an INT8 export, measured while the served pipeline runs in FP32 on calibration pictures."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rcnn_backend.contract.chain_types import Chain
from rcnn_backend.contract.configs import read_config
from rcnn_backend.contract.manifest import ONNX, sha256_of
from rcnn_backend.devices import Device
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.pipeline import VERSION, Pipeline
from rcnn_client.tools.picture_files import picture_suffixes

from rcnn_export.engines.options import Calibration
from rcnn_export.engines.ranges import CalibratingEngine
from rcnn_export.errors import ExportError

FEWEST_PICTURES = 2
REPORTS = 10  # lines of progress
Ranges = dict[str, dict[str, float]]  # of each engine, by the names of its tensors


@dataclass(frozen=True)
class CalibrationPictures:
    """``sha256``: of the files' contents, in this order."""

    paths: Sequence[Path]
    sha256: str
    max_image_pixels: int

    def decode(self, path: Path) -> npt.NDArray[np.uint8]:
        """The pixels as the server decodes them, uint8 RGB [H, W, 3]."""
        return decode_image(path.read_bytes(), self.max_image_pixels)


def find_pictures(
    calibration: Calibration, max_image_pixels: int, report: Callable[[str], None]
) -> CalibrationPictures:
    """The requested number of pictures, spread evenly over the folder's sorted names. Pictures of one colour are left out.

    Raises:
        ExportError: there is no such folder, a file in it has a picture's suffix but is not a picture, or there are fewer
            than FEWEST_PICTURES pictures.
    """
    folder = calibration.folder
    if not folder.is_dir():
        raise ExportError(f"there is no folder {folder}: give --calibrate a folder with pictures")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in picture_suffixes())
    count = min(calibration.num_pictures, len(files))
    chosen = [files[number * len(files) // count] for number in range(count)]
    digest, kept, blank = hashlib.sha256(), [], 0
    for path in chosen:
        try:
            encoded = path.read_bytes()
            pixels = decode_image(encoded, max_image_pixels)
        except (OSError, InvalidInputError) as error:
            raise ExportError(
                f"cannot calibrate on {path}: {error}. Take the file out of the folder, or replace it"
            ) from error
        if (pixels == pixels[0, 0]).all():
            blank += 1
            continue
        digest.update(hashlib.sha256(encoded).digest())
        kept.append(path)
    if len(kept) < FEWEST_PICTURES:
        has = f"{len(chosen)} picture{'' if len(chosen) == 1 else 's'}"
        has += f", {blank} of one colour" if blank else ""
        raise ExportError(
            f"cannot calibrate on {folder}: it has {has}. Give --calibrate at least {FEWEST_PICTURES} pictures like those "
            "that will be sent; a few hundred are better"
        )
    if blank:
        are = "has one colour and is" if blank == 1 else "have one colour and are"
        report(f"{blank} of the {len(chosen)} calibration pictures {are} left out")
    return CalibrationPictures(kept, digest.hexdigest(), max_image_pixels)


def measure_ranges(
    exported: Path,
    name: str,
    pictures: CalibrationPictures,
    method: str,
    cache_folder: Path,
    report: Callable[[str], None],
) -> Ranges:
    """Runs the FP32 detector ``name`` in the repository ``exported`` on the pictures, one by one.

    Earlier measurements for the same networks and pictures are read from a file in ``cache_folder``.

    Raises:
        ExportError: that file was changed or is damaged, or the detector finds nothing in the pictures.
    """
    engines: dict[str, CalibratingEngine] = {}

    def load(version_dir: Path, device: Device) -> CalibratingEngine:
        step = version_dir.parent.name.removeprefix(f"{name}_")
        engines[step] = CalibratingEngine(version_dir / ONNX, method)
        return engines[step]

    pipeline = Pipeline.load(exported, name, load_engine=load)
    measured = [tensor for engine in engines.values() for tensor in engine.measured]
    key = _key(exported, name, pipeline.chain, pictures, method, measured)
    cache = cache_folder / f".calibration-{key[:16]}.json"
    if cache.exists():
        report(f"Calibrated before: the ranges are in {cache}")
        return _read_cache(cache, key)
    num_found = 0
    for number, path in enumerate(pictures.paths):
        num_found += int(pipeline.detect([pictures.decode(path)]).num_detections.sum())
        if (number + 1) % max(1, len(pictures.paths) // REPORTS) == 0:
            report(f"Calibrated on {number + 1} of {len(pictures.paths)} pictures")
    if not num_found:
        raise ExportError(
            f"the detector finds nothing in any of the {len(pictures.paths)} calibration pictures: give --calibrate pictures "
            "of what it detects"
        )
    ranges = {step: engine.ranges() for step, engine in engines.items()}
    cache.write_text(json.dumps({"key": key, "ranges": ranges}, indent=1) + "\n")
    return ranges


def _key(
    exported: Path,
    name: str,
    chain: Chain,
    pictures: CalibrationPictures,
    method: str,
    measured: Sequence[str],
) -> str:
    """A hash of everything that decides the ranges: the networks with their weights, the settings of the steps between
    them, the pictures, the method, and the tensors that have ranges.
    """
    parts = [pictures.sha256, method, *measured]
    for model in (exported / model_name for model_name in chain.step_names(name)):
        graph = model / VERSION / ONNX
        parts.append(json.dumps(read_config(model).get("parameters", {}), sort_keys=True))
        parts.append(sha256_of(graph) if graph.is_file() else "")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_cache(path: Path, key: str) -> Ranges:
    try:
        cached: Mapping[str, Any] = json.loads(path.read_text())
        if cached["key"] == key:
            ranges: Ranges = cached["ranges"]
            return ranges
        fault = "it was measured for another detector, or on other pictures"
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"{type(error).__name__}: {error}"
    raise ExportError(f"cannot use the calibration in {path}: {fault}. Delete the file to calibrate again")
