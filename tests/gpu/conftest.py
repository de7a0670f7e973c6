"""Tests on a GPU: CuPy kernels are compared with torchvision on the same device."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

try:
    import cupy

    HAS_GPU = cupy.cuda.runtime.getDeviceCount() > 0
except Exception:  # no CuPy, no driver and no device raise different types
    HAS_GPU = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder's tests if there is no GPU."""
    for item in items:
        if not HAS_GPU and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and CuPy"))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills new arrays with NaN, so that a value that was never written is noticed."""
    if HAS_GPU:
        blocks = [cupy.full(1 << bits, 0xFF, cupy.uint8) for bits in range(9, 27)]
        del blocks
    yield


@pytest.fixture(scope="session")
def compiled_network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small torch module on GPU 0, and its AOTInductor package: ``input`` [B, 3, 16, 16], two outputs."""
    import torch
    from rcnn_backend.contract.manifest import write_manifest
    from rcnn_backend.engines.aoti import describe_target

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = torch.relu(self.convolution(input))
            return features, features.flatten(1).topk(5).values

    folder = tmp_path_factory.mktemp("package")
    network = Network().cuda().eval()
    example = (torch.rand(2, 3, 16, 16, device="cuda"),)
    shapes = ({0: torch.export.Dim("batch", min=1, max=16)},)
    with torch.no_grad():
        program = torch.export.export(network, example, dynamic_shapes=shapes)
        path = folder / "model.pt2"
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    manifest = {
        "inputs": ["input"],
        "outputs": ["features", "top"],
        "engines": {path.name: {"target": describe_target(torch.device("cuda", 0))}},
        "versions": {"torch": torch.__version__},
    }
    write_manifest(folder, manifest)
    return network, path
