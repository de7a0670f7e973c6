"""Masks and keypoints from a server, with both clients, and how the commands write them."""

import asyncio
import json

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from rcnn_client import (
    Detector,
    InvalidImageError,
    InvalidParameterError,
    NotADetectorError,
    ServerError,
    aio,
    draw_detections,
)
from rcnn_client._contract import COCO_KEYPOINTS
from rcnn_client.tools.detect_cli import main as rcnn_detect

BOXES = ["boxes", "scores", "labels", "num_detections"]


def detect(server, image, is_async, **options):
    if not is_async:
        with Detector(server.url) as detector:
            return detector.detect(image, **options)

    async def run():
        async with aio.Detector(server.url) as detector:
            return await detector.detect(image, **options)

    return asyncio.run(run())


def asked(server) -> list[str]:
    return [output.name for output in server.requests[-1].outputs]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_masks(server, png, is_async):
    server.add_masks()
    found = detect(server, png(3, (40, 30)), is_async)
    assert asked(server) == [*BOXES, "masks"]
    assert found.mask_probabilities.shape == (3, 28, 28) and found.mask_probabilities.dtype == np.float16
    assert found.image_size_hw == (30, 40) and found.keypoints is None and found.keypoint_names is None
    masks = found.masks()
    assert masks.shape == (3, 30, 40) and masks[:, 1:-1, :20].all() and not masks[:, :, 21:].any()
    assert len(found[found.scores > 0.5].masks()) == 2


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_masks_that_the_server_pasted(server, png, is_async):
    server.add_masks()
    found = detect(server, png(3, (40, 30)), is_async, masks="rle", mask_thresh=0.3)
    assert asked(server) == [*BOXES, "rles"]
    assert server.requests[-1].parameters["mask_thresh"].double_param == 0.3
    assert found.mask_probabilities is None and found.has_masks and found.mask_thresh == 0.3
    left_half = np.arange(40) < 20
    assert (found.masks() == left_half).all() and found.masks().shape == (3, 30, 40)
    ((mask, top, left),) = found[:1].mask_crops()
    assert mask.shape == (30, 20) and mask.all() and top == left == 0
    assert [coco_mask.decode(rle).sum() for rle in found.rle()] == [600] * 3
    assert [polygon.tolist() for (polygon,) in found[:1].polygons()] == [[[0, 0], [20, 0], [20, 30], [0, 30]]]
    assert len(found[[2, 0]].rle(0.3)) == 2
    with pytest.raises(ValueError, match=r"mask_thresh is 0.4, but the server pasted the masks at 0.3"):
        found.masks(0.4)


def test_boxes_only(server, png):
    server.add_masks()
    found = detect(server, png(3), False, masks="none")
    assert asked(server) == BOXES and not found.has_masks
    with pytest.raises(ValueError, match=r"no masks.* without masks=\"none\""):
        found.masks()


def test_a_server_that_makes_no_run_lengths_sends_probabilities(server, png):
    server.add_masks(with_rles=False)
    found = detect(server, png(3, (40, 30)), False, masks="rle", mask_thresh=0.3)
    assert asked(server) == [*BOXES, "masks"] and "mask_thresh" not in server.requests[-1].parameters
    assert found.rle() == found.rle(0.3) and np.array_equal(found.masks(), found.masks(0.3))
    assert coco_mask.decode(found.rle()[0]).any()


def test_the_threshold_of_a_call_is_that_of_its_masks(server, png):
    server.add_masks()
    server.spoil = lambda tensors: tensors["masks"][0, :3].fill(0.4)
    assert not detect(server, png(3), False).masks().any()
    found = detect(server, png(3, (40, 30)), False, mask_thresh=0.3)
    masks = found.masks()
    assert masks[:, 2:-2, 2:-2].all() and len(found.polygons()[0]) == 1
    assert np.array_equal(coco_mask.decode(found.rle()).transpose(2, 0, 1), masks)
    assert not found.masks(0.5).any()
    assert draw_detections(png(0, (40, 30)), found).getpixel((20, 15)) != (0, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "polygons"}, "masks is 'polygons', expected one of: probabilities, rle, none"),
        ({"masks": None}, "masks is None, expected one of"),
        ({"mask_thresh": 1.5}, "mask_thresh is 1.5, expected a number from 0 to 1"),
        ({"mask_thresh": 0.3}, "mask_thresh is 0.3, but the model returns no masks; leave it out"),
    ],
)
def test_wrong_options(server, png, options, message):
    with pytest.raises(InvalidParameterError, match=message):
        detect(server, png(3), False, **options)


@pytest.mark.parametrize("code", [b"", b"no code", b"0", "ä".encode("latin-1")])
def test_invalid_run_lengths(server, png, code):
    server.add_masks()
    server.spoil = lambda tensors: tensors["rles"].fill(code)
    found = detect(server, png(3, (40, 30)), False, masks="rle")
    with pytest.raises(ValueError, match="is not a run-length code of a picture of 30x40 pixels"):
        found.masks()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_keypoints(server, png, is_async):
    server.add_keypoints(17)
    found = detect(server, png(3), is_async, top_k=2)
    assert asked(server) == [*BOXES, "keypoints", "keypoint_scores"]
    assert found.keypoints.shape == (2, 17, 3) and found.keypoint_scores.shape == (2, 17)
    assert found.keypoints[1, 5].tolist() == [5, 10, 1] and found.keypoint_scores[1, 5] == 5
    assert found.keypoint_names == COCO_KEYPOINTS
    assert found.keypoint_names[0] == "nose" and found.keypoint_names[-1] == "right_ankle"
    assert found.mask_probabilities is None and found.image_size_hw is None


def test_a_model_of_boxes_is_asked_for_boxes(server, png):
    found = detect(server, png(3), False)
    assert asked(server) == BOXES
    assert found.mask_probabilities is None and found.keypoints is None


@pytest.mark.parametrize(
    ("count", "names", "expected"),
    [
        (4, ["a", "b", "c", "d"], ["a", "b", "c", "d"]),
        (3, None, ["0", "1", "2"]),
        (17, [str(n) for n in range(17)], [str(n) for n in range(17)]),
    ],
)
def test_names_of_other_keypoints(server, png, count, names, expected):
    server.add_keypoints(count, names)
    assert detect(server, png(3), False).keypoint_names == expected


def test_the_wrong_number_of_names(server, png):
    server.add_keypoints(4, ["a", "b"])
    with pytest.raises(NotADetectorError, match=r"returns 4 keypoints, but .* has 2 names"):
        detect(server, png(3), False)


def test_a_model_with_both_and_nothing_found(server, png):
    server.add_masks()
    server.add_keypoints(5)
    found = detect(server, png(0), False)
    assert found.masks().shape == (0, 30, 40) and found.keypoints.shape == (0, 5, 3)


def test_masks_of_another_shape(server, png):
    server.add_masks()
    server.spoil = lambda tensors: tensors.update(masks=tensors["masks"][:, :, :14])
    with pytest.raises(ServerError, match=r"'masks': \(1, 100, 14, 28\)"):
        detect(server, png(3), False)


@pytest.mark.parametrize("has_pixels_model", [False, True])
def test_the_size_of_every_form_of_a_picture(server, tmp_path, has_pixels_model):
    """The size is that of the upright picture."""
    if has_pixels_model:
        server.add_pixels_model()
    server.add_masks()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = Image.new("RGB", (40, 30), (3, 0, 0))
    turned.save(tmp_path / "a.jpg", exif=exif)
    turned.save(tmp_path / "a.png", exif=exif)
    turned.save(tmp_path / "a.webp", exif=exif)
    turned.save(tmp_path / "a.tiff", exif=exif)
    turned.save(tmp_path / "a.gif")
    frame = np.full((50, 60, 3), 3, np.uint8)
    forms = {
        tmp_path / "a.jpg": (40, 30),
        str(tmp_path / "a.png"): (40, 30),
        (tmp_path / "a.webp").read_bytes(): (40, 30),
        tmp_path / "a.tiff": (40, 30),
        tmp_path / "a.gif": (30, 40),
    }
    with Detector(server.url) as detector, Image.open(tmp_path / "a.jpg") as opened:
        for form, size_hw in [
            *forms.items(),
            (opened, (40, 30)),
            (frame, (50, 60)),
            (frame[:, :, 0], (50, 60)),
        ]:
            assert detector.detect(form).image_size_hw == size_hw
        large = np.full((700, 900, 3), 3, np.uint8)
        assert detector.detect(Image.fromarray(large)).image_size_hw == (700, 900)


def test_a_picture_whose_size_is_not_known(server, png, monkeypatch):
    """A picture that only the server can read gets an error of its own."""
    server.add_masks()
    monkeypatch.setattr(
        "rcnn_client._images.open_picture", lambda data: (_ for _ in ()).throw(ValueError("odd"))
    )
    with pytest.raises(InvalidImageError, match="image: cannot be read: odd"):
        detect(server, png(3), False)


def test_info(server):
    with Detector(server.url) as detector:
        info = detector.info()
        assert not info.has_masks and info.keypoint_names == []
        server.add_masks()
        server.add_keypoints(2, ["head", "tail"])
        info = detector.info()
        assert info.has_masks and info.keypoint_names == ["head", "tail"]


def test_rcnn_detect_writes_both(server, tmp_path, png):
    server.add_masks()
    server.add_keypoints(2)
    (tmp_path / "photo.png").write_bytes(png(3, (40, 30)))
    outputs = ["--json", str(tmp_path / "found.jsonl"), "--coco", str(tmp_path / "coco.json")]
    outputs += ["--out", str(tmp_path / "drawn.png")]
    assert rcnn_detect([str(tmp_path / "photo.png"), "--url", server.url, *outputs]) == 0
    line = json.loads((tmp_path / "found.jsonl").read_text())
    records = json.loads((tmp_path / "coco.json").read_text())
    for each in [*line["detections"], *records]:
        assert each["segmentation"]["size"] == [30, 40]
        assert coco_mask.decode(each["segmentation"])[1:-1, :20].all()
        assert each["keypoints"] == [0, 0, 1, 1, 2, 1] and each["num_keypoints"] == 2
    assert line["detections"][0]["keypoint_scores"] == [0, 1] and "keypoint_scores" not in records[0]
    assert records[0]["bbox"] == [0, 0, 40, 30]
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.getpixel((10, 15)) != (3, 0, 0) and drawn.getpixel((30, 15)) == (3, 0, 0)


def test_rcnn_detect_asks_for_masks_where_it_writes_them(server, tmp_path, png, capsys):
    server.add_masks()
    (tmp_path / "photo.png").write_bytes(png(3))
    command = [str(tmp_path / "photo.png"), "--url", server.url, "--mask-thresh", "0.3"]
    for outputs, expected in (([], BOXES), (["--coco", "-"], [*BOXES, "rles"])):
        assert rcnn_detect([*command, *outputs]) == 0
        assert asked(server) == expected
    assert server.requests[-1].parameters["mask_thresh"].double_param == 0.3


def test_rcnn_detect_refuses_a_mask_threshold_if_there_are_no_masks(server, tmp_path, png, capsys):
    (tmp_path / "photo.png").write_bytes(png(3))
    assert rcnn_detect([str(tmp_path / "photo.png"), "--url", server.url, "--mask-thresh", "0.3"]) == 2
    assert "mask_thresh is 0.3, but the model returns no masks" in capsys.readouterr().err


def test_rcnn_detect_writes_neither_where_there_is_none(server, tmp_path, png):
    (tmp_path / "photo.png").write_bytes(png(3))
    assert rcnn_detect([str(tmp_path / "photo.png"), "--url", server.url, "--json", str(tmp_path / "a")]) == 0
    (found, *_) = json.loads((tmp_path / "a").read_text())["detections"]
    assert found.keys() == {"class_name", "label", "score", "box"}
