"""On which GPU AOTInductor packages and their memory are; torch's GPU calls are replaced by fakes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rcnn_backend.contract.manifest import write_manifest
from rcnn_backend.devices import Gpu
from rcnn_backend.engines import aoti
from rcnn_backend.engines.aoti import TorchEngine


@pytest.mark.parametrize("device_id", [0, 1])
def test_a_package_and_its_memory_lie_on_the_gpu_of_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device_id: int
) -> None:
    """Whichever GPU is torch's current one; the current GPU does not change."""
    current, made = [0], []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        current.append(index)
        yield
        current.pop()

    def load(*_arguments: object) -> None:
        made.append(("package", current[-1]))
        current[-1] = device_id  # as AOTInductor's runtime does

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "MemPool", lambda: made.append(("memory", current[-1])))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda *_arguments: None)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", load)
    monkeypatch.setattr(aoti, "describe_target", lambda _device: "cuda sm_90")
    manifest = {
        "inputs": ["input"],
        "outputs": ["features"],
        "engines": {"model.pt2": {"target": "cuda sm_90"}},
        "versions": {"torch": torch.__version__},
    }
    write_manifest(tmp_path, manifest)
    gpu = Gpu.__new__(Gpu)  # without CuPy
    gpu.device_id, gpu.stream = device_id, SimpleNamespace(ptr=0)
    TorchEngine(tmp_path / "model.pt2", gpu)
    assert made == [("memory", device_id), ("package", device_id)]
    assert current == [0]
