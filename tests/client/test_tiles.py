"""`detect_tiled` of the sync and of the async detector: what is sent, where the objects are, how errors are handled."""

import asyncio
import io
import time

import grpc
import numpy as np
import pytest
from PIL import ExifTags, Image
from rcnn_client import (
    DeadlineExceededError,
    Detections,
    Detector,
    InvalidImageError,
    InvalidParameterError,
    ServerUnavailableError,
    aio,
)
from rcnn_client._images import decode_pixels

TILE_HW = (60, 60)


def run_sync(url: str, image, *arguments, **options) -> Detections:
    with Detector(url, retries=0) as detector:
        return detector.detect_tiled(image, *arguments, **options)


def run_async(url: str, image, *arguments, **options) -> Detections:
    async def run():
        async with aio.Detector(url, retries=0) as detector:
            return await detector.detect_tiled(image, *arguments, **options)

    return asyncio.run(run())


each_detector = pytest.mark.parametrize("run", [run_sync, run_async])


def paint(size_hw: tuple[int, int], spots: dict[tuple[int, int], int]) -> np.ndarray:
    """Black pixels with a given red at some (x, y): the fake server labels a tile by the red of its first pixel."""
    pixels = np.zeros((*size_hw, 3), np.uint8)
    for (x, y), label in spots.items():
        pixels[y, x, 0] = label
    return pixels


def encode(pixels: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


# Tiles of 60x60 that overlap by a third start at x 0, 40 and at y 0, 20.
FOUR = paint((80, 100), {(0, 0): 1, (40, 0): 2, (0, 20): 3, (40, 20): 4})


@each_detector
def test_boxes_are_in_pixels_of_the_whole_picture(server, run):
    found = run(server.url, encode(FOUR), TILE_HW, 1 / 3, whole=False, score_thresh=0.5)
    boxes = {label: box.tolist() for label, box in zip(found.labels.tolist(), found.boxes, strict=True)}
    assert boxes == {1: [0, 0, 60, 60], 2: [40, 0, 100, 60], 3: [0, 20, 60, 80], 4: [40, 20, 100, 80]}
    assert found.scores.tolist() == pytest.approx([0.9] * 4)
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)
    assert found.class_names == [f"class {label}" for label in found.labels]
    assert (found.rles, found.keypoints, found.image_size_hw) == (None, None, None)
    assert sorted(Image.open(io.BytesIO(sent)).size for sent in server.sent_bytes()) == [(60, 60)] * 4


@each_detector
def test_in_flight_is_the_limit_and_the_whole_picture_counts_as_a_tile(server, run):
    server.delay_s = lambda label: 0.05
    picture = encode(np.full((60, 400, 3), 7, np.uint8))
    found = run(server.url, picture, TILE_HW, 0.5, in_flight=3, merge="nmm", merge_metric="iou")
    assert server.most_in_flight == 3
    assert len(server.requests) == 14 and server.sent_bytes().count(picture) == 1
    assert [0, 0, 400, 60] in found.boxes.tolist()


@each_detector
def test_a_slow_server_is_asked_for_many_tiles_at_once(server, run):
    server.delay_s = lambda label: 0.05
    picture = np.full((60, 60 * 15, 3), 1, np.uint8)
    seconds = []
    for in_flight in (1, 16):
        started = time.monotonic()
        run(server.url, picture, TILE_HW, 0, in_flight=in_flight)
        seconds.append(time.monotonic() - started)
    assert seconds[0] >= 16 * 0.05  # 15 tiles and the whole picture
    assert seconds[1] < seconds[0] / 3


@each_detector
def test_a_picture_no_larger_than_a_tile_is_sent_as_it_is(server, png, run):
    picture = png(3, size=(60, 40))
    found = run(server.url, picture, TILE_HW, score_thresh=0.5)
    assert server.sent_bytes() == [picture]
    assert found.boxes.tolist() == [[0, 0, 60, 40]]


def test_a_strip_has_tiles_of_its_own_height(server):
    run_sync(server.url, encode(np.full((20, 100, 3), 1, np.uint8)), TILE_HW, 0, whole=False)
    assert [Image.open(io.BytesIO(sent)).size for sent in server.sent_bytes()] == [(60, 20), (60, 20)]


def test_options_hold_for_each_tile_and_top_k_for_the_picture(server):
    options = {"score_thresh": 0.2, "merge": "nms", "merge_metric": "iou", "merge_thresh": 1.0}
    with Detector(server.url) as detector:
        detect = lambda **more: detector.detect_tiled(FOUR, TILE_HW, 1 / 3, whole=False, **options, **more)  # noqa: E731
        found = detect(request_id="large", top_k=3)
        assert found.scores.tolist() == pytest.approx([0.9] * 3)
        assert sorted(request.id for request in server.requests) == [f"large-{index}" for index in range(4)]
        assert {request.parameters["score_thresh"].double_param for request in server.requests} == {0.2}
        assert set(detect(classes=["class 2", "class 4"]).labels.tolist()) == {2, 4}
        with pytest.raises(InvalidParameterError, match="classes has 'dog'"):
            detect(classes=["dog"])
    assert len(server.requests) == 8


@pytest.mark.parametrize(
    ("options", "left_and_right"),
    [
        ({"merge_thresh": 0.3}, [(0, 60), (60, 120)]),  # nms by iou, because score_thresh is the model's
        ({"score_thresh": 0.05, "merge_thresh": 0.4}, [(0, 60), (30, 90), (60, 120)]),
        ({"score_thresh": 0.05, "merge_metric": "ios"}, [(0, 60), (60, 120)]),
        ({"score_thresh": 0.05, "merge": "greedy_nmm"}, [(0, 90), (60, 120)]),
        ({"score_thresh": 0.1}, [(0, 90), (60, 120)]),  # greedy_nmm by ios
        ({"score_thresh": 0.1, "merge_thresh": 0.6}, [(0, 60), (30, 90), (60, 120)]),
        ({"score_thresh": 0.1, "merge": "nms"}, [(0, 60), (60, 120)]),
    ],
)
def test_the_default_merging_is_that_of_sahi(server, options, left_and_right):
    """The objects of three tiles have one class; the overlap of two neighbours is 1/2 by ios and 1/3 by iou."""
    picture = encode(np.full((60, 120, 3), 1, np.uint8))
    found = run_sync(server.url, picture, TILE_HW, 0.5, whole=False, **options)
    assert [tuple(box) for box in found.boxes[:, [0, 2]].tolist()] == left_and_right


@each_detector
@pytest.mark.parametrize("form", ["rle", "probabilities"])
def test_masks_are_united_in_the_picture(server, run, form):
    """The fake server's masks are the left halves: columns 0-29 and 40-69 of the tiles, and 0-49 of the whole."""
    server.add_masks()
    pixels = np.full((60, 100, 3), 5, np.uint8)
    found = run(server.url, encode(pixels), TILE_HW, 1 / 3, merge_thresh=0.3, score_thresh=0.5, masks=form)
    assert (found.image_size_hw, found.mask_probabilities, found.boxes.tolist()) == (
        (60, 100),
        None,
        [[0, 0, 100, 60]],
    )
    expected = np.zeros((1, 60, 100), np.bool_)
    expected[:, :, :70] = True
    expected[0, 0, 0] = form == "rle"  # pasting as in torchvision leaves out the corner of the picture
    np.testing.assert_array_equal(found.masks(), expected)
    assert found.rle() == [{"size": [60, 100], "counts": found.rles[0]}]


def test_masks_of_two_objects_stay_apart_and_none_are_empty(server):
    server.add_masks()
    halves = paint((60, 120), {(0, 0): 1, (60, 0): 2})
    with Detector(server.url) as detector:
        found = detector.detect_tiled(halves, TILE_HW, 0, whole=False, score_thresh=0.5, masks="rle")
        assert found.labels.tolist() == [1, 2]
        assert [np.flatnonzero(mask.any(axis=0))[[0, -1]].tolist() for mask in found.masks()] == [
            [0, 29],
            [60, 89],
        ]
        nothing = detector.detect_tiled(0 * halves, TILE_HW, 0)
        assert (len(nothing), nothing.rles, nothing.masks().shape) == (0, [], (0, 60, 120))
        assert not detector.detect_tiled(halves, TILE_HW, 0, masks="none").has_masks


def test_keypoints_are_those_of_the_better_detection(server):
    server.add_keypoints(2, ["head", "foot"])
    picture = paint((60, 120), {(60, 0): 2})
    found = run_sync(server.url, picture, TILE_HW, 0, whole=False, score_thresh=0.5)
    assert found.keypoints.tolist() == [[[60, 0, 1], [61, 2, 1]]]
    assert (found.keypoint_scores.tolist(), found.keypoint_names) == ([[0, 1]], ["head", "foot"])
    with pytest.raises(
        InvalidParameterError, match='those of two detections cannot be merged; give merge="nms"'
    ):
        run_sync(server.url, picture, TILE_HW, merge="greedy_nmm")
    assert len(server.requests) == 2  # the last call was refused before it sent a tile


@each_detector
def test_a_rotated_photo_is_cut_upright(server, run, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # must be turned by 90 degrees clockwise to be upright
    upright = paint((120, 60), {(0, 0): 1, (0, 60): 2})
    Image.fromarray(np.rot90(upright)).save(tmp_path / "phone.png", exif=exif)
    for image in (tmp_path / "phone.png", Image.open(tmp_path / "phone.png")):
        found = run(server.url, image, TILE_HW, 0, whole=False, score_thresh=0.5)
        assert sorted(zip(found.labels.tolist(), found.boxes.tolist(), strict=True)) == [
            (1, [0, 0, 60, 60]),
            (2, [0, 60, 60, 120]),
        ]


def test_arrays_go_as_pixels_and_through_shared_memory(server):
    server.add_pixels_model()
    with Detector(server.url, transport="shm") as detector:
        found = detector.detect_tiled(
            FOUR[:, :, ::-1][:, :, ::-1], TILE_HW, 1 / 3, whole=False, score_thresh=0.5
        )
    assert sorted(found.labels.tolist()) == [1, 2, 3, 4]
    assert {request.model_name for request in server.requests} == {"faster_rcnn_pixels"}


def test_pixels_are_decoded_as_by_the_server():
    colour = Image.new("RGB", (3, 2), (200, 10, 20))
    transparent = Image.new("RGBA", (3, 2), (200, 10, 20, 0))
    for image in (colour, transparent, colour.quantize(), colour.convert("CMYK")):
        assert decode_pixels(image).tolist() == [[[200, 10, 20]] * 3] * 2
    assert decode_pixels(Image.new("L", (3, 2), 128)).tolist() == [[128] * 3] * 2
    assert decode_pixels(Image.new("1", (3, 2), 1)).tolist() == [[[255] * 3] * 3] * 2


def test_of_16_bits_the_upper_8_are_kept(tmp_path):
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values).save(tmp_path / "grey.tif")
    for image in (tmp_path / "grey.png", tmp_path / "grey.tif", Image.fromarray(values.astype(np.int32))):
        assert decode_pixels(image).tolist() == [[0, 0, 1, 255]]


@each_detector
def test_an_error_names_the_tile_and_ends_the_call(server, run, tmp_path):
    server.delay_s = lambda label: 0.5 if label == 3 else 0
    path = tmp_path / "aerial.png"
    path.write_bytes(encode(FOUR))
    with pytest.raises(DeadlineExceededError, match=r"aerial\.png: tile at x 0, y 20: no answer from "):
        run(server.url, path, TILE_HW, 1 / 3, timeout_s=0.3, whole=False)
    server.status = grpc.StatusCode.INVALID_ARGUMENT, "the image claims 100x80 pixels, more than 50"
    advice = r"aerial\.png: the whole picture \(whole=False or --no-whole leaves it out\): the image claims 100x80 pixels"
    with pytest.raises(InvalidImageError, match=advice):
        run(server.url, path, TILE_HW, in_flight=1)


@each_detector
def test_after_an_error_no_more_tiles_are_sent(server, run):
    server.status = grpc.StatusCode.UNAVAILABLE, "stopping"
    with pytest.raises(ServerUnavailableError):
        run(server.url, np.zeros((60, 6000, 3), np.uint8), TILE_HW, 0, in_flight=2, timeout_s=1)
    assert len(server.requests) < 20


@each_detector
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no picture", "image: cannot be read: is not an image of a known format"),
        ("missing.jpg", "missing.jpg: cannot be read: No such file or directory"),
        (encode(FOUR)[:60], "image: cannot be read: "),
        (Image.new("F", (100, 100)), "image: cannot be read: it has 32-bit pixels"),
        (np.zeros((5, 5, 4), np.uint8), r"image: got an array of shape \(5, 5, 4\)"),
        ([FOUR], "got a list, expected a path"),
    ],
    ids=["text", "missing", "cut short", "float", "four channels", "list"],
)
def test_what_is_no_picture(server, run, image, message):
    with pytest.raises(InvalidImageError, match=message):
        run(server.url, image, TILE_HW)
    assert not server.requests


def test_a_picture_that_pillow_takes_for_a_decompression_bomb(server, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3999)
    with pytest.raises(
        InvalidImageError, match=r"more than twice PIL\.Image\.MAX_IMAGE_PIXELS, .* as an array"
    ):
        run_sync(server.url, encode(FOUR), TILE_HW)
    assert len(run_sync(server.url, FOUR, TILE_HW, whole=False)) > 0


@each_detector
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_hw": (0, 60)}, r"tile_hw is \(0, 60\), expected height and width in pixels"),
        ({"tile_hw": 800}, "tile_hw is 800, expected"),
        ({"tile_hw": "800x800"}, "tile_hw is '800x800', expected"),
        ({"tile_hw": (60.5, 60)}, "tile_hw is "),
        ({"tile_hw": (60, 60, 3)}, "tile_hw is "),
        ({"overlap": 1}, "overlap is 1, expected a share of the tile from 0 to less than 1"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"overlap": "0.2"}, "overlap is '0.2'"),
        ({"merge": "GREEDYNMM"}, "merge is 'GREEDYNMM', expected one of: greedy_nmm, nmm, nms"),
        ({"merge_metric": "giou"}, "merge_metric is 'giou', expected one of: ios, iou"),
        ({"merge_thresh": 0}, "merge_thresh is 0, expected a number above 0, at most 1"),
        ({"in_flight": 0}, "in_flight is 0, expected at least 1"),
        ({"score_thresh": 2}, "score_thresh is 2"),
    ],
)
def test_arguments_out_of_range(server, run, options, message):
    with pytest.raises(InvalidParameterError, match=message):
        run(server.url, FOUR, **{"tile_hw": TILE_HW, **options})
    assert not server.requests
