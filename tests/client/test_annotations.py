"""The reader of COCO files: one rule for each irregularity. The tests write all files themselves."""

import copy
import gzip
import json

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rcnn_client.tools.annotations import read_annotations
from rcnn_client.tools.coco_score import score
from rcnn_client.tools.detect_coco import ImageIds


def content():
    """Two pictures of 100x80 px, with two and three boxes of two categories."""
    boxes = [(1, 4, [10, 10, 20, 30]), (1, 9, [60, 20, 25, 30]), (2, 9, [5, 40, 60, 30])]
    boxes += [(2, 4, [40.5, 0, 12.5, 9]), (2, 4, [70, 60, 30, 20])]
    return {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 80} for number in (2, 1)
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0}
            for number, (image, category, bbox) in enumerate(boxes, start=31)
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": " cat "}],
    }


@pytest.fixture
def read(tmp_path):
    def write_and_read(written):
        path = tmp_path / "a.json"
        path.write_bytes(written if isinstance(written, bytes) else json.dumps(written).encode())
        return read_annotations(path)

    return write_and_read


def changed(part, position, **fields):
    """The content with fields of one record changed, or removed where the value is an Ellipsis."""
    changed = content()
    record = changed[part][position]
    record.update(fields)
    for field in [field for field, value in fields.items() if value is ...]:
        del record[field]
    return changed


def test_what_is_read(read, tmp_path):
    annotations = read(content())
    assert [(image.id, image.file_name, image.size) for image in annotations.images] == [
        (1, "1.jpg", (100, 80)),
        (2, "2.jpg", (100, 80)),
    ]
    assert [(category.id, category.name) for category in annotations.categories] == [(4, "cat"), (9, "dog")]
    first, *_, last = annotations.records()
    expected = {"image_id": 1, "category_id": 4, "bbox": [10, 10, 20, 30], "area": 600, "iscrowd": 0}
    assert first == expected
    assert last == {**expected, "image_id": 2, "bbox": [70, 60, 30, 20]}
    assert annotations.summary == f"{tmp_path}/a.json: 2 pictures, 5 boxes, 2 classes"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_ignored(read, encoding):
    assert len(read(json.dumps(content()).encode(encoding)).boxes.bbox) == 5


@pytest.mark.parametrize("field", ["area", "iscrowd", "id"])
@pytest.mark.parametrize("value", [None, ...])
def test_fields_that_may_be_missing(read, field, value):
    annotations = read(changed("annotations", 0, **{field: value}))
    assert annotations.records()[0]["area"] == 600 and annotations.records()[0]["iscrowd"] == 0


def test_ids_may_be_text(read):
    textual = content()
    for part, fields in {
        "images": ["id"],
        "categories": ["id"],
        "annotations": ["image_id", "category_id"],
    }.items():
        for record in textual[part]:
            record.update({field: f"x{record[field]}" for field in fields})
    assert read(textual).records()[0]["image_id"] == "x1"


def with_boxes(*bboxes, **fields):
    """The content with further annotations in its first picture."""
    longer = content()
    for number, bbox in enumerate(bboxes, start=71):
        record = {"id": number, "image_id": 1, "category_id": 4, "bbox": bbox}
        longer["annotations"].append({**record, **fields})
    return longer


def with_category(**category):
    longer = content()
    longer["categories"].append(category)
    return longer


@pytest.mark.parametrize(
    ("written", "num_boxes", "said"),
    [
        (with_boxes([3, 3, 0, 5], [3, 3, 5, 0]), 5, "left out: 2 boxes without width or height"),
        (with_boxes([3, 3, 1e-7, 5]), 5, "left out: 1 box without width or height"),
        (with_boxes([120, 3, 5, 5]), 5, "left out: 1 box outside its picture"),
        (with_boxes([-9, 3, 9, 5], [3, 80, 5, 9]), 5, "left out: 2 boxes outside their pictures"),
        (with_boxes([95, 3, 15, 5]), 6, "2 classes; kept: 1 box that reaches beyond its picture"),
        (with_boxes([90, 3, 10.5, 5]), 6, "2 classes"),
        (with_boxes([10, 10, 20, 30], id=31), 5, "left out: 1 repeated annotation"),
        (with_boxes([11, 10, 20, 30], id=31), 6, "2 classes"),
        (with_category(id=0, name="animals"), 5, "left out: 1 category without annotations ('animals')"),
        (with_category(id=0, name="dog"), 5, "left out: 1 category without annotations ('dog')"),
    ],
)  # fmt: skip
def test_harmless_irregularities_are_left_out_and_counted(read, written, num_boxes, said):
    annotations = read(written)
    assert len(annotations.boxes.bbox) == num_boxes
    assert annotations.summary.endswith(said)


def test_several_irregularities_are_reported_in_one_line(read):
    odd = with_boxes([3, 3, 0, 5], [120, 3, 5, 5])
    odd["categories"].append({"id": 0, "name": "animals"})
    assert read(odd).summary.endswith(
        "a.json: 2 pictures, 5 boxes, 2 classes; left out: 1 box without width or height, 1 box outside its picture, "
        "1 category without annotations ('animals')"
    )


BBOX = (
    r"annotations have a bbox that cannot be used \(expected left, top, width, height in pixels\): id 31 has "
)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", r"a\.json is not JSON: .*Expected a COCO instances file"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (gzip.compress(b"{}", mtime=0), "is compressed with gzip: unpack it"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}], "is a list of COCO results"),
        ([], "is a JSON list"),
        (7, "holds 7: expected a COCO instances file"),
        ({}, "has no annotations, categories, images: expected"),
        ({**content(), "images": {"1": "1.jpg"}}, "under images: expected a list of objects"),
        ({**content(), "images": 7}, "has 7 under images: expected a list of objects"),
        ({**content(), "annotations": None}, "has null under annotations"),
        ({**content(), "annotations": [None]}, "has null under annotations: expected a list of objects"),
        ({"images": [], "annotations": [{"id": 1, "caption": "a dog"}]}, "is a COCO captions file"),
        ({**content(), "annotations": [{"image_id": 1, "segments_info": []}]}, "is a COCO panoptic file"),
        (changed("images", 0, neg_category_ids=[3], file_name=...), "is an LVIS file"),
        ({**content(), "images": []}, "lists no images"),
        ({**content(), "categories": []}, "lists no categories"),
        ({**content(), "annotations": []}, "lists no annotations: expected boxes"),
        ({"images": content()["images"], "categories": content()["categories"]}, "has no annotations, like a test set"),
        (changed("images", 0, width=...), r"1 of 2 images lack .*: id 2 \(.*\"width\": null"),
        (changed("images", 0, height="80"), r"1 of 2 images lack .* a width and a height in pixels"),
        (changed("images", 0, width=0.5), r"1 of 2 images lack"),
        (changed("images", 0, file_name=None), r"1 of 2 images lack a file_name"),
        (changed("images", 0, id=1), r"a\.json: ids are repeated under images: 1\. If files were merged, renumber them"),
        (changed("images", 0, id=...), "images have ids such as null: expected whole numbers"),
        (changed("images", 0, id="2"), 'some ids under images are numbers and others are text, such as "2"'),
        (changed("images", 0, file_name="1.jpg"), r"several images have the same file_name: 1\.jpg"),
        (changed("categories", 0, id=4), "ids are repeated under categories: 4"),
        (changed("categories", 0, id=[9]), r"categories have ids such as \[9\]"),
        (changed("categories", 0, name="cat"), "several categories are named 'cat'; classes are matched by name"),
        (changed("categories", 0, name=None), "the category of id 9 has the name null: expected one line of text"),
        (changed("categories", 0, name="a\nb"), "expected one line of text"),
        (changed("annotations", 0, image_id=7), "1 of 5 annotations have an image_id that is not under images: id 31 has 7"),
        (changed("annotations", 0, image_id="1"), 'that is not under images: id 31 has "1"'),
        (changed("annotations", 0, image_id=[1]), "that is not under images"),
        (changed("annotations", 0, category_id=5), "have a category_id that is not under categories: id 31 has 5"),
        (changed("annotations", 0, category_id=None), "that is not under categories: id 31 has null"),
        (changed("annotations", 0, bbox=...), f"{BBOX}null"),
        (changed("annotations", 0, bbox=..., id=...), r"annotations\[0\] has null"),
        (changed("annotations", 0, bbox=[]), rf"1 of 5 {BBOX}\[\]"),
        (changed("annotations", 0, bbox=[1, 2, 3]), rf"{BBOX}\[1, 2, 3\]"),
        (changed("annotations", 0, bbox=[1, 2, 3, 4, 5]), BBOX),
        (changed("annotations", 0, bbox=["1", "2", "12.5", "4"]), BBOX),
        (changed("annotations", 0, bbox="1 2 3 4"), BBOX),
        (changed("annotations", 0, bbox=[1, 2, None, 4]), BBOX),
        (changed("annotations", 0, bbox=[1, 2, True, 4]), BBOX),
        (changed("annotations", 0, bbox=[1, 2, -3, 4]), BBOX),
        (changed("annotations", 0, bbox=[float("nan"), 2, 3, 4]), rf"{BBOX}\[NaN"),
        (changed("annotations", 0, bbox=[1, 2, float("inf"), 4]), BBOX),
        (changed("annotations", 0, bbox=[1, 2, 10**400, 4]), BBOX),
        (changed("annotations", 0, bbox=[1e308, 2, 1e308, 4]), BBOX),
        (changed("annotations", 0, area="600"), 'have an area that is not a number of square pixels: id 31 has "600"'),
        (changed("annotations", 0, area=-1), "have an area"),
        (changed("annotations", 0, iscrowd="0"), 'have an iscrowd other than 0 and 1: id 31 has "0"'),
    ],
    ids=lambda value: "" if isinstance(value, (bytes, dict, list)) else None,
)  # fmt: skip
def test_what_would_change_the_meaning_is_an_error(read, written, message):
    with pytest.raises(ValueError, match=message) as raised:
        read(written)
    assert len(str(raised.value).splitlines()) == 1


def test_the_first_few_are_named(read):
    broken = content()
    for record in broken["annotations"]:
        record["bbox"] = None
    with pytest.raises(
        ValueError, match=r"5 of 5 .* id 31 has null, id 32 has null, id 33 has null, and 2 more$"
    ):
        read(broken)


def with_every_box(convert):
    converted = content()
    for record in converted["annotations"]:
        record["bbox"] = convert(*record["bbox"])
    return converted


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda x, y, w, h: [x / 100, y / 80, w / 100, h / 80], "the boxes look normalised to 0..1, such as"),
        (
            lambda x, y, w, h: [x / 9999, y / 9999, w / 9999, h / 9999],
            "the boxes look normalised to 0..1, such as",
        ),
        (lambda x, y, w, h: [x, y, x + w, y + h], "the boxes look like x1, y1, x2, y2, such as"),
        (
            lambda x, y, w, h: [9 * x + 90, 9 * y, 9 * w, 9 * h],
            "the boxes look like those of larger pictures",
        ),
        (lambda x, y, w, h: [x, y, 0, h], "has no box .*; left out: 5 boxes without width or height"),
    ],
)
def test_boxes_of_another_format_are_recognised(read, convert, message):
    with pytest.raises(ValueError, match=message):
        read(with_every_box(convert))


def test_a_file_with_only_crowds_is_an_error(read):
    crowds = content()
    for record in crowds["annotations"]:
        record["iscrowd"] = 1
    with pytest.raises(ValueError, match="has no box to train on or to compare with; all are crowds"):
        read(crowds)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the annotations .*none\.json: No such file"):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(ValueError, match="Is a directory"):
        read_annotations(tmp_path)


def test_the_ids_of_a_test_set_can_be_read(tmp_path):
    test_set = {**content(), "annotations": None}
    del test_set["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(test_set))
    ids = ImageIds(tmp_path / "test.json")
    ids.match(["background", "dog", "cat"])
    assert (ids.category_id(1), ids.category_id(2)) == (9, 4)


def test_scores_equal_those_of_pycocotools_where_boxes_reach_beyond_their_picture(read):
    written = with_boxes([-4, 60, 30, 30], [80, 5, 30, 40])
    written["annotations"][1].update(iscrowd=1, area=700)
    for number, record in enumerate(written["annotations"]):
        record.setdefault("iscrowd", 0)
        record.setdefault("area", 300 + 900 * number)
    truth, generous = read(written), [0.9, 0.93, 0.7, 0.8, 0.96, 1.1, 0.85]
    found = [
        {
            "image_id": record["image_id"],
            "category_id": record["category_id"],
            "bbox": [*record["bbox"][:2], record["bbox"][2] * by, record["bbox"][3]],
            "score": round(by, 1),  # some are equal
        }
        for record, by in zip(truth.records(), generous, strict=True)
    ]
    expected = COCO()
    expected.dataset = {**copy.deepcopy(written), "info": {}}
    expected.createIndex()
    evaluation = COCOeval(expected, expected.loadRes(copy.deepcopy(found)), "bbox")
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    categories = [{"id": each.id, "name": each.name} for each in truth.categories]
    ours = score([{"id": image.id} for image in truth.images], categories, truth.records(), found)
    aps = [ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large]
    assert aps == pytest.approx(list(evaluation.stats[:6]), abs=1e-12)
    assert 0.3 < ours.ap < 1


def test_ids_of_any_kind_and_size_score_alike():
    bbox = [10.0, 10.0, 20.0, 20.0]
    for ids in ((1, 2), (2**63 + 1, 2**63 + 2), ("a", "b"), (0, 1)):
        images = [{"id": id_} for id_ in ids]
        truth = [{"image_id": id_, "category_id": ids[0], "bbox": bbox} for id_ in ids]
        found = [{**truth[0], "score": 0.9}]
        scores = score(images, [{"id": ids[0], "name": "dog"}], truth, found)
        assert scores.ap == pytest.approx(51 / 101)
