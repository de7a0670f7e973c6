"""Without the wheel, ``rcnn-serve`` runs the tritonserver on PATH, here in a folder laid out as in NVIDIA's images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from rcnn_backend.errors import ServerError
from rcnn_backend.server.local_server import running_server
from rcnn_backend.server.triton_install import find_triton

MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1)]) for x in tensors]
"""
CONFIG = """
backend: "python"
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
"""


@pytest.fixture
def image_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``opt/tritonserver`` as in an image, on PATH, made from the wheel's files; the wheel itself cannot be found."""
    wheel = find_triton()
    root = tmp_path / "opt" / "tritonserver"
    python_backend = shutil.copytree(wheel.python_backend, root / "backends" / "python")
    shutil.copy2(wheel.stub, python_backend)
    (python_backend / wheel.stub.name).chmod(0o755)
    (root / "bin").mkdir()
    shutil.copy2(wheel.server, root / "bin")
    (root / "lib").symlink_to(wheel.libraries)
    monkeypatch.setenv("PATH", str(root / "bin"), prepend=":")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return root


def test_it_serves_with_the_backends_of_that_server(image_root: Path, tmp_path: Path) -> None:
    model = tmp_path / "models" / "plus_one"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "1" / "model.py").write_text(MODEL)
    with running_server(tmp_path / "models") as server:
        command = Path(f"/proc/{server.process.pid}/cmdline").read_text().split("\0")
        with triton.InferenceServerClient(server.grpc_url) as client:
            x = triton.InferInput("x", [2], "FP32")
            x.set_data_from_numpy(np.array([1, 2.5], np.float32))
            assert client.infer("plus_one", [x]).as_numpy("y").tolist() == [2, 3.5]
    assert command[0] == str(image_root / "bin" / "tritonserver")
    assert f"--backend-directory={image_root}/backends" in command


def test_a_server_without_its_python_backend_is_reported(image_root: Path) -> None:
    (image_root / "backends" / "python" / "triton_python_backend_stub").unlink()
    with pytest.raises(ServerError, match=r"has no Python backend: there is no .*/backends/python/triton_"):
        find_triton()
