"""Plans of the sample detector: which files are written, what is refused, and which plans are built again.

TensorRT-RTX stands in for TensorRT, because it builds without a GPU. No plan runs here.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from rcnn_backend.contract.configs import read_configs
from rcnn_backend.contract.manifest import (
    PlanOptions,
    check_files,
    read_manifest,
    read_plan_record,
    sha256_of,
    write_manifest,
    write_plan_record,
)
from rcnn_backend.engines.load import load_engine
from rcnn_backend.engines.plan_build import build_plan
from rcnn_backend.engines.profiles import ShapeRange, from_json
from rcnn_backend.engines.rebuild import check_config, rebuild_plans
from rcnn_backend.engines.tensorrt import PlanTensor
from rcnn_backend.engines.tensorrt_package import ErrorLog, find_installed, trt
from rcnn_backend.errors import RepositoryError, ServerError
from rcnn_backend.server.cli import main as serve
from rcnn_backend.server.local_server import running_server
from rcnn_export.commands import verify
from rcnn_export.detector.load import Detector
from rcnn_export.engines.options import TENSORRT, EngineOptions
from rcnn_export.repository.write import export_repository
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

pytestmark = pytest.mark.xdist_group("export")

HAS_GPU = Path("/dev/nvidiactl").exists()


@pytest.fixture
def editable(plan_repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository that a test may change."""
    return Path(shutil.copytree(plan_repository, tmp_path / "models"))


def describe(version_dir: Path) -> list[PlanTensor]:
    """The inputs and outputs of the graph as TensorRT parses them."""
    log = ErrorLog()
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse((version_dir / "model.onnx").read_bytes()), log
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return [
        PlanTensor(tensor.name, tensor in inputs, trt.nptype(tensor.dtype), tuple(tensor.shape))
        for tensor in (*inputs, *outputs)
    ]


def test_what_is_written(plan_repository: Path) -> None:
    configs = read_configs(plan_repository)
    for stage, num_profiles in (("rpn", 2), ("header", 1)):
        version_dir = plan_repository / f"digits_{stage}" / "1"
        record = read_plan_record(version_dir)
        assert record
        check_files(version_dir, record)
        assert record.onnx_sha256 == sha256_of(version_dir / "model.onnx")
        assert record.package == "tensorrt_rtx" and record.version == find_installed().version
        assert record.compute_capabilities == ["8.0", "8.6", "8.9", "12.0"]
        assert len(record.profiles) == num_profiles
        assert {path.name for path in version_dir.iterdir()} == {"manifest.json", "model.onnx", "model.plan"}
        manifest = read_manifest(version_dir)
        assert manifest["precision"] == "fp16" and list(manifest["engines"]) == ["model.plan"]
        config = configs[f"digits_{stage}"]
        assert config.backend == "tensorrt"
        profiles = [list(group.profile) for group in config.instance_group]
        assert profiles == ([["0", "1"] if num_profiles == 2 else []])


def test_plans_have_the_tensors_and_shapes_of_their_configs(plan_repository: Path) -> None:
    configs = read_configs(plan_repository)
    for stage in ("rpn", "header"):
        version_dir = plan_repository / f"digits_{stage}" / "1"
        record = read_plan_record(version_dir)
        assert record
        check_config(describe(version_dir), from_json(record.profiles), configs[f"digits_{stage}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.input.add(name="more"), "digits_header: the plan has .* its config .*'more'"),
        (
            lambda config: setattr(config.input[0], "data_type", DataType.TYPE_FP32),
            r"roialigned_feature is TYPE_FP16 \[-1, 64, 7, 7\] in the plan, but its config declares TYPE_FP32",
        ),
        (lambda config: config.input[0].dims.__setitem__(1, 65), r"declares TYPE_FP16 \[-1, 65, 7, 7\]"),
        (lambda config: setattr(config, "max_batch_size", 9), "takes batches up to 8, but its config says 9"),
    ],
)
def test_a_plan_unlike_its_config(
    plan_repository: Path, change: Callable[[ModelConfig], None], message: str
) -> None:
    version_dir = plan_repository / "digits_header" / "1"
    config = read_configs(plan_repository)["digits_header"]
    change(config)
    record = read_plan_record(version_dir)
    assert record
    with pytest.raises(RepositoryError, match=message):
        check_config(describe(version_dir), from_json(record.profiles), config)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (
            "g (float[n, 4] x) => (float[2, 2] y) { [to_square] y = Reshape <allowzero=0> (x, shape) }",
            "cannot build .*to_square",
        ),
        (
            "g (float[n, 4] x) => (float[n, 4] y) { [odd_one] y = Celux (x) }",
            r"cannot parse .*'odd_one' \(Celux\)",
        ),
    ],
)
def test_a_failed_build_names_the_layer_and_leaves_the_plan_that_was_there(
    tmp_path: Path, graph: str, message: str
) -> None:
    parsed = onnx.parser.parse_graph(graph)
    parsed.initializer.append(onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [2, 2]))
    opset = onnx.helper.make_opsetid("", 20)
    (tmp_path / "model.onnx").write_bytes(
        onnx.helper.make_model(parsed, opset_imports=[opset], ir_version=10).SerializeToString()
    )
    (tmp_path / "model.plan").write_bytes(b"older")
    write_manifest(tmp_path, {"engines": {}})
    profile = {"x": ShapeRange((2, 4), (2, 4), (8, 4))}
    with pytest.raises(RepositoryError, match=message):
        build_plan(tmp_path, [profile], PlanOptions(compute_capabilities=("8.9",)))
    assert (tmp_path / "model.plan").read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", "model.onnx", "model.plan"}


def test_profiles_of_other_inputs_and_unknown_gpus_are_refused(editable: Path) -> None:
    version_dir = editable / "digits_header" / "1"
    profile = {"x": ShapeRange((1,), (1,), (1,))}
    with pytest.raises(
        RepositoryError,
        match=r"profile 0 is for the inputs \['x'\], but the graph's inputs are \['proposals', ",
    ):
        build_plan(version_dir, [profile], PlanOptions(compute_capabilities=("8.9",)))
    with pytest.raises(RepositoryError, match=r"cannot build for compute capability 9\.0: it knows SM.*SM89"):
        build_plan(version_dir, [profile], PlanOptions(compute_capabilities=("9.0",)))


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU to build for")
def test_without_a_gpu_there_is_nothing_to_build_for(
    digits: Detector, editable: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    version_dir = editable / "digits_header" / "1"
    with pytest.raises(
        RepositoryError, match="a plan is built on the GPU that runs it, and none can be used"
    ):
        build_plan(version_dir, [], PlanOptions())
    assert serve([str(editable), "--models", "digits", "--rebuild"]) == 1
    assert "rcnn-serve --rebuild: a plan is built on the GPU that runs it" in capfd.readouterr().err


def test_only_what_cannot_run_is_built_again(editable: Path) -> None:
    lines: list[str] = []
    assert not rebuild_plans(editable, ["digits"], "8.9", lines.append)
    assert lines == ["digits_header: the plan can run here", "digits_rpn: the plan can run here"]

    header, rpn = editable / "digits_header" / "1", editable / "digits_rpn" / "1"
    (header / "model.plan").write_bytes((header / "model.plan").read_bytes()[:1000])
    untouched = (rpn / "model.plan").stat().st_mtime_ns
    lines.clear()
    assert list(rebuild_plans(editable, ["digits"], "8.9", lines.append)) == ["digits_header"]
    assert "is 1000 bytes and was" in lines[0]
    record = read_plan_record(header)
    assert record and record.compute_capabilities == ["8.9"] and len(record.profiles) == 1
    check_files(header, record)
    assert (rpn / "model.plan").stat().st_mtime_ns == untouched

    (header / "model.plan").unlink()
    (header / "model.onnx").rename(header / "model.other")
    with pytest.raises(
        RepositoryError, match=r"there is no .*model\.plan\. But there is no .*model\.onnx to build"
    ):
        rebuild_plans(editable, ["digits_header"], "8.9", lines.append)


def test_a_plan_for_another_gpu_or_tensorrt_is_built_again(editable: Path) -> None:
    header = editable / "digits_header" / "1"
    record = read_plan_record(header)
    assert record
    write_plan_record(header, dataclasses.replace(record, version="1.0.0.1"))
    lines: list[str] = []
    assert list(rebuild_plans(editable, ["digits"], "8.9", lines.append)) == ["digits_header"]
    assert "was built by tensorrt_rtx 1.0.0.1, and this is tensorrt_rtx" in lines[0]
    assert not rebuild_plans(editable, ["digits_fused"], "8.9", lines.append)
    assert list(rebuild_plans(editable, ["digits_header"], "7.5", lines.append)) == ["digits_header"]
    record = read_plan_record(header)
    assert record and record.compute_capabilities == ["7.5"]


def test_the_runner_refuses_before_tensorrt_sees_the_plan(editable: Path) -> None:
    folder = editable / "digits_header" / "1"
    record = read_plan_record(folder)
    assert record
    with pytest.raises(RepositoryError, match=r"model\.plan runs on an NVIDIA GPU only, and this is a CPU"):
        load_engine(folder)
    write_plan_record(folder, dataclasses.replace(record, package="tensorrt", version="10.13.3.9"))
    with pytest.raises(
        RepositoryError, match=r"built by tensorrt 10\.13\.3\.9, and this is tensorrt_rtx .*--rebuild`"
    ):
        load_engine(folder)
    write_plan_record(folder, record)
    (folder / "model.onnx").write_bytes(b"newer")
    with pytest.raises(RepositoryError, match=r"is stale: .*--rebuild`"):
        load_engine(folder)


@pytest.mark.skipif(HAS_GPU, reason="with a GPU TensorRT loads the plan")
@pytest.mark.parametrize(
    ("size", "message"),
    [(None, "runs on an NVIDIA GPU only"), (1000, "is 1000 bytes and was .* --models digits --rebuild`")],
)
def test_the_server_says_why_it_does_not_load_a_plan(editable: Path, size: int | None, message: str) -> None:
    plan = editable / "digits_header" / "1" / "model.plan"
    plan.write_bytes(plan.read_bytes()[:size])
    with (
        pytest.raises(ServerError, match=f"model digits_header failed to load: (.|\n)*{message}"),
        running_server(editable, ["digits_header"]),
    ):
        pass


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU to verify on")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--engine", "tensorrt"],
            "these engines run on an NVIDIA GPU, and none can be used here .*--engine onnx",
        ),
        (["--bisect"], "--bisect needs the tensorrt package, which is not installed here"),
    ],
)
def test_verify_needs_a_gpu_for_plans(
    plan_repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert (
        verify.main(["--repository", str(plan_repository), "--name", "digits", *arguments]) == verify.UNUSABLE
    )
    assert re.match(f"rcnn-verify: {message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        pytest.param((), "none can be used here", marks=pytest.mark.skipif(HAS_GPU, reason="there is a GPU")),
        (("9.0",), r"cannot build for compute capability 9\.0"),
    ],
)
def test_nothing_is_exported_for_a_gpu_that_cannot_be_built_for(
    digits: Detector, tmp_path: Path, capabilities: tuple[str, ...], message: str
) -> None:
    options = EngineOptions(TENSORRT, plan=PlanOptions(compute_capabilities=capabilities))
    with pytest.raises(RepositoryError, match=message):
        export_repository(digits, tmp_path, "digits", options=options)
    assert list(tmp_path.iterdir()) == []
