"""Fused convolutions on a GPU: every plan that may be chosen, the sample detector, and the stored choices."""

from typing import Any

import pytest

cupy = pytest.importorskip("cupy")
pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
import torch  # noqa: E402
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.engines import convolution_plans  # noqa: E402
from rcnn_backend.engines.convolution import Convolution, convolve  # noqa: E402
from rcnn_backend.engines.convolution_plans import ConvolutionPlans  # noqa: E402
from rcnn_backend.pipeline import Pipeline  # noqa: E402
from rcnn_export.detector.load import Detector  # noqa: E402
from rcnn_export.engines.options import CUDNN, EngineOptions  # noqa: E402
from rcnn_export.engines.precision import FP16, FP32, Precision  # noqa: E402
from rcnn_export.repository.write import export_repository  # noqa: E402

from .near_torchvision import (  # noqa: E402
    assert_detections_near,
    assert_features_near,
    assert_sizes_take_no_more_memory,
)

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
TOLERANCES = {torch.float16: 2e-3, torch.float32: 1e-5}  # relative to the largest magnitude
LARGEST_ERRORS = {FP16.name: 0.02, FP32.name: 1e-5}  # likewise, in a pyramid


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder for the choices stored on disk, instead of the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        convolution_plans.plans_of.cache_clear()
        yield
    convolution_plans.plans_of.cache_clear()


def random_call(
    batch: int,
    channels: int,
    size_hw: tuple[int, int],
    kernels: int,
    side: int,
    dtype: torch.dtype,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    with_bias: bool = True,
    with_residual: bool = False,
    relu: bool = True,
) -> tuple[Convolution, tuple[Any, ...]]:
    """A convolution that changes the size only by its stride, and its tensors on the GPU."""

    def random(*shape: int) -> torch.Tensor:
        tensor = torch.randn(shape, device=CUDA).to(dtype)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    x = random(batch, channels, *size_hw)
    weight = random(kernels, channels // groups, side, side) / (side * (channels // groups) ** 0.5)
    padding = dilation * (side // 2)
    geometry = (stride, stride), (padding, padding), (dilation, dilation), groups
    bias = random(kernels) if with_bias else None
    described = Convolution.of(x, weight, bias, None, *geometry, relu)
    residual = random(*described.output) if with_residual else None
    return described._replace(has_residual=with_residual), (x, weight, bias, residual)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize(
    "shape",
    [
        {"channels": 64, "kernels": 256, "side": 1, "with_residual": True},
        {"channels": 64, "kernels": 64, "side": 3},
        {"channels": 256, "kernels": 256, "side": 3, "relu": False},
        {"channels": 256, "kernels": 256, "side": 1, "with_residual": True, "relu": False},
        {"channels": 128, "kernels": 128, "side": 3, "stride": 2},
        {"channels": 256, "kernels": 512, "side": 1, "stride": 2, "relu": False},
        {"channels": 256, "kernels": 3, "side": 1, "relu": False},
        {"channels": 3, "kernels": 64, "side": 7, "stride": 2},
        {"channels": 128, "kernels": 128, "side": 3, "groups": 32},
        {"channels": 64, "kernels": 64, "side": 3, "dilation": 2},
        {"channels": 64, "kernels": 64, "side": 3, "with_bias": False, "with_residual": True},
        {"channels": 20, "kernels": 10, "side": 5, "with_bias": False, "relu": False},
    ],
    ids=lambda shape: "-".join(f"{value}" for value in shape.values()),
)
@pytest.mark.parametrize(("batch", "size_hw"), [(1, (25, 42)), (3, (50, 68)), (2, (1, 1))])
def test_every_plan_equals_fp64(shape: Any, dtype: torch.dtype, batch: int, size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    described, tensors = random_call(batch, size_hw=size_hw, dtype=dtype, **shape)
    exact = [None if tensor is None else tensor.double().cpu() for tensor in tensors]
    expected = convolve(*exact, *described.geometry, described.relu)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        timed = ConvolutionPlans(CUDA).measure(described, tensors)
        assert timed
        for _, name, plan in timed:
            found = plan(*tensors)
            assert found.dtype == dtype and found.shape == expected.shape, name
            error = (found.double().cpu() - expected).abs().max() / expected.abs().max()
            assert error < TOLERANCES[dtype], f"{name}: {error:.2e} of the largest"


def test_a_new_shape_is_refused_while_a_graph_is_captured() -> None:
    described, tensors = random_call(1, 64, (8, 8), 64, 3, torch.float16)
    plans = ConvolutionPlans(CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        with (
            pytest.raises(RuntimeError, match="must run once before"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            plans.run(described, *tensors)
        expected = plans.run(described, *tensors)
        with torch.cuda.graph(graph):
            found = plans.run(described, *tensors)
    graph.replay()
    torch.testing.assert_close(found, expected)


def test_what_was_chosen_is_remembered_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    described, tensors = random_call(2, 64, (40, 40), 64, 3, torch.float16)
    with torch.inference_mode():
        plans = ConvolutionPlans(CUDA)
        expected = plans.run(described, *tensors)
        plans.choices.save()
        monkeypatch.setattr(ConvolutionPlans, "measure", lambda *_: pytest.fail("it is timed again"))
        torch.testing.assert_close(ConvolutionPlans(CUDA).run(described, *tensors), expected)
        larger, tensors = random_call(2, 64, (41, 42), 64, 3, torch.float16)
        ConvolutionPlans(CUDA).run(larger, *tensors)


@pytest.fixture(scope="module", params=[FP16, FP32], ids=lambda precision: precision.name)
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param


@pytest.fixture(scope="module")
def pipeline(digits: Detector, precision: Precision, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    repository = tmp_path_factory.mktemp("repository")
    export_repository(digits, repository, "digits", options=EngineOptions(CUDNN, precision))
    return Pipeline.load(repository, "digits", Gpu(0))


def test_features_of_every_size_are_torchs(
    digits: Detector, precision: Precision, pipeline: Pipeline
) -> None:
    assert_features_near(digits.model, pipeline, range(3, 45, 3), LARGEST_ERRORS[precision.name])


@pytest.mark.parametrize("batch", [1, 4])
def test_detections_are_near_torchvisions(digits: Detector, pipeline: Pipeline, batch: int) -> None:
    assert_detections_near(digits.model, pipeline, batch)


def test_more_sizes_take_no_more_memory(pipeline: Pipeline) -> None:
    assert_sizes_take_no_more_memory(pipeline)
