"""The requests of Label Studio to rcnn-ui, over a real HTTP connection and a real gRPC connection."""

import base64
import io

import jsonschema
import pytest
from grpc import StatusCode
from PIL import Image
from rcnn_client.ui import app as ui_app
from rcnn_client.ui.label_studio.description import METHODS

from .ui_client import ask

LABELS = "".join(f'<Label value="class {label}"/>' for label in (5, 7))
CONFIG = f"""<View>
  <Image name="photo" value="$image"/>
  <RectangleLabels name="box" toName="photo">{LABELS}</RectangleLabels>
</View>"""


def uri(encoded):
    return f"data:image/png;base64,{base64.b64encode(encoded).decode()}"


def task(number, place):
    return {"id": number, "data": {"image": place}, "project": 3}


def post(url, path, body, model="faster_rcnn", **settings):
    """Status, reason and JSON of a POST; checks that an answer without an error matches its schema."""

    async def use(client):
        data = body if isinstance(body, bytes) else None
        json = None if isinstance(body, bytes) else body
        async with client.post(f"/label-studio/{model}/{path}", data=data, json=json) as response:
            return response.status, response.reason, await response.json()

    status, reason, answer = ask(url, use, **settings)
    if status == 200:
        jsonschema.validate(answer, METHODS[path][1]["answer"])
    return status, reason, answer


def predict(url, *tasks, config=CONFIG, **settings):
    status, _, answer = post(url, "predict", {"tasks": tasks, "label_config": config}, **settings)
    assert status == 200, answer
    return answer["results"]


def test_tasks_get_their_predictions_in_order(server, png):
    first, second = predict(server.url, task(1, uri(png(7))), task(2, uri(png(5))))
    assert first["model_version"] == "faster_rcnn" and first["score"] == pytest.approx(0.75)
    assert [region["score"] for region in first["result"]] == [0.9, 0.6]
    assert {region["value"]["rectanglelabels"][0] for region in first["result"]} == {"class 7"}
    assert {region["value"]["rectanglelabels"][0] for region in second["result"]} == {"class 5"}
    assert len({region["id"] for region in first["result"] + second["result"]}) == 4
    region = first["result"][0]
    assert (region["original_width"], region["original_height"]) == (40, 30)
    sent = server.requests[-1]
    assert sent.parameters["score_thresh"].double_param == 0.5
    assert {output.name for output in sent.outputs} == {"boxes", "scores", "labels", "num_detections"}


def test_nothing_found_is_an_answer_and_classes_without_a_label_are_left_out(server, png):
    empty = {"model_version": "faster_rcnn", "score": 0, "result": []}
    assert predict(server.url, task(1, uri(png(0))), task(2, uri(png(8)))) == [empty, empty]


def test_a_task_that_fails_does_not_lose_the_others(server, png, capsys):
    tasks = [
        task(1, uri(b"no picture")),
        task(2, uri(png(7))),
        task(3, "http://169.254.169.254/"),
        task(4, None),
        {"id": 5},
        "no task",
    ]
    results = predict(server.url, *tasks)
    assert len(results[1]["result"]) == 2
    errors = [result["error"] for number, result in enumerate(results) if number != 1]
    assert [message.partition(":")[0] for message in errors] == [
        "task 1",
        "task 3",
        "task 4",
        "task 5",
        "task 'no task'",
    ]
    assert "cannot be read" in errors[0] and "start rcnn-ui with --picture-host" in errors[1]
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(f"rcnn-ui: {error}" for error in errors)


def test_a_server_that_refuses_a_picture_fails_its_task(server, png):
    server.status = (StatusCode.INVALID_ARGUMENT, "the picture has too many pixels")
    (result,) = predict(server.url, task(1, uri(png(7))))
    assert result["error"].startswith("task 1: image: the picture has too many pixels")


def test_pictures_are_at_the_server_together(server, png):
    server.delay_s = lambda label: 0.2
    results = predict(server.url, *[task(number, uri(png(7))) for number in range(8)], in_flight=4)
    assert len(results) == 8 and server.most_in_flight == 4


def test_regions_lie_on_the_upright_picture(server):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), (7, 0, 0)).save(buffer, "PNG", exif=exif)
    (result,) = predict(server.url, task(1, uri(buffer.getvalue())))
    region = result["result"][0]
    assert (region["original_width"], region["original_height"]) == (30, 40)


def test_masks_and_keypoints(server, png):
    server.add_masks()
    server.add_keypoints(2, ["head", "tail"])
    config = CONFIG.replace(
        "</View>",
        f"""<BrushLabels name="brush" toName="photo">{LABELS}</BrushLabels>
            <PolygonLabels name="polygon" toName="photo">{LABELS}</PolygonLabels>
            <KeyPointLabels name="point" toName="photo"><Label value="tail"/></KeyPointLabels></View>""",
    )
    (result,) = predict(server.url, task(1, uri(png(7))), config=config)
    kinds = ["rectanglelabels", "brushlabels", "polygonlabels", "keypointlabels"]
    assert [region["type"] for region in result["result"]] == kinds * 2
    box, brush, polygon, tail = result["result"][:4]
    assert brush["value"]["brushlabels"] == ["class 7"] and len(brush["value"]["rle"]) > 7
    assert polygon["value"]["points"] == [[0, 0], [50, 0], [50, 100], [0, 100]]
    assert tail["value"] == {"x": 2.5, "y": pytest.approx(20 / 3), "width": 0.5, "keypointlabels": ["tail"]}
    assert tail["parentID"] == box["id"]


def test_two_pictures_of_a_task(server, png):
    more = '<Image name="other" value="$second"/><RectangleLabels name="b" toName="other">'
    config = CONFIG.replace("</View>", f"{more}{LABELS}</RectangleLabels></View>")
    given = {"id": 1, "data": {"image": uri(png(7)), "second": uri(png(5, (20, 20)))}}
    (result,) = predict(server.url, given, config=config)
    assert [(each["to_name"], each["original_width"]) for each in result["result"]] == [
        ("photo", 40),
        ("photo", 40),
        ("other", 20),
        ("other", 20),
    ]


def test_setup_and_webhook(server):
    setup = {"project": "3.1", "schema": CONFIG, "hostname": "http://localhost:8081", "access_token": "t"}
    assert post(server.url, "setup", setup) == (200, "OK", {"model_version": "faster_rcnn"})
    assert post(server.url, "webhook", {"action": "ANNOTATION_CREATED"}) == (200, "OK", {})
    status, reason, _ = post(server.url, "webhook", {"action": "START_TRAINING"})
    assert (status, reason) == (400, "a served detector is not trained here: train it with rcnn-train")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "setup",
            {"schema": "<View/>"},
            "the labelling config has nothing for faster_rcnn: expected an Image",
        ),
        ("setup", {"schema": "<Viéw>\n"}, "the labelling config is not XML: "),
        ("setup", {}, "the body has no schema, or it is not a string"),
        ("predict", {"tasks": {}, "label_config": CONFIG}, "the body has no tasks, or it is not a list"),
        ("predict", {"tasks": []}, "the body has no label_config, or it is not a string"),
        ("predict", b"{", "the body is not JSON: Expecting property name"),
        ("predict", b"[]", "the body is not a JSON object"),
        ("predict", b"[" * 100_000, "the body is not JSON: maximum recursion depth"),
        ("predict", b"\xff\xfe\xff", "the body is not JSON: "),
    ],
)
def test_the_status_line_says_what_is_wrong(server, path, body, message):
    status, reason, answer = post(server.url, path, body)
    assert status == 400 and message in reason
    assert reason == answer["error"].replace("é", "?").replace("\n", " ")


def test_a_model_that_is_not_there(server):
    status, reason, _ = post(server.url, "setup", {"schema": CONFIG}, model="nothing")
    assert status == 404 and "has no model 'nothing'" in reason


def test_a_body_that_is_too_large_is_a_413(server, monkeypatch):
    monkeypatch.setattr(ui_app, "MAX_BODY_BYTES", 2**20)
    assert post(server.url, "predict", bytes(2**20 + 1))[0] == 413


def health(url, model="faster_rcnn"):
    async def use(client):
        async with client.get(f"/label-studio/{model}/health") as response:
            return response.status, response.reason, response.headers, await response.json()

    return ask(url, use)


def test_health_is_the_detectors(server):
    assert health(server.url)[3] == {"status": "UP", "model_class": "rcnn-ui"}
    for url, model in ((server.url, "nothing"), ("127.0.0.1:1", "faster_rcnn")):
        status, reason, headers, _ = health(url, model)
        assert (status, reason) == (503, f"{url} does not serve model {model!r} now")
        assert "Retry-After" not in headers
