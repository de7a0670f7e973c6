"""AP of boxes, masks and keypoints of an exported detector, measured in process, and the pictures that it needs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask
from rcnn_backend.operators.detections import Detections
from rcnn_export.detector.load import Detector
from rcnn_export.errors import ExportError
from rcnn_export.repository.average_precision import describe, largest_loss, measure_aps, read_annotated
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN

BOX = [4, 2, 10, 6]  # x, y, width, height in pixels
SQUARE = [[4, 2, 14, 2, 14, 8, 4, 8]]
POINTS = [5, 3, 2, 9, 5, 2]


def write(folder: Path, count: int = 2, category: str = "cat", **shapes: Any) -> Path:
    """Write an annotation file with one object in each picture, and the pictures."""
    images, annotations = [], []
    for number in range(count):
        pixels = np.full((12, 20, 3), number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 20, "height": 12})
        annotations.append({"id": number, "image_id": number, "category_id": 7, "bbox": BOX, **shapes})
    path = folder / "annotations.json"
    categories = [{"id": 7, "name": category}, {"id": 9, "name": "unused"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def detector(kind: type[FasterRCNN] = FasterRCNN, keypoints: tuple[str, ...] = ()) -> Detector:
    """A stand-in for a detector that has only its heads and its names."""
    model = SimpleNamespace(
        roi_heads=SimpleNamespace(
            has_mask=lambda: kind is MaskRCNN, has_keypoint=lambda: kind is KeypointRCNN
        )
    )
    found: Any = SimpleNamespace(
        model=model, class_names=["__background__", "dog", "cat"], keypoint_names=list(keypoints)
    )
    return found  # type: ignore[no-any-return]


class FindsTheBox:
    """A pipeline that finds the box in pictures of these grey values, and nothing in other pictures."""

    def __init__(self, *values: int, **of_head: Any) -> None:
        self._values, self._of_head = values, of_head

    def detect(self, images: list[np.ndarray], overrides: dict[str, float]) -> Detections:
        assert overrides == {"score_thresh": 0.001}
        count = int(images[0][0, 0, 0] in self._values)
        boxes = np.array([[[4, 2, 14, 8], [0, 0, 0, 0]]], np.float32) * count
        return Detections(
            boxes,
            np.array([[0.9, 0]], np.float32) * count,
            np.array([[2, 0]]) * count,
            np.array([[count]], np.int32),
            of_head=self._of_head,
        )


def test_all_boxes_found_give_ap_100_and_half_of_them_about_50(tmp_path: Path) -> None:
    annotated = read_annotated(write(tmp_path), tmp_path, detector(), print)
    both: Any = FindsTheBox(0, 1)
    one: Any = FindsTheBox(1)
    assert measure_aps(both, annotated, print) == {"boxes": pytest.approx(100)}
    assert measure_aps(one, annotated, print) == {"boxes": pytest.approx(100 * 51 / 101)}  # recalls 0 to 0.5


def test_masks_and_keypoints_are_scored_where_detector_and_file_have_them(tmp_path: Path) -> None:
    path = write(tmp_path, segmentation=SQUARE, keypoints=POINTS, num_keypoints=2)

    encoded = mask.encode(np.asfortranarray(np.pad(np.ones((6, 10), np.uint8), ((2, 4), (4, 6)))))
    rle = encoded["counts"]
    annotated = read_annotated(path, tmp_path, detector(MaskRCNN), print)
    pipeline: Any = FindsTheBox(0, 1, rles=np.array([[rle, b""]], object))
    assert measure_aps(pipeline, annotated, print) == {
        "boxes": pytest.approx(100),
        "masks": pytest.approx(100),
    }

    annotated = read_annotated(path, tmp_path, detector(KeypointRCNN, ("left", "right")), print)
    points = np.array([[[[5, 3, 1], [9, 5, 1]], [[0, 0, 0], [0, 0, 0]]]], np.float32)
    pipeline = FindsTheBox(0, 1, keypoints=points)
    assert measure_aps(pipeline, annotated, print) == {
        "boxes": pytest.approx(100),
        "keypoints": pytest.approx(100),
    }


def test_shapes_that_are_not_scored_and_too_few_pictures_are_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    path = write(tmp_path, keypoints=POINTS, num_keypoints=2)
    assert read_annotated(path, tmp_path, detector(MaskRCNN), lines.append).kind == "bbox"
    assert any(line.startswith("masks are not scored: ") for line in lines)
    assert lines[-1] == (
        "There are 2 annotated pictures. AP over so few depends on chance: a few hundred are better"
    )
    three = detector(KeypointRCNN, ("left", "right", "top"))
    assert read_annotated(path, tmp_path, three, lines.append).kind == "bbox"
    assert any("the model returns 3 keypoints, but 2 are annotated" in line for line in lines)


def no_file(folder: Path) -> None:
    (folder / "annotations.json").unlink()


def no_picture(folder: Path) -> None:
    (folder / "1.png").unlink()


def no_annotated_picture(folder: Path) -> None:
    (folder / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}')


def broken_picture(folder: Path) -> None:
    (folder / "1.png").write_text("<html>not found</html>")


def other_size(folder: Path) -> None:
    Image.new("RGB", (21, 12)).save(folder / "1.png")


def other_class(folder: Path) -> None:
    write(folder, category="horse")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_file, "cannot read the annotations .*annotations.json: No such file"),
        (no_annotated_picture, "lists no images"),
        (no_picture, r"1 of 2 pictures in .* are missing, the first is .*1\.png"),
        (broken_picture, r"cannot read the picture .*1\.png: "),
        (other_size, r"1\.png is \(21, 12\) px .* the boxes belong to another version"),
        (other_class, "1 of 1 annotated categories are not classes of the model: 'horse'"),
    ],
)
def test_annotations_that_cannot_be_used(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    path = write(tmp_path)
    change(tmp_path)
    with pytest.raises(ExportError) as raised:
        read_annotated(path, tmp_path, detector(), print)
    assert re.search(message, str(raised.value)), raised.value


def test_the_loss_is_the_largest_of_boxes_and_masks() -> None:
    expected, found = {"boxes": 83.25, "masks": 74.5}, {"boxes": 83.5, "masks": 74.0}
    assert largest_loss(expected, found) == 0.5
    assert describe(expected) == "AP 83.25 of boxes, 74.50 of masks"
