"""The command rcnn-detect on many pictures: lines of JSON, resuming, COCO results."""

import json
import os

import pytest
from PIL import Image
from rcnn_client.tools.detect_cli import main


@pytest.fixture
def folder(tmp_path, png):
    """Pictures 1.png to 6.png, which the fake server labels 1 to 6; two of them are in a subfolder."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for label in range(1, 7):
        (photos / ("sub" if label > 4 else "") / f"{label}.png").write_bytes(png(label))
    (photos / "notes.txt").write_text("no picture")
    (photos / ".hidden.png").write_text("no picture")
    return photos


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def labels(lines):
    return [line["detections"][0]["label"] for line in lines]


def test_a_folder_in_order_as_json(server, folder, tmp_path, capsys):
    server.delay_s = lambda label: 0.1 / label  # the first answers last
    assert main([str(folder), "--url", server.url, "--json", str(tmp_path / "new" / "found.jsonl")]) == 0
    lines = lines_of(tmp_path / "new" / "found.jsonl")
    assert labels(lines) == [1, 2, 3, 4, 5, 6]
    assert lines[4] == {
        "file": f"{folder}/sub/5.png",
        "detections": [
            {"class_name": "class 5", "label": 5, "score": 0.9, "box": [0.0, 0.0, 40.0, 30.0]},
            {"class_name": "class 5", "label": 5, "score": 0.6, "box": [0.0, 0.0, 40.0, 30.0]},
        ],
        "model": "faster_rcnn",
        "score_thresh": 0.5,
        "classes": None,
        "mask_thresh": None,
        "tiles": None,
    }
    assert capsys.readouterr() == ("", "")


def test_drawings_mirror_the_folder_and_are_no_input(server, folder):
    Image.new("RGB", (40, 30), (9, 0, 0)).save(folder / "9.jpg")
    for _ in range(2):
        assert main([str(folder), "--url", server.url, "--out", str(folder / "drawn")]) == 0
    drawn = sorted(str(path.relative_to(folder / "drawn")) for path in (folder / "drawn").rglob("*.*"))
    assert drawn == ["1.png", "2.png", "3.png", "4.png", "9.jpg", "sub/5.png", "sub/6.png"]
    assert len(server.requests) == 2 * 7


def test_a_pattern(server, folder, capsys):
    assert main([f"{folder}/**/[25].png", "--url", server.url]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "photos" in line] == [
        f"{folder}/2.png: 2 detections",
        f"{folder}/sub/5.png: 2 detections",
    ]


def test_classes(server, folder, capsys):
    assert (
        main([f"{folder}/1.png", f"{folder}/2.png", "--url", server.url, "--classes", "class 2, class 3"])
        == 0
    )
    out = capsys.readouterr().out
    assert f"{folder}/1.png: no detections" in out and f"{folder}/2.png: 2 detections" in out


def test_a_class_that_the_model_lacks_is_wrong_usage(server, folder, capsys):
    assert main([str(folder), "--url", server.url, "--classes", "cat"]) == 2
    assert "'cat', expected some of: class 1, class 2" in capsys.readouterr().err


def test_headers_and_several_servers(server, other_server, folder):
    urls = ["--url", server.url, "--url", other_server.url]
    assert main([str(folder), *urls, "--header", "Authorization: Bearer a:b"]) == 0
    assert len(server.requests) + len(other_server.requests) == 6
    assert server.requests and other_server.requests
    assert {sent["authorization"] for sent in server.metadata} == {"Bearer a:b"}


def test_a_file_that_is_not_a_certificate(server, folder, capsys):
    assert main([str(folder), "--url", server.url, "--tls-ca", str(folder / "notes.txt")]) == 2
    assert "notes.txt" in capsys.readouterr().err


def test_resume(server, folder, tmp_path, png, capsys):
    journal, coco = tmp_path / "found.jsonl", tmp_path / "results.json"
    (folder / "2.png").write_bytes(b"not a picture")
    command = [str(folder), "--url", server.url, "--json", str(journal), "--coco", str(coco)]
    assert main(command) == 1
    assert [("error" in line) for line in lines_of(journal)] == [False, True, False, False, False, False]
    assert lines_of(journal)[1]["error"] == "in ensemble 'faster_rcnn', not an image"

    # The run was stopped while it wrote the line of sub/6.png. Then 2.png was replaced by a good picture.
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:5]) + '{"file": "')
    (folder / "2.png").write_bytes(png(2))
    sent_before = len(server.requests)
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2 and "add --resume" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().err == "rcnn-detect: 2 answered, 4 answered by an earlier run, 0 failed\n"
    assert len(server.requests) == sent_before + 2
    assert labels(lines_of(journal)) == [1, 3, 4, 5, 2, 6]
    resumed = json.loads(coco.read_text())

    journal.unlink()
    assert main([*command, "--resume"]) == 0  # there is nothing to resume, so it starts from the beginning
    assert labels(lines_of(journal)) == [1, 2, 3, 4, 5, 6]
    assert sorted(map(str, resumed)) == sorted(map(str, json.loads(coco.read_text())))


def test_a_journal_of_another_run_is_refused(server, folder, tmp_path, capsys):
    journal = tmp_path / "found.jsonl"
    command = [str(folder), "--url", server.url, "--json", str(journal), "--resume"]
    assert main(command) == 0
    before = journal.read_text()
    for change, reason in (
        (["--score-thresh", "0.7"], 'line 1 was written with model "faster_rcnn", score_thresh 0.5'),
        (["--classes", "class 1"], 'this run has model "faster_rcnn", score_thresh 0.5, classes ["class 1"]'),
    ):
        with pytest.raises(SystemExit):
            main([*command, *change])
        assert reason in capsys.readouterr().err
    assert journal.read_text() == before
    journal.write_text('{"id": 1}\n')
    with pytest.raises(SystemExit):
        main(command)
    assert "line 1 was not written by rcnn-detect" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.jsonl", "photos"]


def test_coco_by_order_and_label(server, folder, tmp_path):
    out = tmp_path / "results.json"
    (folder / "2.png").write_bytes(b"not a picture")  # the others keep their numbers
    assert main([str(folder), "--url", server.url, "--coco", str(out), "--score-thresh", "0.8"]) == 1
    records = json.loads(out.read_text())
    assert [(record["image_id"], record["category_id"]) for record in records] == [
        (1, 1), (3, 3), (4, 4), (5, 5), (6, 6),
    ]  # fmt: skip
    assert records[0] == {
        "image_id": 1,
        "category_id": 1,
        "bbox": [0.0, 0.0, 40.0, 30.0],
        "score": 0.9,
        "file_name": f"{folder}/1.png",
    }


def test_coco_with_the_ids_of_an_annotation_file(server, folder, tmp_path, capsys):
    names = {"1.png": 101, "sub/5.png": 105, "6.png": 106}
    content = {
        "images": [{"id": id_, "file_name": name, "width": 40, "height": 30} for name, id_ in names.items()],
        "annotations": [{"id": 1, "image_id": 101, "category_id": 50, "bbox": [0, 0, 1, 1]}],
        "categories": [{"id": 50, "name": "class 5"}, {"id": 60, "name": "class 6"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    out = ["--coco", str(tmp_path / "results.json"), "--annotations", str(tmp_path / "instances.json")]
    assert main([f"{folder}/1.png", f"{folder}/2.png", f"{folder}/sub", "--url", server.url, *out]) == 1
    assert f"{folder}/2.png: is not in {tmp_path}/instances.json" in capsys.readouterr().err
    assert len(server.requests) == 3  # 2.png was not sent
    records = json.loads((tmp_path / "results.json").read_text())
    assert [(record["image_id"], record["category_id"]) for record in records] == [(105, 50)] * 2 + [
        (106, 60)
    ] * 2

    # For --json, a picture needs no id.
    pictures = [f"{folder}/1.png", f"{folder}/2.png", f"{folder}/sub", "--url", server.url]
    journal = ["--json", str(tmp_path / "found.jsonl"), "--resume"]
    for num_sent in (4, 0):
        server.requests.clear()
        assert main([*pictures, *journal, *out]) == 1
        assert len(server.requests) == num_sent
        assert f"{folder}/2.png: is not in {tmp_path}/instances.json" in capsys.readouterr().err
        assert labels(lines_of(tmp_path / "found.jsonl")) == [1, 2, 5, 6]
        assert json.loads((tmp_path / "results.json").read_text()) == records


def test_nothing_found_is_an_empty_list(server, tmp_path, png):
    (tmp_path / "none.png").write_bytes(png(0))
    assert (
        main([str(tmp_path / "none.png"), "--url", server.url, "--coco", str(tmp_path / "results.json")]) == 0
    )
    assert json.loads((tmp_path / "results.json").read_text()) == []


def test_file_names_of_any_bytes(server, tmp_path, png, capsys):
    names = [b"1 a.png", b"2 \xff.png", "3 猫.png".encode()]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for label, name in enumerate(names, start=1):
        (folder / os.fsdecode(name)).write_bytes(png(label))
    journal, drawn = tmp_path / "found.jsonl", tmp_path / "drawn"
    command = [str(folder), "--url", server.url, "--json", str(journal), "--out", str(drawn), "--resume"]
    assert main(command) == 0
    journal.read_text(encoding="utf-8")  # the file is valid UTF-8
    assert [line["file"] for line in lines_of(journal)] == [str(folder / os.fsdecode(name)) for name in names]
    assert sorted(os.fsencode(path.name) for path in drawn.iterdir()) == names
    assert main(command) == 0
    assert "3 answered by an earlier run, 0 failed" in capsys.readouterr().err
    assert main([str(folder), "--url", server.url]) == 0
    assert "2 \\udcff.png: 2 detections" in capsys.readouterr().out
