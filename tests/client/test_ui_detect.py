"""POST /detect of rcnn-ui: its JSON answers, over a real HTTP connection and a real gRPC connection."""

import asyncio
import io
import json

import aiohttp
import jsonschema
import numpy as np
import pytest
from grpc import StatusCode
from PIL import Image
from rcnn_client import Detector
from rcnn_client.tools.detect_outputs import as_json
from rcnn_client.ui import app as ui_app
from rcnn_client.ui import limits
from rcnn_client.ui.openapi import describe
from rcnn_client.ui.query import PARAMETERS

from .ui_client import ask

SCHEMA = describe()["paths"]["/detect"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]


def post(url, data, query="", **settings):
    """Status and JSON of POST /detect."""

    async def use(client):
        async with client.post(f"/detect{query}", data=data) as response:
            return response.status, await response.json()

    return ask(url, use, **settings)


def form(**files):
    data = aiohttp.FormData()
    for name, content in files.items():
        data.add_field(name, content, filename=f"{name}.png", content_type="image/png")
    return data


def test_a_body_and_a_form_get_what_rcnn_detect_writes(server, png):
    with Detector(server.url) as detector:
        expected = as_json(detector.detect(png(7)))
    assert len(expected) == 3
    for data in (png(7), form(any_name=png(7))):
        status, answer = post(server.url, data)
        assert status == 200
        assert answer == {
            "model": "faster_rcnn",
            "image_size_hw": [30, 40],
            "orientation": 1,
            "detections": expected,
        }
        jsonschema.validate(answer, SCHEMA)
    assert server.sent_bytes() == [png(7)] * 3


def test_masks_come_when_asked_for_and_keypoints_always(server, png):
    server.add_masks()
    server.add_keypoints(17)
    with Detector(server.url) as detector:
        codes = detector.detect(png(7), masks="rle").rle()
    for query, expected in (("", [None] * 3), ("?rle=0", [None] * 3), ("?rle=1", codes)):
        status, answer = post(server.url, png(7), query)
        assert status == 200
        assert [each.get("segmentation") for each in answer["detections"]] == expected
        assert [each["num_keypoints"] for each in answer["detections"]] == [17] * 3
        jsonschema.validate(answer, SCHEMA)


def test_the_query_has_the_options_of_detect(server, png):
    query = "?model=faster_rcnn&score_thresh=0.25&nms_thresh=0.4&detections_per_img=50&top_k=2"
    _, answer = post(server.url, png(7), query)
    assert [each["score"] for each in answer["detections"]] == [0.9, 0.6]
    sent = server.requests[-1].parameters
    assert sent["score_thresh"].double_param == 0.25 and sent["nms_thresh"].double_param == 0.4
    assert sent["detections_per_img"].int64_param == 50
    assert len(post(server.url, png(7), "?classes=class+7&classes=class+8")[1]["detections"]) == 3
    assert post(server.url, png(7), "?classes=class+8")[1]["detections"] == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("score_thresh=1.5", "score_thresh is 1.5, expected a number from 0 to 1"),
        ("score_thresh=nan", "score_thresh is nan, expected a number from 0 to 1"),
        ("score_thresh=", "score_thresh is '', expected a number from 0 to 1"),
        ("top_k=2.5", "top_k is '2.5', expected an integer, at least 1"),
        ("top_k=0", "top_k is 0, expected an integer, at least 1"),
        ("top_k=" + "9" * 5000, "expected an integer, at least 1"),
        ("detections_per_img=101", "detections_per_img is 101, expected 1 to 100"),
        ("rle=yes", "rle is 'yes', expected 0 or 1"),
        ("rle=1&rle=0", "rle is given 2 times, expected once"),
        ("classes=unicorn", "classes has 'unicorn', expected some of: class 1"),
        ("treshold=0.5", "unknown parameter 'treshold': the parameters are model, score_thresh"),
    ],
)
def test_a_wrong_query_is_a_400(server, png, query, message):
    status, answer = post(server.url, png(7), f"?{query}")
    assert (status, list(answer)) == (400, ["error"])
    assert message in answer["error"]
    assert not server.requests


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no picture", "image: in ensemble 'faster_rcnn', not an image"),
        (b"", "the body is empty"),
        (form(one=b"", two=b""), "the form has 2 files, expected one"),
        (
            aiohttp.FormData({"text": "no file"}, default_to_multipart=True),
            "the form has 0 files, expected one",
        ),
    ],
)
def test_what_is_no_picture_is_a_400(server, data, message):
    status, answer = post(server.url, data)
    assert status == 400 and message in answer["error"]


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=other"])
def test_a_form_that_cannot_be_read_is_a_400(server, png, content_type):
    async def use(client):
        async with client.post("/detect", data=png(7), headers={"Content-Type": content_type}) as response:
            return response.status, (await response.json())["error"]

    status, message = ask(server.url, use)
    assert status == 400 and message.startswith("image: the form cannot be read: ")


def test_a_body_without_a_length_and_a_content_type(server, png):
    async def pieces():
        for byte in range(0, len(png(7)), 16):
            yield png(7)[byte : byte + 16]

    status, answer = post(server.url, pieces())
    assert status == 200 and len(answer["detections"]) == 3


@pytest.mark.parametrize("as_form", [False, True])
def test_a_picture_that_is_too_large_is_a_413(server, monkeypatch, as_form):
    monkeypatch.setattr(ui_app, "MAX_BODY_BYTES", 2**20)
    data = bytes(2**20 + 1)
    status, answer = post(server.url, form(image=data) if as_form else data)
    assert (status, answer) == (413, {"error": "the body is too large, expected at most 1 MiB"})


def test_a_picture_that_does_not_arrive_is_a_408(server, monkeypatch):
    monkeypatch.setattr(limits, "MAX_UPLOAD_S", 0.2)

    async def stuck():
        yield b"begin"
        await asyncio.sleep(5)

    status, answer = post(server.url, stuck())
    assert (status, answer) == (408, {"error": "the body did not arrive within 0.2 s"})


@pytest.mark.parametrize(
    ("code", "said", "status"),
    [
        (StatusCode.UNAVAILABLE, "Exceeds maximum queue size", 503),
        (StatusCode.UNAVAILABLE, "server is stopping", 503),
        (StatusCode.DEADLINE_EXCEEDED, "too late", 504),
        (StatusCode.INTERNAL, "it broke", 502),
        (StatusCode.PERMISSION_DENIED, "This protocol is restricted", 502),
        (StatusCode.INVALID_ARGUMENT, "the picture is too large", 400),
    ],
)
def test_the_status_shows_whose_fault_it_is(server, png, code, said, status):
    server.status = (code, said)
    got, answer = post(server.url, png(7), timeout_s=2.0)
    assert (got, list(answer)) == (status, ["error"])
    assert "Traceback" not in answer["error"]


def test_the_server_stops_and_starts_again(server, png):
    async def use(client):
        statuses = []
        for step in (None, server.stop, server.start):
            if step:
                step()
                await asyncio.sleep(0.1)
            for _ in range(30):  # gRPC connects again within 2 s
                async with client.post("/detect?model=faster_rcnn", data=png(7)) as response:
                    statuses.append((response.status, response.headers.get("Retry-After")))
                if step != server.start or response.status == 200:
                    break
                await asyncio.sleep(0.1)
        return statuses

    statuses = ask(server.url, use)
    assert statuses[:2] == [(200, None), (503, "1")] and statuses[-1] == (200, None)


def test_a_model_that_is_no_detector_and_one_that_is_not_there(server, png):
    server.add_pixels_model()
    status, answer = post(server.url, png(7), "?model=faster_rcnn_pixels")
    assert status == 400 and "is not a detector" in answer["error"]
    status, answer = post(server.url, png(7), "?model=nothing")
    assert status == 404 and "has no model 'nothing'" in answer["error"]


def test_the_model_must_be_named_where_there_are_several(server, png):
    other = server.configs["other"] = type(server.configs["faster_rcnn"])()
    other.CopyFrom(server.configs["faster_rcnn"])
    other.name = "other"
    status, answer = post(server.url, png(7))
    assert status == 400 and answer["error"].endswith("choose one with model=: faster_rcnn, other")
    assert post(server.url, png(7), "?model=other")[1]["model"] == "other"
    server.configs.clear()
    status, answer = post(server.url, png(7))
    assert status == 404 and "has no detector" in answer["error"]


def test_a_model_replaced_by_another_gets_its_class_names(server, png):
    async def use(client):
        names = []
        for prefix in ("old", "new"):
            given = json.dumps([f"{prefix} {label}" for label in range(201)])
            server.configs["faster_rcnn"].parameters["class_names"].string_value = given
            async with client.post("/detect", data=png(7)) as response:
                names.append((await response.json())["detections"][0]["class_name"])
        return names

    assert ask(server.url, use) == ["old 7", "new 7"]


def test_times_come_from_the_statistics(server, png):
    server.delay_s = lambda label: 0.1
    _, answer = post(server.url, png(7), "?timing=1")
    jsonschema.validate(answer, SCHEMA)
    timing = answer["timing"]
    assert (timing["queue_ms"], timing["compute_ms"], timing["num_requests"]) == (1, 2, 1)
    assert timing["total_ms"] >= 100
    assert timing["network_ms"] == pytest.approx(timing["total_ms"] - 3)
    assert [step["name"] for step in timing["steps"]] == ["faster_rcnn"]


def test_times_are_left_out_where_the_statistics_cannot_be_read(server, png, monkeypatch):
    def refuse(request, context):
        context.abort(StatusCode.PERMISSION_DENIED, "restricted")

    monkeypatch.setattr(server, "ModelStatistics", refuse)
    server.stop()
    server.start()
    status, answer = post(server.url, png(7), "?timing=1&model=faster_rcnn")
    assert status == 200 and "timing" not in answer


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_upright_picture_for_browsers_that_do_not_turn_it(server, file_format):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :10] = 100
    exif = Image.Exif()
    exif[0x0112] = 6  # must be turned clockwise to be upright
    buffer = io.BytesIO()
    lossless = {"lossless": True} if file_format == "WEBP" else {}
    Image.fromarray(pixels).save(buffer, file_format, exif=exif, **lossless)
    data = buffer.getvalue()

    async def use(client):
        async with client.post("/detect", data=data) as response:
            answer = await response.json()
        async with client.post("/picture", data=data) as response:
            return answer, response.content_type, await response.read()

    answer, content_type, content = ask(server.url, use)
    assert (answer["image_size_hw"], answer["orientation"]) == ([30, 20], 6)
    assert content_type == "image/png"
    upright = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_allclose(upright, np.rot90(pixels, -1), atol=0 if file_format != "JPEG" else 40)


def test_a_client_that_goes_away_cancels_its_request(server, png):
    server.delay_s = lambda label: 0.6

    async def use(client):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.post("/detect?model=faster_rcnn", data=png(7)), 0.3)
        await asyncio.sleep(0.6)
        server.delay_s = lambda label: 0.0
        async with client.post("/detect?model=faster_rcnn", data=png(7)) as response:
            return response.status

    assert ask(server.url, use, in_flight=1) == 200
    assert server.num_cancelled == 1


def test_more_pictures_than_are_held_are_refused(server, png):
    server.delay_s = lambda label: 0.3

    async def use(client):
        async def send():
            async with client.post("/detect?model=faster_rcnn", data=png(7)) as response:
                return response.status

        return await asyncio.gather(*(send() for _ in range(7)))

    assert sorted(ask(server.url, use, in_flight=2)) == [200] * 4 + [503] * 3
    assert server.most_in_flight == 2


def test_every_parameter_is_described():
    described = describe()["paths"]["/detect"]["post"]["parameters"]
    assert [each["name"] for each in described] == list(PARAMETERS)
    assert all(each["description"].endswith(".") for each in described)
