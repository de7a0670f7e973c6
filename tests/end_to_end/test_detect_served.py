"""rcnn-detect on the sample detector in the real tritonserver."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rcnn_backend.server.local_server import RunningServer
from rcnn_client import Detector
from rcnn_client.tools.detect_cli import main
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from .moving_digits import SIZE_HW, moving_digits

PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"

pytestmark = pytest.mark.xdist_group("client")


def test_a_folder_drawn_as_json_and_as_coco(both_ensembles: RunningServer, tmp_path: Path) -> None:
    """The answers equal those of the library and have the ids of the sample's annotation file."""
    journal, coco, drawn = tmp_path / "found.jsonl", tmp_path / "results.json", tmp_path / "drawn"
    annotations = PICTURES / "annotations.json"
    server = ["--url", both_ensembles.grpc_url, "--model", "digits"]
    writes = [
        "--json",
        str(journal),
        "--coco",
        str(coco),
        "--annotations",
        str(annotations),
        "--out",
        str(drawn),
    ]
    assert main([str(PICTURES), *server, *writes]) == 0

    pictures = sorted(PICTURES.glob("*.jpg"))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["file"] for line in lines] == list(map(str, pictures))
    content = json.loads(annotations.read_text())
    id_of = {image["file_name"]: image["id"] for image in content["images"]}
    category_of = {category["name"]: category["id"] for category in content["categories"]}
    expected = []
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        for picture, line in zip(pictures, lines, strict=True):
            found = detector.detect(picture, score_thresh=0.5)
            assert len(found) and [each["class_name"] for each in line["detections"]] == found.class_names
            assert [each["score"] for each in line["detections"]] == pytest.approx(
                found.scores.tolist(), abs=1e-5
            )
            boxes = [each["box"] for each in line["detections"]]
            np.testing.assert_allclose(boxes, found.boxes, atol=1e-2)
            expected += [(id_of[picture.name], category_of[name]) for name in found.class_names]
            with Image.open(picture) as sent, Image.open(drawn / picture.name) as with_boxes:
                assert with_boxes.size == sent.size
    records = json.loads(coco.read_text())
    assert [(record["image_id"], record["category_id"]) for record in records] == expected
    for record, box in zip(
        records, (each["box"] for line in lines for each in line["detections"]), strict=True
    ):
        assert record["bbox"] == [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def test_a_video(both_ensembles: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frames are sent as pixels to the ensemble that takes pixels, with blue and red in the right order."""
    cv2 = pytest.importorskip("cv2")
    picture = sorted(PICTURES.glob("*.jpg"))[0]
    frame = cv2.imread(str(picture))
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (frame.shape[1], frame.shape[0])
    )
    for _ in range(3):
        writer.write(frame)
    writer.release()
    server = ["--url", both_ensembles.grpc_url, "--model", "digits"]
    assert main([str(tmp_path / "clip.avi"), *server, "--json", "-", "--out", str(tmp_path / "frames")]) == 0
    frames = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with Detector(both_ensembles.grpc_url, "digits") as detector:
        found = detector.detect(picture, score_thresh=0.5)
    expected = sorted(
        name for name, score in zip(found.class_names, found.scores, strict=True) if score > 0.8
    )
    assert len(frames) == 3 and expected
    for line in frames:  # MJPG loses a little
        assert sorted(each["class_name"] for each in line["detections"] if each["score"] > 0.8) == expected
    with Image.open(tmp_path / "frames" / "clip_000002.jpg") as drawn, Image.open(picture) as sent:
        difference = np.abs(np.asarray(drawn, float) - np.asarray(sent.convert("RGB"), float))
        assert np.median(difference) < 10


@pytest.mark.parametrize("num_frames", [40, pytest.param(300, marks=pytest.mark.long)])
def test_a_tracked_video(num_frames: int, both_ensembles: RunningServer, tmp_path: Path) -> None:
    """Digits keep their ids, so that IDF1 is at least 0.9, and the drawn video has every frame."""
    cv2 = pytest.importorskip("cv2")
    clip, drawn, journal = tmp_path / "clip.mp4", tmp_path / "drawn.mp4", tmp_path / "tracked.jsonl"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"mp4v"), 25, SIZE_HW[::-1])
    truth = []
    for frame, boxes in moving_digits(num_frames, num_digits=4, seed=1):
        writer.write(np.ascontiguousarray(frame[:, :, ::-1]))
        truth.append(boxes)
    writer.release()
    server = ["--url", both_ensembles.grpc_url, "--model", "digits"]
    assert main([str(clip), *server, "--track", "--json", str(journal), "--out", str(drawn)]) == 0

    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(num_frames))
    video = cv2.VideoCapture(str(drawn))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == num_frames and video.get(cv2.CAP_PROP_FPS) == 25
    assert idf1(truth, [line["detections"] for line in lines]) >= 0.9


def idf1(truth: list[np.ndarray], found: list[list[dict]]) -> float:
    """Twice the number of boxes with the right id, divided by the number of true plus found boxes.

    Ids are assigned to objects one to one, such that as many boxes as possible (IoU at least 0.5) are right.
    Source: Ristani et al., ECCV 2016.
    """
    together: Counter[tuple[int, int]] = Counter()
    for boxes, detections in zip(truth, found, strict=True):
        ious = box_iou(
            torch.tensor(boxes), torch.tensor([each["box"] for each in detections]).reshape(-1, 4).double()
        )
        for row, column in (ious >= 0.5).nonzero().tolist():
            together[row, detections[column]["track_id"] - 1] += 1
    shared = np.zeros((len(truth[0]), 1 + max(track for _, track in together)))
    for place, count in together.items():
        shared[place] = count
    right = shared[linear_sum_assignment(shared, maximize=True)].sum()
    return float(2 * right / (sum(map(len, truth)) + sum(map(len, found))))
