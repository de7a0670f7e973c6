"""The whole detector in one process: the order of calls that the ensemble spreads over its steps."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from rcnn_backend.decode import decode_image
from rcnn_backend.detections import Detections, detect, override
from rcnn_backend.engines import Engine, load_engine
from rcnn_backend.errors import RepositoryError
from rcnn_backend.parameters import (
    DetectionParameters,
    PreprocessParameters,
    ProposalParameters,
    read_parameters,
)
from rcnn_backend.preprocess import preprocess
from rcnn_backend.proposals import propose

VERSION = "1"


@dataclass(frozen=True)
class Pipeline:
    """A detector loaded from a model repository.

    >>> pipeline = Pipeline.load(Path("model_repository"), "faster_rcnn")
    >>> detections = pipeline.detect([Path("photo.jpg").read_bytes()])
    """

    rpn: Engine
    header: Engine
    preprocess_parameters: PreprocessParameters
    proposal_parameters: ProposalParameters
    detection_parameters: DetectionParameters
    class_names: list[str]

    @classmethod
    def load(cls, repository: Path, name: str) -> "Pipeline":
        """Reads the configs and engines that rcnn-export wrote for the detector ``name``.

        Raises:
            RepositoryError: one of them is missing or wrong.
        """
        class_names = read_config(repository / name).get("parameters", {}).get("class_names", {})
        return cls(
            rpn=load_engine(repository / f"{name}_rpn" / VERSION),
            header=load_engine(repository / f"{name}_header" / VERSION),
            preprocess_parameters=read_parameters(
                PreprocessParameters, read_config(repository / f"{name}_preprocess")
            ),
            proposal_parameters=read_parameters(
                ProposalParameters, read_config(repository / f"{name}_proposals")
            ),
            detection_parameters=read_parameters(
                DetectionParameters, read_config(repository / f"{name}_detections")
            ),
            class_names=json.loads(class_names.get("string_value", "[]")),
        )

    def detect(
        self, images: Sequence[bytes | npt.NDArray[np.uint8]], overrides: Mapping[str, Any] | None = None
    ) -> Detections:
        """Detects in one batch of images, encoded or uint8 RGB [h, w, 3].

        ``overrides``: score_thresh, nms_thresh or detections_per_img for this call.
        """
        pixels = [
            decode_image(image, self.preprocess_parameters.max_image_pixels)
            if isinstance(image, bytes)
            else image
            for image in images
        ]
        network_input, image_sizes = preprocess(pixels, self.preprocess_parameters)
        rpn = self.rpn.run({"input": network_input})
        proposals = propose(rpn.pop("rpn_boxes"), pyramid(rpn), image_sizes, self.proposal_parameters)
        header = self.header.run(
            {"roialigned_feature": proposals.roialigned_feature, "proposals": proposals.boxes}
        )
        parameters = override(self.detection_parameters, overrides or {})
        return detect(
            header["class_scores"],
            header["class_boxes"],
            proposals.num_proposals,
            image_sizes,
            [parameters] * len(images),
            self.detection_parameters.detections_per_img,
        )


def pyramid(tensors: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """The tensors named feature_0, feature_1, ..., finest first."""
    count = sum(name.startswith("feature_") for name in tensors)
    return [tensors[f"feature_{level}"] for level in range(count)]


def read_config(model_dir: Path) -> dict[str, Any]:
    """A model's config.pbtxt in the JSON form that Triton gives its Python models.

    Raises:
        RepositoryError: there is none, or it cannot be parsed.
    """
    path = model_dir / "config.pbtxt"
    try:
        config = text_format.Parse(path.read_text(), ModelConfig())
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}. Write it with rcnn-export") from error
    except text_format.ParseError as error:
        raise RepositoryError(f"{path} is no valid model config: {error}") from error
    form: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return form
