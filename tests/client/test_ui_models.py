"""The detectors that rcnn-ui finds on its server, and the colours and limbs that it gives for drawing."""

from rcnn_client._contract import COCO_KEYPOINTS
from rcnn_client._draw_shapes import LIMBS, class_colour

from .ui_client import ask


def get(url, path):
    async def use(client):
        async with client.get(path) as response:
            return response.status, await response.json()

    return ask(url, use)


def test_models_that_are_no_detectors_are_left_out(server):
    server.add_pixels_model()
    assert get(server.url, "/models") == (200, {"url": server.url, "models": ["faster_rcnn"]})
    server.configs.clear()
    assert get(server.url, "/models")[1]["models"] == []


def test_a_model_and_its_colours(server):
    server.add_masks()
    server.add_keypoints(17)
    status, info = get(server.url, "/models/faster_rcnn")
    assert status == 200
    assert (info["max_detections"], info["has_masks"], info["keypoint_names"]) == (100, True, COCO_KEYPOINTS)
    assert info["class_names"][:2] == ["__background__", "class 1"]
    assert info["class_colours"][7] == "#{:02x}{:02x}{:02x}".format(*class_colour(7))
    names = info["keypoint_names"]
    assert [(names[a], names[b]) for a, b in info["limbs"]] == LIMBS
    assert len(info["keypoint_colours"]) == 17


def test_keypoints_other_than_cocos_have_no_limbs(server):
    server.add_keypoints(2, ["head", "tail"])
    info = get(server.url, "/models/faster_rcnn")[1]
    assert info["limbs"] == [] and len(set(info["keypoint_colours"])) == 2


def test_a_model_that_is_not_there(server):
    status, answer = get(server.url, "/models/nothing%20there")
    assert status == 404 and "has no model 'nothing there'" in answer["error"]


def test_no_server():
    status, answer = get("127.0.0.1:1", "/models")
    assert status == 503 and "Is the server running there" in answer["error"]
