"""The header's scores and boxes -> final detections.

Shapes: B images, R proposals per image (padded), K foreground classes, D detections per
image (padded). Boxes are (x1, y1, x2, y2) in pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rcnn_backend.contract.parameters import DetectionParameters
from rcnn_backend.devices import Device
from rcnn_backend.errors import InvalidInputError
from rcnn_backend.operators.boxes import clip_boxes_to_image, is_large_enough
from rcnn_backend.operators.nms import batched_nms
from rcnn_backend.operators.overrides import read_number

Float = npt.NDArray[np.float32]


class Detections(NamedTuple):
    """Detections of a batch, best first; rows from ``num_detections`` on are zero."""

    boxes: Float  # [B, D, 4], pixels of the images as sent
    scores: Float  # [B, D]
    labels: npt.NDArray[np.int64]  # [B, D], 1..K
    num_detections: npt.NDArray[np.int32]  # [B, 1]
    detected_boxes: Float | None = None  # [B, D, 4], pixels of the resized images, for the heads
    of_head: Mapping[str, npt.NDArray[Any]] = MappingProxyType({})  # the answers of a head, by name

    @classmethod
    def from_answers(cls, answers: Mapping[str, npt.NDArray[Any]]) -> "Detections":
        """The detections from the answers that clients get, by name."""
        own = {name: array for name, array in answers.items() if name in cls._fields}
        return cls(**own, of_head={name: array for name, array in answers.items() if name not in own})

    @classmethod
    def concatenate(cls, parts: Sequence["Detections"]) -> "Detections":
        """Joins ``parts``, on the host, into one batch. All parts have the same answers.

        ``detected_boxes`` is left out: the heads, which need it, have already run.
        """
        if len(parts) == 1:
            return parts[0]
        answers = [part.answers for part in parts]
        return cls.from_answers(
            {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}
        )

    @property
    def answers(self) -> dict[str, npt.NDArray[Any]]:
        """The answers that clients get and that were computed, by name."""
        return {**dict(zip(self._fields[:4], self[:4], strict=True)), **self.of_head}

    @property
    def detected_labels(self) -> npt.NDArray[np.int64]:
        """``labels``, under the name that later steps use."""
        return self.labels

    @property
    def num_detected(self) -> npt.NDArray[np.int32]:
        """``num_detections``, likewise."""
        return self.num_detections

    @property
    def masks(self) -> npt.NDArray[np.float16]:
        """float16 [B, D, h, w] of a Mask R-CNN: probabilities in the frame of each box."""
        return self.of_head["masks"]

    @property
    def rles(self) -> npt.NDArray[np.object_]:
        """bytes [B, D] of a Mask R-CNN, on the host: COCO's run-length codes in the images as sent."""
        return self.of_head["rles"]

    @property
    def keypoints(self) -> Float:
        """float32 [B, D, P, 3] of a Keypoint R-CNN: x and y in pixels of the images as sent, and visibility."""
        return self.of_head["keypoints"]

    @property
    def keypoint_scores(self) -> Float:
        """float32 [B, D, P] of a Keypoint R-CNN: the highest value of each keypoint's heatmap."""
        return self.of_head["keypoint_scores"]


def detect(
    class_scores: Float,
    class_boxes: Float,
    num_proposals: npt.NDArray[np.int32],
    image_sizes: Float,
    parameters: Sequence[DetectionParameters],
    detections_per_img: int,
) -> Detections:
    """Score threshold, per-class NMS, top D and scaling back, for a batch.

    Args:
        class_scores: float32 [B, R, K], softmax without the background.
        class_boxes: float32 [B, R, K, 4] in pixels of the resized image.
        num_proposals: int32 [B, 1], how many of the R proposals are real.
        image_sizes: float32 [B, 4]: resized height and width, original height and width.
        parameters: the thresholds of each image, which a request may have overridden.
        detections_per_img: D, the model's own value, which no override exceeds.

    Returns:
        The detections without masks. For CuPy arrays, they are computed on the arrays' GPU.
    """
    if not isinstance(class_scores, np.ndarray):
        from rcnn_backend.operators.gpu import detections as gpu  # needs CuPy

        return Detections(
            *gpu.detect(class_scores, class_boxes, num_proposals, image_sizes, parameters, detections_per_img)
        )
    batch, max_detections = len(class_scores), detections_per_img
    found = Detections(
        np.zeros((batch, max_detections, 4), np.float32),
        np.zeros((batch, max_detections), np.float32),
        np.zeros((batch, max_detections), np.int64),
        np.zeros((batch, 1), np.int32),
    )
    detected_boxes = np.zeros_like(found.boxes)
    for image in range(batch):
        real = int(num_proposals[image, 0])
        boxes, scores, labels = postprocess_detections(
            class_scores[image, :real], class_boxes[image, :real], image_sizes[image, :2], parameters[image]
        )
        count = len(scores)
        detected_boxes[image, :count] = boxes
        found.boxes[image, :count] = resize_boxes(boxes, image_sizes[image])
        found.scores[image, :count] = scores
        found.labels[image, :count] = labels
        found.num_detections[image] = count
    return found._replace(detected_boxes=detected_boxes)


def postprocess_detections(
    class_scores: Float, class_boxes: Float, size_hw: Float, parameters: DetectionParameters
) -> tuple[Float, Float, npt.NDArray[np.int64]]:
    """torchvision's RoIHeads.postprocess_detections for one image: boxes [n, 4], scores [n], labels [n]."""
    proposals, classes = np.nonzero(class_scores > np.float32(parameters.score_thresh))
    scores = class_scores[proposals, classes]
    boxes = clip_boxes_to_image(class_boxes[proposals, classes], size_hw)
    large = is_large_enough(boxes, parameters.min_box_size)
    scores, boxes, labels = scores[large], boxes[large], classes[large] + 1
    kept = batched_nms(boxes, scores, labels, parameters.nms_thresh)[: parameters.detections_per_img]
    return boxes[kept], scores[kept], labels[kept]


def resize_boxes(boxes: Float, image_size: Float) -> Float:
    """Boxes [n, 4] of the resized image -> pixels of the image as sent (torchvision's ``resize_boxes``)."""
    resized_hw, original_hw = image_size[:2], image_size[2:]
    ratio_h, ratio_w = original_hw / resized_hw
    return boxes * np.array([ratio_w, ratio_h, ratio_w, ratio_h], np.float32)


def warm_up(parameters: DetectionParameters, device: Device) -> None:
    """Compiles the kernels that ``detect`` runs on a GPU."""
    if device.is_gpu:
        from rcnn_backend.operators.gpu import detections as gpu  # needs CuPy

        gpu.warm_up(parameters)


def override(
    parameters: DetectionParameters, request: Mapping[str, Any], *, has_masks: bool = False
) -> DetectionParameters:
    """The parameters, overridden by those in a request: score_thresh, nms_thresh, detections_per_img.

    Args:
        has_masks: whether a request may also have mask_thresh, which changes nothing here.

    Raises:
        InvalidInputError: a value has the wrong type or is out of range, or a detector without masks got a mask_thresh.
    """
    changes: dict[str, Any] = {}
    for name in ("score_thresh", "nms_thresh"):
        if name in request:
            changes[name] = read_number(request, name, highest=1.0)
    if "detections_per_img" in request:
        count = read_number(request, "detections_per_img", highest=parameters.detections_per_img)
        changes["detections_per_img"] = int(count)
    if "mask_thresh" in request:
        if not has_masks:
            raise InvalidInputError(
                "request parameter mask_thresh: this detector has no masks; leave it out, or ask a Mask R-CNN",
                "parameter",
            )
        read_number(request, "mask_thresh", highest=1.0)  # checked even if the mask step does not run
    return dataclasses.replace(parameters, **changes) if changes else parameters
