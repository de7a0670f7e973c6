"""Compares a pipeline with torchvision, batch by batch and stage by stage; each stage is compared twice."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from rcnn_export.detector.families import chain_of
from rcnn_export.detector.parameters import detection_parameters, proposal_parameters
from rcnn_export.detector.shapes import pooler_with_strides
from rcnn_export.engines.precision import FP32, Precision
from rcnn_export.verify.compare import PyramidScale, compare_array, compare_header, compare_pooled
from rcnn_export.verify.compare_heads import compare_keypoints, compare_maps
from rcnn_export.verify.compare_selections import compare_detections, compare_proposals, compare_rpn_boxes
from rcnn_export.verify.differences import Comparison
from rcnn_export.verify.matching import Float, Indices
from rcnn_export.verify.pipeline_stages import PipelineStages
from rcnn_export.verify.reference import (
    ImageDetections,
    Trace,
    run_head,
    run_header,
    run_keypoints,
    run_reference,
)
from rcnn_export.verify.ties import Link, SelectionRules

DETECTIONS, MASKS, KEYPOINTS = "detections", "masks", "keypoints"  # the stages whose answers a server gives
ALONE = "alone"
END_TO_END = "end to end"
SERVED = "served"

Images = Sequence[npt.NDArray[np.uint8]]


class Verification:
    """The comparisons of every stage, over all batches so far.

    ``comparisons[stage, ALONE]``: the stage got torchvision's own input.
    ``comparisons[stage, END_TO_END]``: the stage got the output of the stages before it.
    ``comparisons["detections", SERVED]``: a server's answers; likewise for ``masks`` and ``keypoints``.
    """

    def __init__(
        self,
        model: FasterRCNN,
        stages: PipelineStages,
        served: bool = False,
        precision: Precision = FP32,
    ) -> None:
        self.precision = precision
        self._chain = chain_of(model)
        self._head = self._chain.head
        self.comparisons = {
            (stage, mode): Comparison(precision.bounds)
            for stage in self._chain.stages
            for mode in (ALONE, END_TO_END)
        }
        if served:
            for stage in (DETECTIONS, MASKS, KEYPOINTS):
                if (stage, ALONE) in self.comparisons:
                    self.comparisons[stage, SERVED] = Comparison(precision.bounds)
        self._first: Trace | None = None
        self._model = model
        model.roi_heads.box_roi_pool = pooler_with_strides(model)
        if self._head:
            pool = f"{self._head}_roi_pool"
            setattr(model.roi_heads, pool, pooler_with_strides(model, pool))
        self._stages = stages
        parameters = proposal_parameters(model)
        self._pre_nms_top_n = model.rpn.pre_nms_top_n()
        self._proposal_rules = SelectionRules(
            parameters.score_thresh,
            True,
            parameters.nms_thresh,
            parameters.min_box_size,
            parameters.padded_counts[-1],
        )
        detections = detection_parameters(model)
        self._detection_rules = SelectionRules(
            detections.score_thresh,
            False,
            detections.nms_thresh,
            detections.min_box_size,
            detections.detections_per_img,
        )

    def add(self, name: str, images: Images, served: Sequence[ImageDetections] | None = None) -> None:
        """Compares one batch of uint8 RGB images [h, w, 3].

        Args:
            name: the name of the batch, used in findings.
            served: a server's detections of the same batch.
        """
        reference = run_reference(self._model, images)
        self._first = self._first or reference
        self._compare(name, ALONE, reference, given=reference, made=self._stages.run_each(images, reference))
        ours = self._stages.run(images)
        links = self._compare(name, END_TO_END, reference, given=ours, made=ours)
        for image, found in enumerate(served or ()):
            # The server's candidates are not known; those of the same code in this process are used instead.
            link = self._compare_detections(name, SERVED, image, reference, ours, found, links[image])
            if self._head:
                self._compare_served_head(image, reference, ours, found, link)

    def first_inputs(self, step: str, dtype: np.dtype[Any]) -> dict[str, npt.NDArray[Any]]:
        """torchvision's input of the engine ``step`` for the first picture; features in ``dtype``."""
        assert self._first is not None, "no batch was added"
        if step == "rpn":
            return {"input": self._first.input[:1].astype(dtype)}
        if self._head and step == f"{self._head}_header":
            pooled, labels = self._first.head_features[0].astype(dtype), self._first.detections[0].labels
            most = self._model.roi_heads.detections_per_img
            given = {
                f"{self._head}_features": pooled,
                "detected_labels": np.pad(labels, (0, most - len(labels))),
            }
            return {tensor.name: given[tensor.name][None] for tensor in self._chain.step(step).inputs}
        pooled = self._first.roialigned_feature[0].astype(dtype)
        return {"roialigned_feature": pooled[None], "proposals": self._first.proposals[0][None]}

    @property
    def matched_share(self) -> float:
        """The share of the final detections, end to end or served, that match torchvision's; the smaller of the two."""
        final = [
            comparison
            for (stage, mode), comparison in self.comparisons.items()
            if stage == DETECTIONS and mode != ALONE
        ]
        return min(comparison.matched / comparison.rows if comparison.rows else 1.0 for comparison in final)

    @property
    def first_divergence(self) -> tuple[str, str] | None:
        """The first stage that does not hold, and its mode. A stage that diverges alone comes before any other."""
        for wanted in (ALONE, END_TO_END, SERVED):
            for (stage, mode), comparison in self.comparisons.items():
                if mode == wanted and not comparison.holds:
                    return stage, mode
        return None

    @property
    def holds(self) -> bool:
        """Whether every stage is within bounds or explained, and enough detections match."""
        return self.first_divergence is None and self.matched_share >= self.precision.bounds.matched_share

    def _compare(self, name: str, mode: str, reference: Trace, given: Trace, made: Trace) -> list[Link]:
        """Compares the stages' outputs ``made`` from the inputs ``given``; returns the links between proposals."""
        links = []
        for image, size in enumerate(reference.image_sizes):
            where = f"{name}, picture {image}"

            def carry(link: Link, count: int) -> Link:
                return Link.identity(count) if mode == ALONE else link

            comparison = self.comparisons["input", mode]
            compare_array(comparison, where, reference.input[image], made.input[image])
            compare_array(comparison, where, size, made.image_sizes[image])

            comparison = self.comparisons["features", mode]
            for ours, theirs in zip(reference.features, made.features, strict=True):
                compare_array(comparison, where, ours[image], theirs[image])

            link = compare_rpn_boxes(
                self.comparisons["rpn_boxes", mode],
                where,
                reference.rpn_boxes[image],
                made.rpn_boxes[image],
                size[:2],
                self._pre_nms_top_n,
            )
            link = compare_proposals(
                self.comparisons["proposals", mode],
                where,
                (reference.rpn_boxes[image], given.rpn_boxes[image]),
                (reference.proposals[image], made.proposals[image]),
                size[:2],
                carry(link, len(reference.rpn_boxes[image])),
                self._proposal_rules,
            )
            link = compare_pooled(
                self.comparisons["roialigned_feature", mode],
                (reference.roialigned_feature[image], made.roialigned_feature[image]),
                (reference.proposals[image], given.proposals[image]),
                carry(link, len(reference.proposals[image])),
                self._pyramid_scale(reference, image, self._model.roi_heads.box_roi_pool),
            )
            link = compare_header(
                self.comparisons["header", mode],
                (reference.class_scores[image], made.class_scores[image]),
                (reference.class_boxes[image], made.class_boxes[image]),
                carry(link, len(reference.proposals[image])),
                None if mode == ALONE else functools.partial(self._torchvision_header, given, image),
            )
            links.append(link)
            link = self._compare_detections(name, mode, image, reference, given, made.detections[image], link)
            if self._head:
                self._compare_head(mode, image, reference, given, made, link)
        return links

    def _torchvision_header(self, given: Trace, image: int, rois: Indices) -> tuple[Float, Float]:
        """The output of torchvision's header for these RoIs of the pipeline."""
        return run_header(self._model, given.roialigned_feature[image][rois], given.proposals[image][rois])

    def _compare_head(
        self, mode: str, image: int, reference: Trace, given: Trace, made: Trace, link: Link
    ) -> None:
        """Compares the stages of the head that runs on the detections; ``link`` is between the detections."""
        features_stage, *later = [stage for step in self._chain.head_steps for stage in step.stages]
        count = len(reference.detected_boxes[image])
        if mode == ALONE:
            link = Link.identity(count)
        link = compare_pooled(
            self.comparisons[features_stage, mode],
            (reference.head_features[image], made.head_features[image]),
            (reference.detected_boxes[image], given.detected_boxes[image]),
            link,
            self._pyramid_scale(reference, image, getattr(self._model.roi_heads, f"{self._head}_roi_pool")),
        )
        compare_maps(
            self.comparisons[later[0], mode],
            (reference.head_maps[image], made.head_maps[image]),
            Link.identity(count) if mode == ALONE else link,
            self._map_bound(reference, image),
            None if mode == ALONE else functools.partial(self._torchvision_head, given, image),
        )
        if KEYPOINTS in later:
            compare_keypoints(
                self.comparisons[KEYPOINTS, mode],
                (reference.detections[image].of_head, made.detections[image].of_head),
                Link.identity(count) if mode == ALONE else link,
                self._map_bound(reference, image),
                None if mode == ALONE else functools.partial(self._torchvision_keypoints, given, image),
            )

    def _map_bound(self, reference: Trace, image: int) -> float:
        """The largest allowed difference of a mask's probability, or of a heatmap's value."""
        bounds = self.precision.bounds
        if self._head == "mask":
            return bounds.mask
        return bounds.array * (float(np.abs(reference.head_maps[image]).max(initial=0)) or 1.0)

    def _torchvision_head(self, given: Trace, image: int, rows: Indices) -> Float:
        """The output of torchvision's head for these detections of the pipeline."""
        return run_head(self._model, given.head_features[image][rows], given.detections[image].labels[rows])

    def _torchvision_keypoints(self, given: Trace, image: int, rows: Indices) -> dict[str, Float]:
        """The keypoints that torchvision finds in these heatmaps of the pipeline."""
        return run_keypoints(
            given.head_maps[image][rows], given.detected_boxes[image][rows], given.image_sizes[image]
        )

    def _compare_served_head(
        self, image: int, reference: Trace, ours: Trace, found: ImageDetections, link: Link
    ) -> None:
        """Compares a server's masks or keypoints.

        The server's features and maps are not known. Those of the same code in this process are used instead, if it found
        the same number of detections.
        """
        stage = MASKS if MASKS in self._chain.stages else KEYPOINTS
        comparison = self.comparisons[stage, SERVED]
        if not found.of_head:
            comparison.unexplained.append(f"the server answers without {stage}")
            return
        is_alike = len(found.scores) == len(ours.detections[image].scores)
        bound = self._map_bound(reference, image)
        if stage == MASKS:
            head = functools.partial(self._torchvision_head, ours, image) if is_alike else None
            compare_maps(comparison, (reference.head_maps[image], found.of_head[MASKS]), link, bound, head)
        else:
            keypoints = functools.partial(self._torchvision_keypoints, ours, image) if is_alike else None
            pair = reference.detections[image].of_head, found.of_head
            compare_keypoints(comparison, pair, link, bound, keypoints)

    def _pyramid_scale(self, reference: Trace, image: int, pooler: MultiScaleRoIAlign) -> PyramidScale:
        largest = max(float(np.abs(level[image]).max()) for level in reference.features)
        finest, coarsest = (-math.log2(pooler.scales[end]) for end in (0, -1))
        levels = np.arange(finest + 1, coarsest + 1)  # all but the finest
        boundaries_px = pooler.canonical_scale * 2.0 ** (levels - pooler.canonical_level)
        return PyramidScale(boundaries_px, round(2**finest), largest)

    def _compare_detections(
        self,
        name: str,
        mode: str,
        image: int,
        reference: Trace,
        given: Trace,
        made: ImageDetections,
        link: Link,
    ) -> Link:
        return compare_detections(
            self.comparisons["detections", mode],
            f"{name}, picture {image}",
            (reference.class_scores[image], given.class_scores[image]),
            (reference.class_boxes[image], given.class_boxes[image]),
            (reference.detections[image], made),
            reference.image_sizes[image],
            link,
            self._detection_rules,
        )
