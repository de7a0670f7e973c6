"""What `draw_detections` draws on a picture, checked by its pixels."""

import dataclasses
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from rcnn_client import Detections, InvalidImageError, _fonts, draw_detections
from rcnn_client._contract import COCO_KEYPOINTS

GREY = (120, 120, 120)


def detections(*rows: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    boxes = np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4)
    labels = np.array([label for _, _, label in rows], np.int64)
    return Detections(
        boxes, np.array([score for _, score, _ in rows], np.float32), labels, ["gypsum"] * len(rows)
    )


def changed(drawn: Image.Image) -> np.ndarray:
    """Boolean [height, width]: the pixels that are no longer grey."""
    return (np.asarray(drawn) != GREY).any(axis=-1)


def box_colour(label: int) -> tuple[int, int, int]:
    """Colour of a class, read at the middle of the bottom edge of a box."""
    drawn = draw_detections(Image.new("RGB", (100, 100), GREY), detections(((10, 40, 91, 81), 0.9, label)))
    red, green, blue = np.asarray(drawn)[80, 50].tolist()
    return red, green, blue


def test_a_box_has_its_edges_where_the_detection_says():
    image = Image.new("RGB", (300, 200), GREY)
    drawn = draw_detections(image, detections(((50, 60, 251, 161), 0.9, 3)))
    marks = changed(drawn)
    assert drawn.size == (300, 200) and drawn.mode == "RGB"
    assert not changed(image).any()  # the caller's picture is untouched
    assert marks[60:161, 50].all() and marks[60:161, 250].all() and marks[160, 50:251].all()
    assert not marks[161:].any() and not marks[:, :50].any() and not marks[:, 251:].any()
    assert not marks[70:155, 60:240].any()  # nothing inside
    assert not marks[:40].any() and marks[55, 60:90].all()  # the label, above the box, filled


def test_nothing_detected_is_the_picture_itself():
    image = Image.new("RGB", (30, 20), GREY)
    assert not changed(draw_detections(image, detections())).any()


def test_classes_differ_in_colour_and_one_class_does_not():
    colours = [box_colour(label) for label in range(1, 91)]
    assert len(set(colours)) == 90
    neighbours = np.abs(np.diff(np.array(colours, int), axis=0)).max(axis=1)
    assert neighbours.min() > 60
    assert box_colour(5) == box_colour(5)


@pytest.mark.parametrize("size", [(640, 480), (1333, 800), (120, 90)])
def test_a_label_is_entirely_inside_the_picture_wherever_its_box_is(size):
    def filled(box: tuple[float, float, float, float]) -> int:
        drawn = np.asarray(draw_detections(Image.new("RGB", size, GREY), detections((box, 0.9, 4))))
        return int((drawn == box_colour(4)).all(axis=-1).sum())

    width, height = size
    side = height / 3
    middle = filled((width / 3, height / 2, width / 3 + side, height / 2 + side))
    for x in (0, width - side):
        for y in (0, height - side):
            assert filled((x, y, x + side, y + side)) > 0.75 * middle


def test_text_and_lines_grow_with_the_picture():
    def marks(scale: int) -> int:
        image = Image.new("RGB", (400 * scale, 300 * scale), GREY)
        return int(changed(draw_detections(image, detections(((100, 100, 200, 200), 0.9, 1)))).sum())

    assert marks(4) > 3 * marks(1)


def test_the_label_of_the_better_detection_is_readable():
    both = detections(((40, 60, 140, 160), 0.6, 1), ((42, 62, 142, 162), 0.95, 2))
    drawn = np.asarray(draw_detections(Image.new("RGB", (300, 200), GREY), both))
    alone = np.asarray(
        draw_detections(Image.new("RGB", (300, 200), GREY), detections(((42, 62, 142, 162), 0.95, 2)))
    )
    label = changed(Image.fromarray(alone))[:62].nonzero()
    assert np.array_equal(drawn[label], alone[label])
    worse = (drawn == box_colour(1)).all(axis=-1)
    assert worse[161:].sum() > 300 or worse[:45].sum() > 300  # the label of the worse one moved


def test_boxes_without_area_or_beyond_the_border():
    rows = [((10, 10, 10, 10), 0.9, 1), ((-5, -5, 45, 35), 0.8, 2), ((39.9, 0, 40, 30), 0.7, 3)]
    assert changed(draw_detections(Image.new("RGB", (40, 30), GREY), detections(*rows))).any()


def test_the_exif_orientation_is_applied():
    image = Image.new("RGB", (60, 200), GREY)
    image.getexif()[ExifTags.Base.Orientation] = 6
    drawn = draw_detections(image, detections(((100, 10, 190, 50), 0.9, 1)))
    assert drawn.size == (200, 60)
    assert changed(drawn)[49, 100:190].all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_other_modes(mode):
    image = Image.new("L", (80, 60), 120)
    image = (
        Image.fromarray(np.asarray(image).astype(np.uint16) << 8) if mode == "I;16" else image.convert(mode)
    )
    drawn = draw_detections(image, detections(((20, 30, 60, 50), 0.9, 1)))
    assert drawn.mode == "RGB" and np.abs(np.asarray(drawn)[0, 0].astype(int) - 120).max() < 3


def test_a_picture_is_taken_in_every_form_that_detect_takes(tmp_path):
    image, found = Image.new("RGB", (80, 60), GREY), detections(((20, 30, 60, 50), 0.9, 1))
    image.save(path := tmp_path / "photo.png")
    expected = np.asarray(draw_detections(image, found))
    grey = np.asarray(image)[:, :, 0]
    for form in (path, str(path), path.read_bytes(), np.asarray(image), grey, grey[:, :, None]):
        assert np.array_equal(np.asarray(draw_detections(form, found)), expected)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.jpg", None, "cannot be read: No such file"),
        ("text.jpg", b"no picture", "cannot be read: is not an image of a known format"),
        ("cut.png", "cut short", "cannot be read: "),
    ],
)
def test_a_picture_that_cannot_be_drawn_on(tmp_path, name, content, reason):
    if content == "cut short":
        buffer = io.BytesIO()
        Image.effect_noise((90, 90), 50).save(buffer, "PNG")
        content = buffer.getvalue()[:2000]
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidImageError, match=f"{name}: {reason}"):
        draw_detections(tmp_path / name, detections())
    with pytest.raises(InvalidImageError, match="expected uint8"):
        draw_detections(np.zeros((4, 4, 3)), detections())


def test_a_mask_is_translucent_and_outlined():
    found = dataclasses.replace(
        detections(((20, 20, 180, 120), 0.9, 1)),
        mask_probabilities=np.tile(np.arange(28) < 14, (1, 28, 1)).astype(np.float16),
        image_size_hw=(160, 200),
    )
    drawn = np.asarray(draw_detections(Image.new("RGB", (200, 160), GREY), found)).astype(int)
    plain = np.asarray(draw_detections(Image.new("RGB", (200, 160), GREY), found_without_masks(found)))
    colour = np.array(box_colour(1))
    inside, outside = drawn[80, 60], drawn[80, 140]
    assert np.abs(inside - (GREY + (colour - GREY) * 110 / 255)).max() <= 1
    assert outside.tolist() == list(GREY)
    edge = np.flatnonzero((drawn[80] == colour).all(axis=-1) & (plain[80] != colour).any(axis=-1))
    assert len(edge) and np.abs(edge - 100).max() <= 3  # the mask is the left half


def found_without_masks(found: Detections) -> Detections:
    return dataclasses.replace(found, mask_probabilities=None)


def with_keypoints(points: np.ndarray, names: list[str]) -> Detections:
    return dataclasses.replace(
        detections(((1, 1, 199, 159), 0.9, 1)),
        keypoints=points.astype(np.float32)[None],
        keypoint_names=names,
    )


def test_cocos_keypoints_are_a_skeleton_and_others_are_points():
    points = np.stack((20 + 10 * np.arange(17), np.full(17, 80), np.ones(17)), axis=1)
    points[COCO_KEYPOINTS.index("left_wrist"), :2] = 60, 140
    points[COCO_KEYPOINTS.index("left_elbow"), :2] = 140, 140
    blank = Image.new("RGB", (200, 160), GREY)
    drawn = changed(draw_detections(blank, with_keypoints(points, list(COCO_KEYPOINTS))))
    assert drawn[140, 60] and drawn[140, 100] and drawn[140, 140]  # both ends, and the limb between them
    drawn = changed(draw_detections(blank, with_keypoints(points, [str(number) for number in range(17)])))
    assert drawn[140, 60] and not drawn[140, 100] and drawn[140, 140]
    points[COCO_KEYPOINTS.index("left_wrist"), 2] = 0
    drawn = changed(draw_detections(blank, with_keypoints(points, list(COCO_KEYPOINTS))))
    assert not drawn[140, 60] and not drawn[140, 100] and drawn[140, 140]


def test_keypoints_outside_the_picture_harm_nothing():
    points = np.array([[-50, 10, 1], [1e6, 1e6, 1], [30, 30, 1]])
    drawn = draw_detections(Image.new("RGB", (200, 160), GREY), with_keypoints(points, ["a", "b", "c"]))
    assert changed(drawn)[30, 30]


@pytest.fixture
def only_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A system without fontconfig and without fonts: only matplotlib's font is there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_fonts, "FOLDERS", ())
    for cached in (_fonts.readable, _fonts._find_file):
        cached.cache_clear()
    yield
    for cached in (_fonts.readable, _fonts._find_file):
        cached.cache_clear()


def named(name: str) -> np.ndarray:
    one = detections(((40, 60, 250, 160), 0.9, 7))
    one = Detections(one.boxes, one.scores, one.labels, [name])
    return np.asarray(draw_detections(Image.new("RGB", (300, 200), GREY), one))


@pytest.mark.parametrize("name", ["Käse", "собака", "σκύλος", "שלום", "كلب"])
def test_a_name_is_drawn_in_a_font_that_has_its_letters(only_matplotlib, name):
    text, font = _fonts.readable(name, 7, 20)
    assert text == name and _fonts.has_letters(font, name)
    assert Path(str(font.path)).name == "DejaVuSans.ttf"
    other = name.replace(name[-1], name[0])
    assert not np.array_equal(named(name), named(other))


@pytest.mark.parametrize(
    "name", ["猫", "dog 🐶", "a\nb", "\x1b[31m", "\ud800", "", "  ", "\u2028", "a\u200db猫"]
)
def test_a_name_that_no_font_has_is_drawn_as_its_label(only_matplotlib, name):
    assert _fonts.readable(name, 7, 20)[0] == "class 7"
    assert np.array_equal(named(name), named("class 7"))


def test_fontconfig_names_a_font(monkeypatch, tmp_path):
    """A font of regular weight is preferred; a font that cannot be opened is skipped."""
    matplotlib = importlib.util.find_spec("matplotlib")
    folder = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"
    fonts = {"Broken-Sans.ttf": 80, "DejaVuSans-Bold.ttf": 200, "DejaVuSans.ttf": 80, "DejaVuSerif.ttf": 80}
    lines = "".join(f"{folder / name}\\n0\\n0\\n{weight}\\n" for name, weight in fonts.items())
    fc_list = tmp_path / "fc-list"
    fc_list.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    fc_list.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    _fonts._find_file.cache_clear()
    assert _fonts._find_file("ж") == (str(folder / "DejaVuSans.ttf"), 0)
    _fonts._find_file.cache_clear()
