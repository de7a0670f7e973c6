"""Labelling configs of Label Studio: which of their labels a detector can predict."""

import dataclasses

import pytest
from rcnn_client import DetectorInfo, InvalidParameterError
from rcnn_client.ui.label_studio.config import Control, read_config


def info(has_masks=False, keypoint_names=()):
    names = ["__background__", "dog", "Traffic Light"]
    return DetectorInfo(
        "pets", ["1"], names, 8, 100, None, has_masks, list(keypoint_names), False, "", None, ""
    )


def view(*controls):
    return f'<View><!-- of ours --><Image name="photo" value="$url"/>{"".join(controls)}</View>'


def rectangles(*labels, **attributes):
    given = {"name": "box", "toName": "photo"} | attributes
    return tag("RectangleLabels", given, *labels)


def tag(name, attributes, *children):
    return f"<{name} {' '.join(f'{key}={value!r}' for key, value in attributes.items())}>{''.join(children)}</{name}>"


def test_labels_stand_for_the_classes_of_their_name_or_those_they_list():
    labels = (
        '<Label value="DOG"/>',
        '<Label value="traffic light" alias="light"/>',
        '<Label value="unicorn"/>',
        '<Label background="red"/>',
    )
    (control,) = read_config(view(rectangles(*labels)), info())
    known = {"dog": "DOG", "Traffic Light": "light"}
    assert control == Control("rectanglelabels", "box", "photo", "url", known, 0.5, None)
    listed = '<Label value="thing" predicted_values="cat, dog ,traffic light"/><Label value="dog"/>'
    assert read_config(view(rectangles(listed)), info())[0].labels == {
        "dog": "thing",
        "Traffic Light": "thing",
    }


def test_classes_whose_names_differ_only_in_case():
    names = ["__background__", "dog", "Dog"]
    two = dataclasses.replace(info(), class_names=names)
    assert read_config(view(rectangles('<Label value="DOG"/>')), two)[0].labels == {
        "dog": "DOG",
        "Dog": "DOG",
    }


def test_each_kind_of_region_needs_what_the_detector_answers():
    dog = '<Label value="dog"/>'
    others = [
        tag(kind, {"name": kind, "toName": "photo"}, dog, '<Label value="nose"/>')
        for kind in ("BrushLabels", "PolygonLabels", "KeyPointLabels")
    ]
    config = view(*others, rectangles(dog))
    assert [each.name for each in read_config(config, info())] == ["box"]
    masks = read_config(config, info(has_masks=True))
    assert [each.name for each in masks] == ["box", "BrushLabels", "PolygonLabels"]
    boxes, points = read_config(config, info(keypoint_names=["nose", "tail"]))
    assert points.labels == {"nose": "nose"} and boxes.labels == {"dog": "dog"}


def test_thresholds_and_what_is_skipped():
    dog = '<Label value="dog"/>'
    config = view(
        rectangles(dog, model_score_threshold="0.25", model_point_threshold="-1.5"),
        rectangles(dog, name="other", model_skip="true"),
        rectangles(dog, name="text", toName="nothing"),
    )
    (control,) = read_config(config, info())
    assert (control.score_thresh, control.point_thresh) == (0.25, -1.5)


def test_controls_of_two_pictures():
    second = '<Image name="right" value="$right"/>'
    labels = rectangles('<Label value="dog"/>', name="other", toName="right")
    controls = read_config(view(rectangles('<Label value="dog"/>'), second, labels), info())
    assert [(each.image, each.key) for each in controls] == [("photo", "url"), ("right", "right")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("<View/>", "nothing for pets: expected an Image with a value, and for it one of RectangleLabels, "),
        ("<View>", "the labelling config is not XML: no element found"),
        ("<View>\ud800</View>", "the labelling config is not XML: "),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "has a document type, expected tags only"),
        (
            view(rectangles('<Label value="cat"/>')),
            "no label of RectangleLabels 'box' is one of its names (dog, Traffic Light); rename a label, or give it "
            'predicted_values="NAME,..."',
        ),
        (
            view('<BrushLabels name="b" toName="photo"><Label value="dog"/></BrushLabels>'),
            "BrushLabels needs masks, which a Mask R-CNN returns and this detector does not",
        ),
        (
            view('<KeyPointLabels name="k" toName="photo"><Label value="dog"/></KeyPointLabels>'),
            "KeyPointLabels needs keypoints, which a Keypoint R-CNN returns and this detector does not",
        ),
        (
            view(rectangles('<Label value="dog"/>', model_score_threshold="half")),
            "model_score_threshold='half', expected a number",
        ),
        (
            view(rectangles('<Label value="dog"/>', model_score_threshold="nan")),
            "model_score_threshold=nan, expected a number from 0 to 1",
        ),
    ],
)
def test_a_useless_config_is_an_error_that_gives_the_reason(config, message):
    with pytest.raises(InvalidParameterError) as caught:
        read_config(config, info())
    assert message in str(caught.value)
