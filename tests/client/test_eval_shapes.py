"""rcnn-eval of masks and keypoints: results worked out by hand, those of pycocotools, and files without either.

The fake detector finds three boxes over the whole picture, with scores 0.9, 0.6 and 0.3. Their masks are the left
half of the picture, and keypoint number k is at x = k, y = 2k.
"""

import copy
import json
import re

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rcnn_client.tools.annotations import read_annotations
from rcnn_client.tools.coco_score import score
from rcnn_client.tools.eval_cli import main

SIZE = (40, 30)
LEFT_HALF = [0, 0, 20, 0, 20, 30, 0, 30]
POINTS = [0, 0, 2, 1, 2, 2, 2, 4, 1]


@pytest.fixture
def evaluate(server, tmp_path, png, capsys):
    """Runs rcnn-eval on one picture with one object; returns its scores and what it printed."""

    def run(*others, **fields):
        (tmp_path / "1.png").write_bytes(png(3, SIZE))
        record = {"id": 1, "image_id": 1, "category_id": 11, "bbox": [0, 0, *SIZE], **fields}
        content = {
            "images": [{"id": 1, "file_name": "1.png", "width": SIZE[0], "height": SIZE[1]}],
            "annotations": [record, *others],
            "categories": [{"id": 11, "name": "class 3"}],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        out = tmp_path / "out"
        assert main([str(tmp_path / "a.json"), str(tmp_path), "--url", server.url, "--out", str(out)]) == 0
        (scores,) = json.loads((out / "scores.json").read_text())
        return scores, capsys.readouterr().out

    return run


def test_masks_are_scored(evaluate, server, tmp_path):
    server.add_masks()
    scores, out = evaluate(segmentation=[[0, 0, 28, 0, 28, 30, 0, 30]])
    assert scores["ap"] == pytest.approx(1)
    # 20 or 21 columns are found, and 28 are annotated: the IoU is 0.71 or 0.75, which matches at 0.50 to 0.70.
    assert scores["segm"]["ap"] == pytest.approx(0.5) and scores["segm"]["ap75"] == pytest.approx(0)
    assert scores["segm"]["classes"]["class 3"]["num_boxes"] == 1
    assert "COCO average precision of boxes" in out and "COCO average precision of masks" in out
    assert "keypoints" not in scores and "not scored" not in out
    assert (tmp_path / "out" / "precision_recall_segm.png").exists()
    (best, *_) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert coco_mask.area(best["segmentation"]) > 500


def test_keypoints_are_scored(evaluate, server, tmp_path):
    server.add_keypoints(3)
    scores, out = evaluate(keypoints=POINTS)
    assert scores["keypoints"]["ap"] == pytest.approx(1) and scores["keypoints"]["ap_small"] is None
    assert "COCO average precision of keypoints" in out and "segm" not in scores
    assert (tmp_path / "out" / "precision_recall_keypoints.png").exists()
    (best, *_) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert best["keypoints"] == [0, 0, 1, 1, 2, 1, 2, 4, 1] and best["num_keypoints"] == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {},
            "masks are not scored: {path} has no mask to train on or to compare with; left out: 1 annotation without",
        ),
        ({"segmentation": [[1, 2, 3, 4]]}, "masks are not scored: {path} has no mask .* fewer than 3 points"),
        (
            {},
            "keypoints are not scored: {path} has no labelled keypoints to train on or to compare with",
        ),
        (
            {"keypoints": [0] * 9, "num_keypoints": 0},
            "keypoints are not scored: {path} has no labelled keypoints",
        ),
        (
            {"keypoints": POINTS[:6]},
            "keypoints are not scored: the model returns 3 keypoints, but 2 are annotated",
        ),
    ],
)
def test_shapes_that_are_not_scored_are_reported(evaluate, server, tmp_path, fields, said):
    server.add_masks()
    server.add_keypoints(3)
    scores, out = evaluate(**fields)
    assert scores["ap"] == pytest.approx(1)
    assert re.search(said.format(path=re.escape(str(tmp_path / "a.json"))), out)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"segmentation": [[1, 2, 3]]}, "have a segmentation that cannot be used"),
        ({"keypoints": [1, 2, 3]}, "have keypoints with a visibility other than 0"),
    ],
)
def test_unusable_annotations_end_the_run_before_the_first_picture(
    server, tmp_path, evaluate, capsys, fields, said
):
    server.add_masks()
    server.add_keypoints(3)
    evaluate()
    server.requests.clear()
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][0] |= fields
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main([str(tmp_path / "a.json"), str(tmp_path), "--url", server.url]) == 1
    assert f"rcnn-eval: {tmp_path}/a.json: 1 of 1 annotations {said}" in capsys.readouterr().err
    assert not server.requests


def test_boxes_without_a_mask_are_left_out_as_in_training(evaluate, server):
    """The detector would miss the second box. For a model with only boxes, that box counts as missed."""
    server.add_masks()
    other = {"id": 2, "image_id": 1, "category_id": 11, "bbox": [0, 0, 5, 5]}
    scores, out = evaluate(other, segmentation=[LEFT_HALF])
    assert "1 boxes with masks" in out and "left out: 1 annotation without a segmentation" in out
    assert scores["classes"]["class 3"]["num_boxes"] == scores["segm"]["classes"]["class 3"]["num_boxes"] == 1


def test_a_model_of_boxes_alone(evaluate):
    scores, out = evaluate(segmentation=[LEFT_HALF], keypoints=POINTS)
    assert "segm" not in scores and "keypoints" not in scores and "not scored" not in out


def rle(mask):
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def made_up(num_points):
    """Two pictures with objects of two classes, all kinds of annotations, and detections near them."""
    random, truth, found = np.random.default_rng(1), [], []
    for number in range(40):
        left, top = random.uniform(0, 200, 2).round(1)
        width, height = random.uniform(8, 130, 2).round(1)
        image, category = int(random.integers(5, 7)), int(random.integers(3, 5))
        polygon = [left, top, left + width, top + height / 3, left + width / 2, top + height]
        points = np.stack(
            (random.uniform(left, left + width, num_points), random.uniform(top, top + height, num_points)), 1
        )
        seen = random.integers(0, 3, num_points) * (number % 5 > 0)
        mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([polygon], 320, 330)))
        truth.append({
            "id": number + 1, "image_id": image, "category_id": category, "bbox": [left, top, width, height],
            "area": float(mask.sum()), "iscrowd": int(number % 9 == 8), "segmentation": [polygon],
            "keypoints": np.column_stack((points, seen)).ravel().tolist(), "num_keypoints": int((seen > 0).sum()),
        })  # fmt: skip
        shift = random.normal(0, 4, 2)
        moved = np.roll(mask, shift.astype(int)[::-1], axis=(0, 1))
        near = points + random.normal(0, 3, points.shape)
        found.append({
            "image_id": image, "category_id": category, "bbox": [left + shift[0], top + shift[1], width, height],
            "segmentation": rle(moved), "keypoints": np.column_stack((near, np.ones(num_points))).ravel().tolist(),
            "score": float(random.random()),
        })  # fmt: skip
    images = [{"id": id_, "width": 330, "height": 320} for id_ in (5, 6)]
    return images, [{"id": 3, "name": "a"}, {"id": 4, "name": "b"}], truth, found


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_scores_equal_those_of_pycocotools(kind):
    images, categories, truth, found = made_up(17)
    scores = score(images, categories, truth, found, kind)
    coco = COCO()
    coco.dataset = copy.deepcopy({"images": images, "categories": categories, "annotations": truth})
    coco.createIndex()
    fields = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
    base = ("image_id", "category_id", "score", fields[kind])
    results = coco.loadRes([{field: each[field] for field in base} for each in found])
    expected = COCOeval(coco, results, kind)
    expected.evaluate(), expected.accumulate(), expected.summarize()
    stats = [*expected.stats[:3], -1, *expected.stats[3:5]] if kind == "keypoints" else expected.stats[:6]
    found_stats = [scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large]
    assert found_stats == pytest.approx(list(stats), abs=1e-12) and 0.02 < scores.ap < 0.99


def test_keypoints_of_another_number():
    images, categories, truth, found = made_up(4)
    for record in truth[:3]:
        del record["keypoints"], record["num_keypoints"]
    scores = score(images, categories, truth, found, "keypoints")
    assert 0.02 < scores.ap < 0.99
    labelled = [each for each in truth if each.get("num_keypoints") and not each["iscrowd"]]
    assert sum(each.num_boxes for each in scores.classes) == len(labelled)


def test_annotations_keep_both(tmp_path):
    images, categories, truth, _ = made_up(17)
    images = [{**image, "file_name": f"{image['id']}.jpg"} for image in images]
    content = {"images": images, "categories": categories, "annotations": truth}
    (tmp_path / "a.json").write_text(json.dumps(content))
    read = read_annotations(tmp_path / "a.json").with_masks().with_keypoints()
    for record, expected in zip(read.records(), truth, strict=True):
        mask = coco_mask.merge(coco_mask.frPyObjects(expected["segmentation"], 320, 330))
        assert record == {key: value for key, value in expected.items() if key != "id"} | {
            "segmentation": mask
        } | ({"keypoints": [0] * 51} if not expected["num_keypoints"] else {})
