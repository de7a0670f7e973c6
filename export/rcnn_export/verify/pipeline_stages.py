"""Runs the exported pipeline stage by stage: each stage alone on a given input, or all of them in turn."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rcnn_backend.contract.chain import pyramid
from rcnn_backend.operators.detections import Detections, detect
from rcnn_backend.operators.preprocess import preprocess
from rcnn_backend.operators.proposals import propose
from rcnn_backend.operators.roi_align import multi_scale_roi_align
from rcnn_backend.pipeline import Pipeline

from rcnn_export.verify.reference import Float, ImageDetections, Trace

Counts = npt.NDArray[np.int32]


class PipelineStages:
    """The stages of a ``Pipeline``, which add and remove the padding between them.

    Arguments and results are the fields of a ``Trace``, FP32; a network of an FP16 export is given FP16.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def run(self, images: Sequence[npt.NDArray[np.uint8]]) -> Trace:
        """All stages in the order of ``Pipeline.detect``: one batch of uint8 RGB images [h, w, 3]."""
        network_input, image_sizes = self.preprocess(images)
        rpn_boxes, features = self.rpn(network_input)
        proposals = propose(
            rpn_boxes,
            [feature.astype(self._pipeline.input_dtype, copy=False) for feature in features],
            image_sizes,
            self._pipeline.proposal_parameters,
            self._pipeline.pool_parameters,
        )
        header = self._pipeline.engines["header"].run(
            {"roialigned_feature": proposals.roialigned_feature, "proposals": proposals.boxes}
        )
        counts = proposals.num_proposals
        detections = self._detect(header["class_scores"], header["class_boxes"], counts, image_sizes)
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
        )

    def run_each(self, images: Sequence[npt.NDArray[np.uint8]], given: Trace) -> Trace:
        """Each stage alone: its input is taken from ``given``."""
        return Trace(
            *self.preprocess(images),
            *self.rpn(given.input),
            self.proposals(given.rpn_boxes, given.features, given.image_sizes),
            self.roi_align(given.features, given.proposals),
            *self.header(given.roialigned_feature, given.proposals),
            self.detections(given.class_scores, given.class_boxes, given.image_sizes),
        )

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
    ) -> list[ImageDetections]:
        """-> detections."""
        scores, counts = self._pad(class_scores)
        boxes, _ = self._pad(class_boxes)
        return self._detect(scores, boxes, counts, image_sizes)

    def _detect(
        self, class_scores: Float, class_boxes: Float, counts: Counts, image_sizes: Float
    ) -> list[ImageDetections]:
        parameters = self._pipeline.detection_parameters
        found = detect(
            class_scores,
            class_boxes,
            counts,
            image_sizes,
            [parameters] * len(image_sizes),
            parameters.detections_per_img,
        )
        return unpad_detections(found)

    def _pad(self, rows: list[Float]) -> tuple[Float, Counts]:
        """Each image's rows -> one array [B, R, ...], R the size that the pipeline pads to, and the counts."""
        counts = np.array([[len(image)] for image in rows], np.int32)
        sizes = self._pipeline.proposal_parameters.padded_counts
        padded = next((size for size in sizes if size >= counts.max()), int(counts.max()))
        batch = np.zeros((len(rows), padded, *rows[0].shape[1:]), np.float32)
        for image, own in zip(batch, rows, strict=True):
            image[: len(own)] = own
        return batch, counts


def unpad_detections(found: Detections) -> list[ImageDetections]:
    """A batch's padded detections -> each image's own."""
    return [
        ImageDetections(boxes[:count], scores[:count], labels[:count])
        for boxes, scores, labels, (count,) in zip(*found[:4], strict=True)
    ]


def _unpad(batch: Float, counts: Counts) -> list[Float]:
    return [rows[:count] for rows, (count,) in zip(batch, counts, strict=True)]
