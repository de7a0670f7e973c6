"""A detector compiled by AOTInductor on a GPU gives torchvision's answers, whatever the size of the pictures."""

import pytest

cupy = pytest.importorskip("cupy")
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.pipeline import Pipeline  # noqa: E402
from rcnn_export.detector.load import Detector  # noqa: E402
from rcnn_export.engines.options import AOTI, EngineOptions  # noqa: E402
from rcnn_export.engines.precision import FP16  # noqa: E402
from rcnn_export.repository.write import export_repository  # noqa: E402

from .near_torchvision import (  # noqa: E402
    assert_detections_near,
    assert_features_near,
    assert_sizes_take_no_more_memory,
)

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def pipeline(digits: Detector, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The sample detector in FP16."""
    repository = tmp_path_factory.mktemp("repository")
    export_repository(digits, repository, "digits", options=EngineOptions(AOTI, FP16))
    return Pipeline.load(repository, "digits", Gpu(0))


def test_features_of_every_size_are_torchs(digits: Detector, pipeline: Pipeline) -> None:
    """The FPN upsamples each level by two. If it used a wrong pixel, the error would be as large as the features."""
    assert_features_near(digits.model, pipeline, range(3, 45), 0.02)


@pytest.mark.parametrize("batch", [1, 4])
def test_detections_are_near_torchvisions(digits: Detector, pipeline: Pipeline, batch: int) -> None:
    assert_detections_near(digits.model, pipeline, batch)


def test_more_sizes_take_no_more_memory(pipeline: Pipeline) -> None:
    assert_sizes_take_no_more_memory(pipeline)
