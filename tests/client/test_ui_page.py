"""The page of rcnn-ui in a headless browser; rcnn-ui uses the fake server."""

import base64
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rcnn_client import Detector
from rcnn_client._draw_shapes import class_colour
from rcnn_client._masks import MaskCrop
from rcnn_client._outlines import encode_rle

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("browser")]

SIZE = (400, 300)
DROP = """([content, type]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], "given.png", { type: "image/png" }));
    const event = type === "drop" ? new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true })
        : new ClipboardEvent(type, { clipboardData: files, bubbles: true });
    document.body.dispatchEvent(event);
}"""
PIXELS = """(canvas) => Array.from(
    canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data
)"""


@pytest.fixture
def open_page(browser, start_ui):
    """open_page(url): the page for the server at `url`; `page.faults` are the errors that it raises or logs."""
    pages = []

    def open_(url, *arguments, path="", **settings):
        context = browser.new_context(accept_downloads=True, **settings)
        page = context.new_page()
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda said: "Content Security" in said.text and page.faults.append(said.text))
        page.goto(start_ui(url, *arguments) + path)
        pages.append(page)
        return page

    yield open_
    for page in pages:
        assert page.faults == []
        page.context.close()


def give(page, content, name="photo.png", kind="image/png"):
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})


def drawn(page):
    """The pixels of the canvas, uint8 [height, width, 3]."""
    canvas = page.locator("#canvas")
    height, width = canvas.evaluate("(canvas) => [canvas.height, canvas.width]")
    return np.array(canvas.evaluate(PIXELS), np.uint8).reshape(height, width, 4)[..., :3]


def shows(page, count, total):
    expect(page.locator("#status")).to_have_text(f"{count} of {total} objects are shown.")


def move_slider(page, value):
    page.locator("#threshold").fill(str(value))


def test_detections_are_drawn_and_chosen_without_asking_again(server, png, open_page):
    server.add_masks()
    server.add_keypoints(17)
    page = open_page(server.url)
    give(page, png(7, SIZE))
    shows(page, 2, 3)
    assert page.get_attribute("#canvas", "aria-label") == "2 objects in photo, class 7 0.90, class 7 0.60"
    pixels, colour, plain = drawn(page), np.array(class_colour(7)), np.array([7, 0, 0])
    assert pixels.shape == (300, 400, 3)
    assert (pixels[150, 399] == colour).all()  # the edge of the box
    assert (pixels[250, 300] == plain).all()  # right of the mask
    once = plain + (colour - plain) * 110 / 255
    twice = once + (colour - once) * 110 / 255
    np.testing.assert_allclose(pixels[250, 100], twice, atol=3)  # inside both masks
    assert np.ptp(pixels[5:40, 5:20], axis=(0, 1)).any()  # keypoints, which are at (k, 2k)

    move_slider(page, 0.75)
    shows(page, 1, 3)
    np.testing.assert_allclose(drawn(page)[250, 100], once, atol=3)
    assert page.locator("#rows tr").count() == 1
    page.get_by_role("checkbox", name="class 7").uncheck()
    shows(page, 0, 3)
    assert (drawn(page) == plain).all()
    assert page.get_attribute("#canvas", "aria-label") == "No objects in photo"
    page.get_by_role("checkbox", name="class 7").check()
    page.locator("#threshold").focus()
    for _ in range(50):
        page.keyboard.press("ArrowLeft")
    shows(page, 3, 3)
    assert len(server.requests) == 1
    expect(page.locator("#timing")).to_contain_text("Network")


def test_what_is_shown_is_downloaded(server, png, open_page):
    server.add_masks()
    page = open_page(server.url)
    give(page, png(7, SIZE), "my.photo.png")
    shows(page, 2, 3)
    with page.expect_download() as json_file:
        page.get_by_role("button", name="Download JSON").click()
    with page.expect_download() as picture:
        page.get_by_role("button", name="Download picture").click()
    assert json_file.value.suggested_filename == "my.photo.json"
    content = json.loads(Path(json_file.value.path()).read_text())
    with Detector(server.url) as detector:
        codes = detector.detect(png(7, SIZE), score_thresh=0.5, masks="rle").rle()
    assert (content["model"], content["score_thresh"]) == ("faster_rcnn", 0.5)
    assert [each["score"] for each in content["detections"]] == [0.9, 0.6]
    assert [each["segmentation"] for each in content["detections"]] == codes
    assert picture.value.suggested_filename == "my.photo-detections.png"
    np.testing.assert_array_equal(np.asarray(Image.open(picture.value.path()).convert("RGB")), drawn(page))


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted(server, png, open_page, way):
    page = open_page(server.url)
    expect(page.locator("#status")).to_have_text("Ready.")
    page.evaluate(DROP, [base64.b64encode(png(7, SIZE)).decode(), way])
    shows(page, 2, 3)
    assert server.sent_bytes() == [png(7, SIZE)]


def test_a_picture_of_the_camera(server, open_page):
    page = open_page(server.url)
    page.get_by_role("button", name="Open the camera").click()
    page.get_by_role("button", name="Take a picture").click()
    expect(page.locator("#canvas")).to_be_visible()
    assert server.sent_bytes()[0].startswith(b"\xff\xd8")
    assert page.locator("#video").evaluate("(video) => video.srcObject") is None


def test_a_broken_file_is_reported_and_the_next_is_shown(server, png, open_page):
    page = open_page(server.url)
    give(page, png(7, SIZE))
    shows(page, 2, 3)
    give(page, b"no picture")
    expect(page.get_by_role("alert")).to_contain_text("not an image")
    expect(page.locator("#canvas")).to_be_hidden()
    expect(page.locator("#retry")).to_be_hidden()  # trying again would not help
    assert page.locator("#save-json").is_disabled()
    give(page, png(8, SIZE))
    shows(page, 2, 3)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_server_stops_and_starts_again(server, png, open_page):
    server.stop()
    page = open_page(server.url)
    expect(page.get_by_role("alert")).to_contain_text("Is the server running there")
    give(page, png(7, SIZE))
    server.start()
    shows_later = expect(page.locator("#status"))
    shows_later.to_have_text("2 of 3 objects are shown.", timeout=20_000)  # without a click
    server.stop()
    give(page, png(8, SIZE))
    expect(page.get_by_role("alert")).to_contain_text(
        "does not serve model 'faster_rcnn' now", timeout=20_000
    )
    server.start()
    time.sleep(2.5)  # until gRPC connects again
    page.get_by_role("button", name="Try again").click()
    shows(page, 2, 3)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_next_picture_cancels_the_one_in_progress(server, png, open_page):
    server.delay_s = lambda label: 0.8 if label == 7 else 0.0
    page = open_page(server.url)
    expect(page.locator("#status")).to_have_text("Ready.")
    give(page, png(7, SIZE))
    page.wait_for_timeout(300)
    give(page, png(8, SIZE))
    shows(page, 2, 3)
    expect(page.locator("#rows")).to_contain_text("class 8")
    page.wait_for_timeout(800)
    assert server.num_cancelled == 1
    expect(page.locator("#rows")).not_to_contain_text("class 7")


@pytest.mark.parametrize("by_link", [False, True])
def test_a_token_is_asked_for_or_comes_with_the_link(server, png, open_page, tmp_path, by_link):
    (tmp_path / "token").write_text("secret\n")
    page = open_page(
        server.url, "--token-file", str(tmp_path / "token"), path="/#token=secret" if by_link else ""
    )
    if not by_link:
        expect(page.get_by_role("alert")).to_contain_text("the token is missing or wrong")
        for token in ("wrong", "secret"):
            page.get_by_label("Token of this server").fill(token)
            page.get_by_role("button", name="Use it").click()
    expect(page.locator("#status")).to_have_text("Ready.")
    expect(page.locator("#token-form")).to_be_hidden()
    assert "secret" not in page.url
    give(page, png(7, SIZE))
    shows(page, 2, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_pictures_are_shown_upright(server, open_page, file_format, orientation):
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[:100, :100] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, exif=exif)
    page = open_page(server.url)
    move_slider(page, 0.95)
    give(page, buffer.getvalue(), kind=f"image/{file_format.lower()}")
    expect(page.locator("#status")).to_contain_text("are shown")
    upright = np.rot90(pixels, {1: 0, 3: 2, 6: -1}[orientation])
    np.testing.assert_allclose(drawn(page).astype(int)[10::20, 10::20], upright[10::20, 10::20], atol=8)


def test_run_length_codes_are_read_as_python_writes_them(server, open_page):
    generator = np.random.default_rng(0)
    masks = [np.zeros((5, 7), bool), np.ones((5, 7), bool), np.eye(9, dtype=bool), np.ones((1, 1), bool)]
    masks += [generator.random((40, 30)) < share for share in (0.01, 0.5, 0.99)]
    tall = np.zeros((3000, 50), bool)
    tall[:, 20:] = True
    masks.append(tall)
    codes = [encode_rle(MaskCrop(mask, 0, 0), mask.shape) for mask in masks]
    page = open_page(server.url)
    decode = """async (codes) => {
        const { decodeRle } = await import("/page/rle.js");
        return codes.map(decodeRle).map((mask) => mask && { ...mask, inside: Array.from(mask.inside) });
    }"""
    for mask, read in zip(masks, page.evaluate(decode, codes), strict=True):
        if not mask.any():
            assert read is None
            continue
        full = np.zeros_like(mask)
        inside = np.array(read["inside"], bool).reshape(read["height"], read["width"])
        full[read["top"] : read["top"] + read["height"], read["left"] : read["left"] + read["width"]] = inside
        np.testing.assert_array_equal(full, mask)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_no_fault_of_accessibility_and_no_sideways_scrolling(server, png, open_page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    page = open_page(server.url, color_scheme=scheme, viewport={"width": width, "height": 800})
    expect(page.locator("#status")).to_have_text("Ready.")
    for content in (None, png(7, SIZE), b"no picture"):
        if content is not None:
            give(page, content)
            expect(page.locator("#status")).not_to_contain_text("Looking")
        page.wait_for_timeout(200)
        violations = axe.run(page).response["violations"]
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_everything(server, png, open_page):
    page = open_page(server.url)
    give(page, png(7, SIZE))
    shows(page, 2, 3)
    page.locator("#model").focus()
    reached = []
    for _ in range(9):
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        page.keyboard.press("Tab")
    assert reached == [
        *("model", "file", "camera", "threshold", "INPUT", "save-picture", "save-json", "table-scroll"),
        "SUMMARY",
    ]
