"""The command rcnn-eval: COCO results worked out by hand, its output files, and its error messages.

The fake detector finds three boxes over the whole picture, with scores 0.9, 0.6 and 0.3. Their label is the red value
of the picture.
"""

import json

import grpc
import pytest
from PIL import ExifTags, Image
from rcnn_client.tools.eval_cli import main
from tritonclient.grpc import model_config_pb2


@pytest.fixture
def dataset(tmp_path, png):
    """Writes pictures and annotations, (red, size, bbox) for each; `categories` are names, with ids from 11 on."""

    def write(pictures, categories=("class 3", "class 5")):
        ids = {category: number for number, category in enumerate(categories, start=11)}
        images, annotations = [], []
        for number, (red, size, bbox) in enumerate(pictures, start=100):
            (tmp_path / f"{number}.png").write_bytes(png(red, size))
            images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
            category = ids.get(f"class {red}", 11)
            annotations.append({"id": number, "image_id": number, "category_id": category, "bbox": bbox})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": category} for category, number in ids.items()],
        }
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        return content

    return write


@pytest.fixture
def run(server, tmp_path):
    def evaluate(*arguments, annotations="annotations.json"):
        out = tmp_path / "out"
        return main(
            [str(tmp_path / annotations), str(tmp_path), "--url", server.url, "--out", str(out), *arguments]
        )

    return evaluate


# The second box covers 72% of the picture: its IoU of 0.72 matches at 0.50, 0.55, 0.60, 0.65 and 0.70.
TWO = [(3, (20, 20), [0, 0, 20, 20]), (5, (100, 50), [0, 0, 72, 50])]


def test_scores_by_hand(dataset, run, server, tmp_path, capsys):
    dataset(TWO)
    assert run() == 0
    assert {request.parameters["score_thresh"].double_param for request in server.requests} == {0.001}
    (scores,) = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (scores["url"], scores["model"]) == (server.url, "faster_rcnn")
    assert scores["classes"] == {
        "class 3": pytest.approx({"num_boxes": 1, "ap": 1, "ap50": 1, "ap75": 1}),
        "class 5": pytest.approx({"num_boxes": 1, "ap": 0.5, "ap50": 1, "ap75": 0}),
    }
    assert [scores[metric] for metric in ("ap", "ap50", "ap75")] == pytest.approx([0.75, 1, 0.5])
    # 20x20 px is small, 72x50 px is medium.
    assert [scores[metric] for metric in ("ap_small", "ap_medium")] == pytest.approx([1, 0.5])
    assert scores["ap_large"] is None
    out = capsys.readouterr().out
    for line in (
        "│ AP50                       │       1.000 │",
        "│ class 5 │     1 │ 0.500 │ 1.000 │ 0.000 │",
    ):
        assert line in out
    assert "scored on 2 of 2 pictures\n" in out


def test_results_are_in_coco_format(dataset, run, server, tmp_path):
    dataset(TWO)
    run("--score-thresh", "0.5", "--in-flight", "1")
    assert {request.parameters["score_thresh"].double_param for request in server.requests} == {0.5}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == [
        {"image_id": image, "category_id": category, "bbox": box, "score": pytest.approx(score)}
        for image, category, box in ((100, 11, [0, 0, 20, 20]), (101, 12, [0, 0, 100, 50]))
        for score in (0.9, 0.6)
    ]
    with Image.open(tmp_path / "out" / "precision_recall.png") as plot:
        assert plot.width > 1000


def test_in_flight_is_the_limit(dataset, run, server):
    server.delay_s = lambda label: 0.02
    dataset([(3, (20, 20), [0, 0, 20, 20])] * 20)
    assert run("--in-flight", "3") == 0
    assert server.most_in_flight == 3 and len(server.requests) == 20


def test_many_classes(dataset, run, tmp_path, capsys):
    names = [f"class {label}" for label in range(1, 81)]
    dataset([(label, (40, 40), [0, 0, 30 + label % 10, 40]) for label in range(1, 71)], names)
    assert run() == 0
    assert capsys.readouterr().out.count("│ class ") == 80
    assert (tmp_path / "out" / "precision_recall.png").exists()


def test_classes_that_are_not_annotated_are_left_out(dataset, run, tmp_path):
    dataset([*TWO, (7, (20, 20), [0, 0, 20, 20])])  # a picture of class 7, annotated as class 3
    assert run() == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {record["image_id"] for record in results} == {100, 101}
    (scores,) = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["classes"]["class 3"]["ap"] == pytest.approx(51 / 101)  # one of two is found


def test_categories_that_the_model_lacks_are_named(dataset, run, server, tmp_path, capsys):
    content = dataset(TWO, ("class 3", "class 5", "unicorn"))
    content["annotations"].append({**content["annotations"][0], "id": 7, "category_id": 13})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert run() == 1
    err = capsys.readouterr().err
    assert "1 of 3 annotated categories are not classes of the model: 'unicorn'" in err
    assert "'class 1', 'class 2', 'class 4'" in err and "and 178 more" in err
    assert not server.requests


def test_a_category_that_nothing_uses_is_left_out(dataset, run, tmp_path, capsys):
    content = dataset(TWO, ("class 3", "class 5", "animals"))
    content["categories"].append(
        {"id": 0, "name": "class 3", "supercategory": "none"}
    )  # a root category, as in Roboflow's files
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert run() == 0
    out = capsys.readouterr().out
    said = "annotations.json: 2 pictures, 2 boxes, 2 classes; left out: 2 categories without annotations ('class 3', 'animals')\n"
    assert said in out
    (scores,) = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(scores["classes"]) == ["class 3", "class 5"]
    assert scores["ap"] == pytest.approx(0.75)


def test_failed_pictures_are_named_and_the_rest_is_scored(dataset, run, tmp_path, png, capsys):
    dataset([*TWO, *[(3, (20, 20), [0, 0, 20, 20])] * 4])
    (tmp_path / "102.png").write_bytes(b"no picture")
    (tmp_path / "103.png").unlink()
    (tmp_path / "104.png").write_bytes(png(3, (20, 30)))
    whole = (tmp_path / "105.png").read_bytes()
    (tmp_path / "105.png").write_bytes(whole[:45])  # its header can be read, but not its pixels
    assert run() == 1
    out, err = capsys.readouterr()
    for said in (
        f"{tmp_path}/102.png: is not an image of a known format",
        f"{tmp_path}/103.png: No such file or directory",
        f"{tmp_path}/104.png: is 20x30 px upright, but its annotation says 20x20",
        f"rcnn-eval: {tmp_path}/105.png: ",
    ):
        assert said in err
    assert "scored on 2 of 6 pictures; left out because they failed: 4" in out
    assert json.loads((tmp_path / "out" / "scores.json").read_text())[0]["ap"] == pytest.approx(0.75)


def test_when_every_picture_fails_nothing_is_scored(dataset, run, server, tmp_path, capsys):
    dataset(TWO)
    server.status = (grpc.StatusCode.INTERNAL, "out of memory")
    assert run() == 1
    out, err = capsys.readouterr()
    assert "out of memory" in err and "none of the 2 pictures was answered" in err
    assert len(out.splitlines()) == 1  # the summary of the annotation file
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_turned_photo_is_measured_upright(dataset, run, tmp_path):
    dataset([(3, (30, 20), [0, 0, 30, 20])])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (20, 30), (3, 0, 0)).save(tmp_path / "100.png", exif=exif)
    assert run() == 0


def test_a_bad_annotation_file_is_one_sentence_before_the_first_picture(
    dataset, run, server, tmp_path, capfd
):
    content = dataset(TWO)
    content["annotations"][1]["bbox"] = []
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert run() == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("rcnn-eval: ") and "1 of 2 annotations have a bbox that cannot be used" in line
    assert not server.requests


def test_the_wrong_folder_is_named(dataset, run, server, tmp_path, capsys):
    dataset(TWO)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert run() == 1
    assert f"none of the 2 pictures in {tmp_path}/annotations.json exists" in capsys.readouterr().err


def test_no_file_and_no_server(dataset, run, tmp_path, capsys):
    assert run(annotations="none.json") == 1
    assert f"cannot read the annotations {tmp_path}/none.json" in capsys.readouterr().err
    dataset(TWO)
    assert run("--url", "127.0.0.1:1") == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_against_another_model(dataset, run, server, tmp_path, capsys):
    other = model_config_pb2.ModelConfig()
    other.CopyFrom(server.configs["faster_rcnn"])
    other.name = "other"
    server.configs["other"] = other

    def narrow_in_the_second_picture(tensors):
        if server.requests[-1].model_name == "other" and tensors["labels"][0, 0] == 5:
            tensors["boxes"][0, :, 2] *= 0.8  # requests[-1] is this request, as only one is in flight

    server.spoil = narrow_in_the_second_picture
    dataset(TWO)
    (tmp_path / "out" / "differences").mkdir(parents=True)
    (tmp_path / "out" / "differences" / "01_stale.png").touch()
    assert run("--against", "other", "--in-flight", "1") == 0
    first, second = json.loads((tmp_path / "out" / "scores.json").read_text())
    # 80 of 100 px are found, and 72 are annotated: the IoU is 0.9, which matches at all thresholds but 0.95.
    assert (first["ap"], second["ap"]) == (pytest.approx(0.75), pytest.approx(0.95))
    out = capsys.readouterr().out
    assert f"first: {server.url}/faster_rcnn\nsecond: {server.url}/other\n" in out
    assert "│ class 5 │     1 │    0.500 │     0.900 │     +0.400 │" in out
    assert "boxes differ in 1 of 2 pictures" in out
    # Two boxes have a score of 0.5 or more; for each the IoU is 0.8 and the right edges are 20 px apart.
    said = "101.png: difference 0.40: 0 only in the first, 0 only in the second, edges moved by up to 20.0 px"
    assert said in out.splitlines()[-2]
    (drawing,) = (tmp_path / "out" / "differences").iterdir()
    assert drawing.name == "01_101.png"
    with Image.open(drawing) as drawn:
        assert drawn.width > 2 * 640 and drawn.height > 320
    assert len(json.loads((tmp_path / "out" / "results_against.json").read_text())) == 6


def test_a_picture_that_one_of_two_models_failed_on_is_scored_for_neither(dataset, run, server, tmp_path):
    dataset(TWO)
    asked = []

    def fail_once(label):
        asked.append(label)
        if len(asked) == 3:  # the first picture of the second model
            raise RuntimeError
        return 0.0

    server.delay_s = fail_once
    assert run("--against", server.url, "--in-flight", "1") == 1
    for scores in json.loads((tmp_path / "out" / "scores.json").read_text()):
        assert scores["classes"]["class 3"]["num_boxes"] == 0
        assert scores["ap"] == pytest.approx(0.5)
