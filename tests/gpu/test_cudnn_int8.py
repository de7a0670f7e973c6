"""INT8 on a GPU, compared with the CPU's integers: every plan that may be chosen, the quantiser, the sample detector."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

cupy = pytest.importorskip("cupy")
pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from rcnn_backend.devices import Gpu  # noqa: E402
from rcnn_backend.engines import convolution_plans, quantize_gpu  # noqa: E402
from rcnn_backend.engines.convolution import Convolution  # noqa: E402
from rcnn_backend.engines.convolution_int8 import convolve_int8, describe_int8, quantize  # noqa: E402
from rcnn_backend.engines.convolution_plans import ConvolutionPlans  # noqa: E402
from rcnn_backend.engines.graphs import GraphCache  # noqa: E402
from rcnn_backend.pipeline import Pipeline  # noqa: E402
from rcnn_export.detector.load import Detector  # noqa: E402
from rcnn_export.engines.options import CUDNN, Calibration, EngineOptions, precision_of  # noqa: E402
from rcnn_export.repository.write import export_repository  # noqa: E402

from .near_torchvision import PICTURES  # noqa: E402
from .test_cudnn import own_cache  # noqa: E402, F401

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
INT8, FP16, FP32 = torch.int8, torch.float16, torch.float32
CHANNELS_LAST = torch.channels_last
# A sum may be so close to the middle between two integers that the order of the FP32 roundings decides.
MOST_OTHER_ROUNDINGS = 1e-3
FEATURE_ERRORS = 0.15, 0.03  # the largest and the mean error, relative to a level's largest magnitude

Call = tuple[
    Convolution, tuple[Any, ...], tuple[Any, ...]
]  # description, tensors on the CPU, other arguments


def random_call(
    batch: int,
    channels: int,
    size_hw: tuple[int, int],
    kernels: int,
    side: int,
    dtype: torch.dtype = INT8,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    with_bias: bool = True,
    residual: torch.dtype | None = None,
    relu: bool = True,
) -> Call:
    """A convolution that changes the size only by its stride. Its results are spread over the INT8 range."""
    x = torch.randint(-128, 128, (batch, channels, *size_hw), dtype=INT8)
    weight = torch.randint(-127, 128, (kernels, channels // groups, side, side), dtype=INT8)
    padding = dilation * (side // 2)
    geometry = (stride, stride), (padding, padding), (dilation, dilation), groups
    spread = 74 * 73 * (side * side * channels // groups) ** 0.5  # the standard deviation of the sums
    scale = (0.5 + torch.rand(kernels)) * 40 / spread
    bias = 10 * torch.randn(kernels) if with_bias else None
    output = describe_int8(x, weight, None, None, *geometry, relu, dtype).output
    added, added_scale = None, None
    if residual is not None:
        added_scale = 0.5 + torch.rand(kernels)
        values = (
            torch.randint(-60, 60, output, dtype=INT8) if residual == INT8 else (30 * torch.randn(output))
        )
        added = values.to(residual)
    tensors = (x, weight, bias, added, scale, added_scale)
    tensors = tuple(
        each.contiguous(memory_format=CHANNELS_LAST) if each is not None and each.ndim == 4 else each
        for each in tensors
    )
    described = describe_int8(*tensors[:4], *geometry, relu, dtype)
    return described, tensors, (*geometry, relu, dtype)


@pytest.fixture
def every_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions try the plans that cuDNN compiles, too."""
    monkeypatch.setattr(convolution_plans, "MIN_MS_TO_COMPILE", 0.0)


def on_gpu(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if tensor is None else tensor.to(CUDA) for tensor in tensors)


def assert_same(
    found: torch.Tensor, expected: torch.Tensor, plan: str, most_others: float = MOST_OTHER_ROUNDINGS
) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape, plan
    assert found.is_contiguous(memory_format=CHANNELS_LAST), plan
    if plan.startswith("rcnn "):  # our own kernel rounds as torch does
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, msg=lambda text: plan + text)
        return
    if expected.dtype != INT8:
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3, msg=lambda text: plan + text)
        return
    steps = (found.cpu().int() - expected.int()).abs()
    share = (steps > 0).double().mean().item()
    assert steps.max() <= 1 and share <= most_others, f"{plan}: {steps.max()} steps, {share:.1e} differ"


@pytest.mark.usefixtures("every_plan")
def test_every_plan_rounds_halves_to_even_and_clamps() -> None:
    x = torch.zeros(1, 16, 4, 4, dtype=INT8)
    x[:, 0] = 1
    weight = torch.zeros(16, 16, 1, 1, dtype=INT8)
    weight[:, 0, 0, 0] = torch.tensor([1, 3, 5, -1, -3, -5, 7, -7, 9, -9, 127, -127, 64, -64, 2, 0])
    geometry = (1, 1), (0, 0), (1, 1), 1
    for factor in (0.5, 20.0):
        tensors = x, weight, torch.zeros(16), None, torch.full((16,), factor), None
        others = (*geometry, False, INT8)
        expected = convolve_int8(*tensors, *others)
        described = describe_int8(*tensors[:4], *others)
        with torch.inference_mode():
            timed = ConvolutionPlans(CUDA).measure(described, on_gpu(tensors))
            assert timed, "cuDNN has no plan"
            for _, name, plan in timed:
                found = plan(*on_gpu(tensors))[0, :, 0, 0].tolist()
                assert found == expected[0, :, 0, 0].tolist(), name


@pytest.mark.parametrize(
    "shape", [{"channels": 64, "kernels": 64, "groups": 4}, {"channels": 20, "kernels": 10, "residual": INT8}]
)
@pytest.mark.parametrize("has_plans", [True, False])
def test_shapes_that_are_not_exported_in_int8_run_as_well(
    shape: Any, has_plans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no engine")

    if not has_plans:
        monkeypatch.setattr(convolution_plans, "CudnnGraph", refuse)
    torch.manual_seed(0)
    described, tensors, others = random_call(2, size_hw=(20, 30), side=3, **shape)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = ConvolutionPlans(CUDA).run(described, *on_gpu(tensors))
    # torch's own convolution may transform FP32 numbers (Winograd); then the sums are not exact.
    assert_same(found, convolve_int8(*tensors, *others), "", most_others=1e-2)


@pytest.mark.parametrize("scale", [0.01, 0.037, 1.0, 100.0])
def test_all_fp16_numbers_are_quantised_as_on_the_cpu(scale: float) -> None:
    numbers = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(FP16)
    x = numbers[numbers.isfinite()].reshape(2, 31, 32, 32)
    for tensor in (x, x.contiguous(memory_format=CHANNELS_LAST), x.float()):
        found = quantize_gpu.quantize(tensor.to(CUDA), scale)
        assert found.dtype == INT8 and found.is_contiguous(memory_format=CHANNELS_LAST)
        torch.testing.assert_close(found.cpu(), quantize(tensor, scale), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [FP16, FP32])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 3, 3, 3), (2, 64, 25, 42), (5, 13, 40, 41), (0, 8, 4, 4)]
)
def test_sizes_that_fill_no_vector_are_quantised(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    count = int(np.prod(shape))
    for start in (0, 1):  # 1: the first number is not aligned
        x = (3 * torch.randn(count + 1, device=CUDA)).to(dtype)[start : start + count]
        x = x.reshape(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
        found = torch.ops.rcnn.quantize(x, 0.05)
        torch.testing.assert_close(found.cpu(), quantize(x.cpu(), 0.05), rtol=0, atol=0)


def test_both_operators_are_captured() -> None:
    torch.manual_seed(0)
    _, tensors, others = random_call(2, 64, (30, 40), 64, 3)
    x = torch.randn(2, 64, 30, 40, device=CUDA, dtype=FP16).contiguous(memory_format=CHANNELS_LAST)
    _, *rest = on_gpu(tensors)

    def run() -> torch.Tensor:
        found: torch.Tensor = torch.ops.rcnn.convolution_int8(
            torch.ops.rcnn.quantize(x, 0.02), *rest, *others
        )
        return found

    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        run()
        with torch.cuda.graph(graph):
            found = run()
        for _ in range(2):
            x.copy_(torch.randn(x.shape))
            graph.replay()
            expected = convolve_int8(quantize(x.cpu(), 0.02), *tensors[1:], *others)
            assert_same(found, expected, "captured")


@pytest.fixture(scope="module")
def repository(digits: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    calibration = Calibration(PICTURES[0].parent)
    options = EngineOptions(CUDNN, precision_of(CUDNN, "int8"), calibration=calibration)
    export_repository(digits, folder, "digits", options=options)
    return folder


def test_features_are_near_those_of_the_same_program_on_a_cpu(repository: Path) -> None:
    """A CUDA graph also gives the same features as the run without a graph, to the last bit."""
    host = Pipeline.load(repository, "digits").engines["rpn"]
    device = Gpu(0)
    engine = Pipeline.load(repository, "digits", device).engines["rpn"]
    random = np.random.default_rng(0)
    with device.active():
        graphs = GraphCache(lambda x: list(engine.run({"input": x}).values()), device)
        for shape in ((1, 3, 96, 128), (3, 3, 160, 64)):
            pixels = random.standard_normal(shape).astype(np.float16)
            expected = host.run({"input": pixels})
            called, captured, replayed = (
                dict(zip(expected, device.download(graphs(cupy.asarray(pixels))), strict=True))
                for _ in range(3)
            )
            for level in range(4):
                name = f"feature_{level}"
                np.testing.assert_array_equal(called[name], captured[name])
                np.testing.assert_array_equal(called[name], replayed[name])
                errors = np.abs(called[name].astype(np.float32) - expected[name])
                largest, mean = (
                    error / np.abs(expected[name]).max() for error in (errors.max(), errors.mean())
                )
                assert largest < FEATURE_ERRORS[0] and mean < FEATURE_ERRORS[1], f"{name}: {largest}, {mean}"


@pytest.mark.parametrize("batch", [1, 4])
def test_detections_are_near_those_on_a_cpu(repository: Path, batch: int) -> None:
    """Checks three runs: without a graph, during the capture, and as a CUDA graph."""
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in PICTURES[:batch]]
    expected = Pipeline.load(repository, "digits").detect(pictures, {"score_thresh": 0.5})
    pipeline = Pipeline.load(repository, "digits", Gpu(0))
    for _ in range(3):
        found = pipeline.detect(pictures, {"score_thresh": 0.5})
        np.testing.assert_array_equal(found.num_detections, expected.num_detections)
        for image, count in enumerate(expected.num_detections.ravel()):
            for label in np.unique(expected.labels[image, :count]):
                own, theirs = (
                    np.sort(side.boxes[image, :count][side.labels[image, :count] == label], axis=0)
                    for side in (found, expected)
                )
                np.testing.assert_allclose(own, theirs, atol=4)


@pytest.mark.usefixtures("every_plan")
@pytest.mark.parametrize(
    "shape",
    [
        {"channels": 64, "kernels": 64, "side": 3},
        {"channels": 64, "kernels": 256, "side": 1, "residual": INT8},
        {"channels": 64, "kernels": 256, "side": 1, "residual": FP16},
        {"channels": 64, "kernels": 256, "side": 1, "relu": False, "dtype": FP16},
        {"channels": 256, "kernels": 256, "side": 3, "relu": False, "dtype": FP16},
        {"channels": 256, "kernels": 256, "side": 3, "dtype": FP16},
        {"channels": 256, "kernels": 256, "side": 1, "residual": FP16, "relu": False, "dtype": FP16},
        {"channels": 256, "kernels": 256, "side": 1, "residual": FP16, "relu": False},
        {"channels": 128, "kernels": 128, "side": 3, "stride": 2},
        {"channels": 256, "kernels": 512, "side": 1, "stride": 2, "relu": False, "dtype": FP16},
        {"channels": 1024, "kernels": 2048, "side": 1, "residual": INT8},
        {"channels": 48, "kernels": 96, "side": 3},
        {"channels": 16, "kernels": 16, "side": 1, "with_bias": False},
        {"channels": 64, "kernels": 64, "side": 3, "dilation": 2},
        {"channels": 64, "kernels": 64, "side": 3, "residual": INT8, "dtype": FP32},
    ],
    ids=lambda shape: "-".join(f"{value}".removeprefix("torch.") for value in shape.values()),
)
def test_every_plan_equals_whole_numbers(shape: Any) -> None:
    assert_plans_equal_whole_numbers(2, (25, 42), **shape)


@pytest.mark.usefixtures("every_plan")
@pytest.mark.parametrize(("batch", "size_hw"), [(3, (50, 68)), (2, (1, 1))])
def test_they_do_at_other_sizes(batch: int, size_hw: tuple[int, int]) -> None:
    assert_plans_equal_whole_numbers(batch, size_hw, channels=64, kernels=64, side=3, residual=INT8)


def assert_plans_equal_whole_numbers(batch: int, size_hw: tuple[int, int], **shape: Any) -> None:
    torch.manual_seed(0)
    described, tensors, others = random_call(batch, size_hw=size_hw, **shape)
    expected = convolve_int8(*tensors, *others)
    with torch.inference_mode():
        timed = ConvolutionPlans(CUDA).measure(described, on_gpu(tensors))
        assert timed, "cuDNN has no plan"
        for _, name, plan in timed:
            assert_same(plan(*on_gpu(tensors)), expected, name)
