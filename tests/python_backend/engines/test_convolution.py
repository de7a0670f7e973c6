"""The operator for fused convolutions, computed with torch's own operators, and the stored choices of its plans."""

import json
from pathlib import Path

import pytest
import torch
from rcnn_backend.engines.convolution import Convolution, convolve
from rcnn_backend.engines.plan_choices import PlanChoices, cache_path
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

CONVOLUTION = Convolution(
    (8, 64, 200, 336), (256, 64, 1, 1), torch.float16, (1, 1), (0, 0), (1, 1), 1, True, True, True
)


def test_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    weight, bias = torch.full((1, 1, 2, 2), 0.5), torch.tensor([-4.0])
    unit = [1, 1], [0, 0], [1, 1], 1
    assert torch.ops.rcnn.convolution(x, weight, None, None, *unit, False).flatten().tolist() == [5]
    assert torch.ops.rcnn.convolution(x, weight, bias, None, *unit, False).flatten().tolist() == [1]
    residual = torch.full((1, 1, 1, 1), -3.0)
    assert torch.ops.rcnn.convolution(x, weight, bias, residual, *unit, False).flatten().tolist() == [-2]
    assert torch.ops.rcnn.convolution(x, weight, bias, residual, *unit, True).flatten().tolist() == [0]
    assert residual.item() == -3


@pytest.mark.parametrize("size_hw", [(1, 1), (7, 12), (16, 9)])
@pytest.mark.parametrize(
    ("side", "stride", "padding", "dilation", "groups"),
    [
        (1, [1, 1], [0, 0], [1, 1], 1),
        (3, [2, 1], [1, 2], [1, 1], 2),
        (3, [1, 2], [2, 3], [2, 3], 4),
        (5, [3, 3], [2, 2], [1, 1], 1),
    ],
)
def test_values_and_traced_shapes_are_conv2ds(
    size_hw: tuple[int, int],
    side: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> None:
    x, weight = torch.randn(2, 4, *size_hw), torch.randn(8, 4 // groups, side, side)
    geometry = stride, padding, dilation, groups
    expected = functional.conv2d(x, weight, None, *geometry)
    residual, bias = torch.randn_like(expected), torch.randn(8)
    arguments = (x, weight, bias, residual, *geometry, True)
    found = torch.ops.rcnn.convolution(*arguments)
    torch.testing.assert_close(found, torch.relu(expected + bias[:, None, None] + residual))
    assert Convolution.of(*arguments).output == tuple(found.shape)
    with FakeTensorMode() as mode:
        fake = torch.ops.rcnn.convolution(
            *(mode.from_tensor(each) if isinstance(each, Tensor) else each for each in arguments)
        )
    assert fake.shape == found.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert fake.stride() == torch.empty(found.shape, memory_format=torch.channels_last).stride()


def test_fp16_stays_fp16() -> None:
    x, weight = torch.randn(1, 8, 6, 6), torch.randn(4, 8, 3, 3)
    found = convolve(x.half(), weight.half(), None, None, [1, 1], [1, 1], [1, 1], 1, False)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), functional.conv2d(x, weight, padding=1), rtol=0, atol=0.05)


def test_plans_are_shared_by_batches_of_about_one_size(tmp_path: Path) -> None:
    choices = PlanChoices(tmp_path / "new folder" / "plans.json")
    choices.put(CONVOLUTION, "eng15_k5=1")
    assert choices.get(CONVOLUTION._replace(x=(8, 64, 208, 320))) == "eng15_k5=1"
    for other in (
        CONVOLUTION._replace(x=(1, 64, 200, 336)),
        CONVOLUTION._replace(weight=(256, 64, 3, 3), padding=(1, 1)),
        CONVOLUTION._replace(dtype=torch.float32),
        CONVOLUTION._replace(relu=False),
        CONVOLUTION._replace(has_residual=False),
        CONVOLUTION._replace(has_bias=False),
        CONVOLUTION._replace(groups=2),
        CONVOLUTION._replace(dtype=torch.int8),
        CONVOLUTION._replace(dtype=torch.int8, result_dtype=torch.float16),
        CONVOLUTION._replace(dtype=torch.int8, residual_dtype=torch.float16),
    ):
        assert choices.get(other) is None
        choices.put(other, "another")
    assert choices.get(CONVOLUTION) == "eng15_k5=1"


def test_the_file_gathers_what_several_processes_choose(tmp_path: Path) -> None:
    path = tmp_path / "plans.json"
    first, second = PlanChoices(path), PlanChoices(path)
    first.put(CONVOLUTION, "one")
    second.put(CONVOLUTION._replace(relu=False), "two")
    first.save()
    second.save()
    assert sorted(json.loads(path.read_text()).values()) == ["one", "two"]
    assert PlanChoices(path).get(CONVOLUTION) == "one"
    assert [each.name for each in tmp_path.iterdir()] == ["plans.json"]
    path.unlink()
    first.save()
    assert not path.exists()  # there are no new choices


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\udc80"])
def test_a_broken_file_counts_as_empty_and_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plans.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    choices = PlanChoices(path)
    assert choices.get(CONVOLUTION) is None
    choices.put(CONVOLUTION, "one")
    choices.save()
    assert list(json.loads(path.read_text()).values()) == ["one"]


def test_a_host_without_a_cache_remembers_in_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (None, tmp_path / "file" / "plans.json"):
        choices = PlanChoices(path)
        choices.put(CONVOLUTION, "one")
        choices.save()
        assert choices.get(CONVOLUTION) == "one"


def test_the_file_is_named_by_gpu_and_cudnn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    name = "convolutions-NVIDIA-H100-80GB-HBM3-cudnn-91900.json"
    assert cache_path("NVIDIA H100 80GB HBM3", 91900) == tmp_path / "rcnn-backend" / name

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_path("NVIDIA L4", 91900) is None
