"""Runs the exported pipeline stage by stage: each stage alone on a given input, or all of them in turn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rcnn_backend.contract.chain_types import pyramid
from rcnn_backend.operators.detections import Detections, detect
from rcnn_backend.operators.heads import ANSWERS, HeadOutput, pool_detections, run_packed
from rcnn_backend.operators.preprocess import preprocess
from rcnn_backend.operators.proposals import propose
from rcnn_backend.operators.roi_align import multi_scale_roi_align
from rcnn_backend.pipeline import Pipeline

from rcnn_export.verify.reference import Float, ImageDetections, Trace

Counts = npt.NDArray[np.int32]


class PipelineStages:
    """The stages of a ``Pipeline``, which add and remove the padding between them.

    Arguments and results are the fields of a ``Trace``, in FP32; a network of an FP16 export gets its input in FP16.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def run(self, images: Sequence[npt.NDArray[np.uint8]]) -> Trace:
        """All stages in the order of ``Pipeline.detect``: one batch of uint8 RGB images [h, w, 3]."""
        network_input, image_sizes = self.preprocess(images)
        rpn_boxes, features = self.rpn(network_input)
        own_features = [feature.astype(self._pipeline.input_dtype, copy=False) for feature in features]
        proposals = propose(
            rpn_boxes,
            own_features,
            image_sizes,
            self._pipeline.proposal_parameters,
            self._pipeline.pool_parameters,
        )
        header = self._pipeline.engines["header"].run(
            {"roialigned_feature": proposals.roialigned_feature, "proposals": proposals.boxes}
        )
        counts = proposals.num_proposals
        detections, detected_boxes = self._detect(
            header["class_scores"], header["class_boxes"], counts, image_sizes
        )
        head_features = self.head_features(own_features, detected_boxes)
        head_maps = self.head_maps(head_features, detections)
        self.answer_head(head_maps, detected_boxes, image_sizes, detections)
        return Trace(
            network_input,
            image_sizes,
            rpn_boxes,
            features,
            _unpad(proposals.boxes, counts),
            _unpad(proposals.roialigned_feature.astype(np.float32), counts),
            _unpad(header["class_scores"], counts),
            _unpad(header["class_boxes"], counts),
            detections,
            detected_boxes,
            head_features,
            head_maps,
        )

    def run_each(self, images: Sequence[npt.NDArray[np.uint8]], given: Trace) -> Trace:
        """Each stage alone: its input is taken from ``given``."""
        trace = Trace(
            *self.preprocess(images),
            *self.rpn(given.input),
            self.proposals(given.rpn_boxes, given.features, given.image_sizes),
            self.roi_align(given.features, given.proposals),
            *self.header(given.roialigned_feature, given.proposals),
            *self.detections(given.class_scores, given.class_boxes, given.image_sizes),
            self.head_features(given.features, given.detected_boxes),
            self.head_maps(given.head_features, given.detections),
        )
        self.answer_head(given.head_maps, given.detected_boxes, given.image_sizes, trace.detections)
        return trace

    def preprocess(self, images: Sequence[npt.NDArray[np.uint8]]) -> tuple[Float, Float]:
        """-> input, image_sizes."""
        network_input, image_sizes = preprocess(
            images, self._pipeline.preprocess_parameters, self._pipeline.input_dtype
        )
        return network_input.astype(np.float32), image_sizes

    def rpn(self, network_input: Float) -> tuple[Float, list[Float]]:
        """-> rpn_boxes, features."""
        outputs = self._pipeline.engines["rpn"].run(
            {"input": network_input.astype(self._pipeline.input_dtype, copy=False)}
        )
        return outputs["rpn_boxes"], [feature.astype(np.float32) for feature in pyramid(outputs)]

    def proposals(self, rpn_boxes: Float, features: list[Float], image_sizes: Float) -> list[Float]:
        """-> proposals."""
        found = propose(
            rpn_boxes,
            features,
            image_sizes,
            self._pipeline.proposal_parameters,
            self._pipeline.pool_parameters,
        )
        return _unpad(found.boxes, found.num_proposals)

    def roi_align(self, features: list[Float], proposals: list[Float]) -> list[Float]:
        """-> roialigned_feature."""
        boxes, counts = self._pad(proposals)
        pooled = multi_scale_roi_align(features, boxes, counts, self._pipeline.pool_parameters)
        return _unpad(pooled, counts)

    def header(
        self, roialigned_feature: list[Float], proposals: list[Float]
    ) -> tuple[list[Float], list[Float]]:
        """-> class_scores, class_boxes."""
        pooled, _ = self._pad(roialigned_feature)
        boxes, counts = self._pad(proposals)
        pooled = pooled.astype(self._pipeline.input_dtype, copy=False)
        outputs = self._pipeline.engines["header"].run({"roialigned_feature": pooled, "proposals": boxes})
        return _unpad(outputs["class_scores"], counts), _unpad(outputs["class_boxes"], counts)

    def detections(
        self, class_scores: list[Float], class_boxes: list[Float], image_sizes: Float
    ) -> tuple[list[ImageDetections], list[Float]]:
        """-> detections, detected_boxes."""
        scores, counts = self._pad(class_scores)
        boxes, _ = self._pad(class_boxes)
        return self._detect(scores, boxes, counts, image_sizes)

    def head_features(self, features: list[Float], detected_boxes: list[Float]) -> list[Float]:
        """-> head_features; empty for a family without a head on the detections."""
        if (head := self._pipeline.head) is None:
            return []
        boxes, counts = self._pad_detections(detected_boxes)
        pooled = pool_detections(features, boxes, counts, head.parameters, head.pooling)
        return _unpad(pooled.astype(np.float32), counts)

    def head_maps(self, head_features: list[Float], detections: list[ImageDetections]) -> list[Float]:
        """-> head_maps, from features and the labels of the detections; empty for a family without a head on them."""
        if (head := self._pipeline.head) is None:
            return []
        pooled, counts = self._pad_detections(head_features)
        labels, _ = self._pad_detections([found.labels for found in detections])
        pooled = pooled.astype(self._pipeline.input_dtype, copy=False)
        made = run_packed(head.run, pooled, labels, counts, head.parameters).astype(np.float32)
        return np.split(made, counts[:, 0].cumsum()[:-1])

    def answer_head(
        self,
        head_maps: list[Float],
        detected_boxes: list[Float],
        image_sizes: Float,
        detections: list[ImageDetections],
    ) -> None:
        """Adds the head's answers, computed from the maps, to the detections."""
        if (head := self._pipeline.head) is None:
            return
        boxes, counts = self._pad_detections(detected_boxes)
        made = HeadOutput(np.concatenate(head_maps), boxes, image_sizes, counts)
        for step in head.answering_steps:
            for name, answer in ANSWERS[step.name](made).items() if step.stages else ():
                for image, rows in zip(detections, _unpad(answer, counts), strict=True):
                    image.of_head[name] = rows

    def _detect(
        self, class_scores: Float, class_boxes: Float, counts: Counts, image_sizes: Float
    ) -> tuple[list[ImageDetections], list[Float]]:
        parameters = self._pipeline.detection_parameters
        found = detect(
            class_scores,
            class_boxes,
            counts,
            image_sizes,
            [parameters] * len(image_sizes),
            parameters.detections_per_img,
        )
        assert found.detected_boxes is not None
        return unpad_detections(found), _unpad(found.detected_boxes, found.num_detections)

    def _pad(self, rows: list[Float]) -> tuple[Float, Counts]:
        """Each image's rows -> one array [B, R, ...], R the size that the pipeline pads to, and the counts."""
        counts = np.array([[len(image)] for image in rows], np.int32)
        sizes = self._pipeline.proposal_parameters.padded_counts
        padded = next((size for size in sizes if size >= counts.max()), int(counts.max()))
        return _pad_to(padded, rows), counts

    def _pad_detections(self, rows: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], Counts]:
        """Each image's rows -> one array [B, D, ...], and the counts."""
        counts = np.array([[len(image)] for image in rows], np.int32)
        return _pad_to(self._pipeline.detection_parameters.detections_per_img, rows), counts


def _pad_to(padded: int, rows: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    batch = np.zeros((len(rows), padded, *rows[0].shape[1:]), rows[0].dtype)
    for image, own in zip(batch, rows, strict=True):
        image[: len(own)] = own
    return batch


def unpad_detections(found: Detections) -> list[ImageDetections]:
    """A batch's padded detections -> each image's own."""
    unpadded = [
        ImageDetections(boxes[:count], scores[:count], labels[:count])
        for boxes, scores, labels, (count,) in zip(*found[:4], strict=True)
    ]
    of_head = {name: answer for name, answer in found.of_head.items() if answer.dtype != np.object_}
    for name, answer in of_head.items():
        for image, rows in zip(unpadded, answer.astype(np.float32), strict=True):
            image.of_head[name] = rows[: len(image.scores)]
    return unpadded


def _unpad(batch: Float, counts: Counts) -> list[Float]:
    return [rows[:count] for rows, (count,) in zip(batch, counts, strict=True)]
