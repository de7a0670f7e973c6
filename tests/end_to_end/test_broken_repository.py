"""A detector that cannot be served: at the start, one sentence names the fault and says what to do."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rcnn_backend.server.cli import main

pytestmark = pytest.mark.xdist_group("server")


def cut_engine(repository: Path) -> None:
    engine = repository / "digits_rpn" / "1" / "model.onnx"
    engine.write_bytes(engine.read_bytes()[:5000])


def remove_step(repository: Path) -> None:
    (repository / "digits_proposals" / "1" / "model.py").unlink()


def replace(model: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(repository: Path) -> None:
        config = repository / model / "config.pbtxt"
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("break_it", "fused", "message"),
    [
        (
            cut_engine,
            "off",
            r"digits_rpn failed to load: .*cannot load {engine}: .*Export the detector again",
        ),
        (cut_engine, "auto", r"digits failed to load: .*cannot load {engine}: .*Export the detector again"),
        (
            remove_step,
            "auto",
            r"missing digits_proposals/1/model\.\*; `rcnn-export faster_rcnn --name digits",
        ),
        (
            replace("digits_preprocess", '"384"', '"[384]"'),
            "auto",
            r"digits failed to load: .*'min_size' is \[384\], expected an integer",
        ),
        (
            replace("digits", 'key: "rpn_boxes"', 'key: "boxes_of_rpn"'),
            "off",
            r"digits failed to load: .*tensor rpn_boxes is mapped from non-existing output boxes_of_rpn",
        ),
    ],
    ids=["engine cut short", "and fused", "file missing", "wrong parameter", "wrong wiring"],
)
def test_each_fault_is_reported_at_the_start(
    digits_repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], None],
    fused: str,
    message: str,
) -> None:
    repository = tmp_path / "models"
    shutil.copytree(digits_repository, repository)
    break_it(repository)
    ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
    assert main([str(repository), "--models", "digits", "--fused", fused, *ports]) == 1
    engine = re.escape(str(repository / "digits_rpn" / "1" / "model.onnx"))
    assert re.search(message.replace("{engine}", engine), capsys.readouterr().err)
