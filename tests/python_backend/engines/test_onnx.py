"""ONNX files run on the CPU by OpenVINO."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from rcnn_backend.engines.load import load_engine
from rcnn_backend.engines.onnx import OnnxEngine
from rcnn_backend.errors import RepositoryError


def save_network(path: Path, dtype: type = np.float32) -> None:
    """y = 2 x and shape = the dimensions of x as INT64, for x of any shape [B, n]."""
    element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (onnx.helper.make_tensor_value_info(name, element, [None, None]) for name in "xy")
    columns = onnx.helper.make_tensor_value_info("columns", onnx.TensorProto.INT64, [None, 1])
    nodes = [
        onnx.helper.make_node("Add", ["x", "x"], ["y"]),
        onnx.helper.make_node("Shape", ["x"], ["shape"]),
        onnx.helper.make_node("Reshape", ["shape", "column"], ["columns"]),
    ]
    column = onnx.numpy_helper.from_array(np.array([2, 1]), "column")
    graph = onnx.helper.make_graph(nodes, "double", [x], [y, columns], [column])
    opset = onnx.helper.make_opsetid("", 20)
    path.write_bytes(onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset]).SerializeToString())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_images_run_one_by_one_and_keep_their_type(dtype: type, tmp_path: Path) -> None:
    save_network(tmp_path / "model.onnx", dtype)
    engine = load_engine(tmp_path)
    for images, width in [(1, 4), (3, 5), (2, 0)]:
        x = np.arange(images * width, dtype=dtype).reshape(images, width)
        outputs = engine.run({"x": x})
        assert list(outputs) == ["y", "columns"]
        assert outputs["y"].dtype == dtype
        np.testing.assert_array_equal(outputs["y"], 2 * x)
        assert outputs["columns"].dtype == np.int64
        np.testing.assert_array_equal(outputs["columns"].ravel(), [1, width] * images)


def test_an_answer_outlives_later_runs_and_the_engine(tmp_path: Path) -> None:
    save_network(tmp_path / "model.onnx")
    engine = OnnxEngine(tmp_path / "model.onnx")
    x = np.ones((1, 1000), np.float32)
    first = engine.run({"x": x})["y"]
    engine.run({"x": 5 * x})
    del engine
    np.testing.assert_array_equal(first, 2 * x)


def test_threads_run_the_same_engine_at_once(tmp_path: Path) -> None:
    save_network(tmp_path / "model.onnx")
    engine = OnnxEngine(tmp_path / "model.onnx", threads=1)
    wrong = []

    def run(value: int) -> None:
        for width in range(1, 50):
            x = np.full((1, width), value, np.float32)
            if not np.array_equal(engine.run({"x": x})["y"], 2 * x):
                wrong.append((value, width))

    runs = [threading.Thread(target=run, args=(value,)) for value in range(4)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    assert not wrong


def test_a_path_of_any_bytes(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode("it's 数字 \xe9".encode() + b"\xff")
    folder.mkdir()
    save_network(folder / "model.onnx")
    assert load_engine(folder).run({"x": np.ones((1, 1), np.float32)})["y"] == 2


@pytest.mark.parametrize("kept", [0, 20, -10])
def test_a_damaged_file_is_one_sentence_and_what_to_do(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_network(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RepositoryError) as error:
        load_engine(tmp_path)
    message = str(error.value)
    assert message.startswith("OpenVINO 20")
    assert f"cannot load {path}: " in message
    assert message.endswith(". Export the detector again with rcnn-export")
    assert "\n" not in message
    assert "Exception" not in message


def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in "xy")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mystery", ["x"], ["y"], domain="mine")], "g", [x], [y]
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("mine", 1)]
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=opsets)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RepositoryError, match="Mystery"):
        load_engine(tmp_path)


def test_importing_sends_nothing_and_writes_nothing(tmp_path: Path) -> None:
    code = "import sys, rcnn_backend.engines.onnx; sys.exit(sys.modules['openvino_telemetry'] is not None)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"HOME": str(tmp_path)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "means",
    [
        "rows = ReduceMean <keepdims = 1> (x, last)\n y = ReduceMean <keepdims = 1> (rows, second)",
        "y = ReduceMean <keepdims = 1> (x, both)",
        "flat = ReduceMean <keepdims = 0> (x, both)\n y = Reshape (flat, shape)",
    ],
)
def test_a_mean_of_many_pixels_keeps_its_digits(means: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>\n g (float[n, 2, h, w] x) => (float[n, 2, 1, 1] y)\n'
        "<int64[1] last = {-1}, int64[1] second = {-2}, int64[2] both = {2, 3}, int64[4] shape = {0, 2, 1, 1}>\n"
        f"{{\n{means}\n}}"
    )
    onnx.save(model, tmp_path / "model.onnx")
    x = np.full((1, 2, 1100, 1300), 0.1, np.float32)
    x[:, 1, :, :700] = np.random.default_rng(0).random((1100, 700), np.float32)
    found = load_engine(tmp_path).run({"x": x})["y"]
    np.testing.assert_allclose(
        found[0, :, 0, 0], x.mean(axis=(0, 2, 3), dtype=np.float64), rtol=2e-5
    )  # the error would be 4e-4 if all were added one after another
