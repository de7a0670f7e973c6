"""What rcnn-detect, rcnn-eval, rcnn-perf and rcnn-ui have in common: help, version, option names, wrong folders."""

import argparse
import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest
from rcnn_client import DetectOptions, Detector, TLSConfig
from rcnn_client.tools import detect_arguments, eval_arguments, perf_arguments
from rcnn_client.ui import arguments as ui_arguments

ARGUMENTS = {
    "rcnn-detect": detect_arguments,
    "rcnn-eval": eval_arguments,
    "rcnn-perf": perf_arguments,
    "rcnn-ui": ui_arguments,
}
# Packages that take long to import; tritonclient imports numpy and grpc.
SLOW = {"numpy", "grpc", "PIL", "tritonclient", "rich", "matplotlib", "pycocotools", "cv2", "aiohttp"}


def options(command: str) -> list[argparse.Action]:
    return [action for action in ARGUMENTS[command].make_parser()._actions if action.option_strings]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as its entry point does; it prints the modules that it imported to stderr."""
    code = (
        "import sys, rcnn_client.tools as tools; name = sys.argv[1]; sys.argv[:] = sys.argv[1:]\n"
        "try: sys.exit(getattr(tools, name.replace('-', '_'))())\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("command", ARGUMENTS)
def test_help_and_version_import_nothing_slow(command):
    for option in ("--help", "--version"):
        done = run(command, option)
        assert done.returncode == 0
        assert not SLOW & {name.partition(".")[0] for name in done.stderr.split()}
    assert done.stdout == f"{command} {version('rcnn-client')}\n"


@pytest.mark.parametrize("command", ARGUMENTS)
def test_help_fits_80_columns_and_shows_every_default(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = ARGUMENTS[command].make_parser().format_help().splitlines()
    assert max(map(len, lines)) <= 80
    for action in options(command):
        if action.default not in (None, False, [], argparse.SUPPRESS):
            assert "(default: " in action.help
            assert ("%(default)" in action.help) != (action.default == [1, 4, 16])


def test_an_option_has_the_name_that_it_has_in_python():
    taken = DetectOptions.__annotations__.keys() | inspect.signature(Detector.__init__).parameters.keys()
    taken |= inspect.signature(Detector.detect_stream).parameters.keys()
    taken |= inspect.signature(Detector.detect_tiled).parameters.keys()
    taken |= {f"tls_{name}" for name in TLSConfig.__annotations__}
    only_here = {"help", "version", "out", "json", "resume", "coco", "annotations", "against", "seconds"}
    only_here |= {"track", "live"}
    only_here |= {"header"}  # one entry of Python's `headers`
    only_here |= {"host", "port", "token_file", "label_studio", "label_studio_token_file", "picture_host"}
    for command in ARGUMENTS:
        assert {action.dest for action in options(command)} <= taken | only_here


@pytest.mark.parametrize(
    ("command", "arguments"), [("rcnn-perf", []), ("rcnn-eval", ["instances.json"])], ids=["perf", "eval"]
)
def test_a_folder_that_is_missing_or_a_file(command, arguments, tmp_path):
    (tmp_path / "photo.jpg").touch()
    for given, found in (
        (tmp_path / "photos", f"there is no folder {tmp_path}/photos"),
        (tmp_path / "photo.jpg", f"{tmp_path}/photo.jpg is a file"),
    ):
        done = run(command, *arguments, str(given))
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"{command}: error: argument FOLDER: {found}; expected a folder of pictures\n" in done.stderr


def test_an_output_folder_that_is_a_file(tmp_path, capsys):
    from rcnn_client.tools import eval_cli

    (tmp_path / "out").touch()
    (tmp_path / "a.jpg").touch()
    content = (
        '{"images": [{"id": 1, "file_name": "a.jpg", "width": 1, "height": 1}], "categories": [{"id": 1, '
    )
    content += '"name": "cat"}], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]}'
    (tmp_path / "instances.json").write_text(content)
    arguments = [str(tmp_path / "instances.json"), str(tmp_path), "--out", str(tmp_path / "out")]
    assert eval_cli.main(arguments) == 1
    assert capsys.readouterr().err == f"rcnn-eval: {tmp_path}/out: File exists\n"
