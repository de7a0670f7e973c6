"""The blocks of the READMEs, pasted into a shell one after another, as a new user would do.

A block is marked ``sh`` or ``python``. A second word names something that the block needs and that is not available
here; such a block is only parsed. The servers use the ports 8000 to 8002, as the READMEs say.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from rcnn_client.tools.perf_analyzer import PerfAnalyzerError, find_perf_analyzer
from rcnn_export.detector.load import Detector
from rcnn_export.repository.write import export_repository
from torchvision.models.detection import fasterrcnn_resnet50_fpn

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_PICTURES = ROOT / "export" / "samples" / "pictures"
READMES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
)
FENCED = re.compile(r"^```(\w*)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {None, "docker", "gpu", "kubernetes", "labelstudio", "tensorrt", "ui"}


class Block(NamedTuple):
    """A fenced block: its language, ``sh`` or ``python``, what it needs that is not available here, and its text."""

    language: str
    needs: str | None
    text: str


def blocks_of(readme: Path) -> list[Block]:
    blocks = (
        Block(language, needs or None, text) for language, needs, text in FENCED.findall(readme.read_text())
    )
    return [block for block in blocks if block.language in ("sh", "python")]


def script_of(readme: Path, substitutions: dict[str, str]) -> str:
    """The script that a user would paste; blocks of Python are piped into ``python``."""
    lines = ["set -em"]
    for block in blocks_of(readme):
        if block.needs is None:
            is_python = block.language == "python"
            lines.append(f"python - <<'PASTED'\n{block.text}PASTED" if is_python else block.text)
    script = "\n".join(lines)
    for text, replacement in substitutions.items():
        assert text in script, f"{readme} no longer has {text!r}"
        script = script.replace(text, replacement)
    return script


def paste(script: str, folder: Path, timeout_s: float, **environment: str) -> str:
    """Run the script in a shell without the environment of the tests, and stop the processes that it leaves running."""
    for port in (8000, 8001, 8002):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                pytest.skip(f"something listens on port {port} of this machine")
    own = Path(sys.prefix) / "bin"
    path = os.pathsep.join(
        entry for entry in os.environ["PATH"].split(os.pathsep) if entry and Path(entry) != own
    )
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "VIRTUAL_ENV"))
    }
    # When the shell exits, this stops the processes in the background.
    trap = "trap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT\n"
    shell = subprocess.run(
        ["bash", "-c", trap + script],
        cwd=folder,
        env=kept | {"PATH": path} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert shell.returncode == 0, shell.stdout
    return shell.stdout


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of an untrained R50-FPN with the classes of the sample, ten digits."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "my.pth"
    torch.save(
        fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=11).state_dict(), path
    )
    return path


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_names_its_language_and_can_be_parsed(readme: Path) -> None:
    for language, needs, text in FENCED.findall(readme.read_text()):
        assert language in ("", "sh", "python", "pycon"), f"{readme} has a block in {language}"
        assert (needs or None) in NEEDS, f"{readme} has a block that needs {needs}"
        if language == "python":
            compile(text, readme, "exec")
        elif language == "sh":
            subprocess.run(["bash", "-n", "-c", text.replace("<this repository>", "URL")], check=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("ports")
def test_the_first_page_ends_with_a_picture_drawn_by_the_users_own_detector(
    weights: Path, tmp_path: Path
) -> None:
    script = script_of(
        ROOT / "README.md",
        {
            "<this repository>": str(ROOT),
            "make demo\n": f"make demo PYTHON={sys.executable}\ncp {weights} export/samples/labels.txt . && "
            f"cp {SAMPLE_PICTURES / 'digits_held-out_001117.jpg'} photo.jpg\n",
        },
    )
    paste(script, tmp_path, 1200)
    clone = tmp_path / "rcnn-triton"
    with Image.open(clone / "photo.jpg") as photo, Image.open(clone / "boxed.png") as boxed:
        assert boxed.size == photo.size
    assert (clone / "demo.png").exists()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("ports")
def test_a_serving_host_needs_this_package_alone_and_answers_every_client(
    digits: Detector, tmp_path: Path
) -> None:
    export_repository(digits, tmp_path / "model_repository", "my_detector")
    shutil.copytree(ROOT / "python_backend", tmp_path / "python_backend")
    shutil.copy(SAMPLE_PICTURES / "digits_held-out_001117.jpg", tmp_path / "photo.jpg")
    shutil.copytree(SAMPLE_PICTURES, tmp_path / "photos")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = f"pip install --quiet --disable-pip-version-check -c {ROOT / 'constraints.txt'} "
    script = script_of(
        ROOT / "python_backend" / "README.md",
        {
            "pip install ": pip,
            "--concurrency-range 1:16:5": "--concurrency-range 2 --measurement-interval 1000 -s 999",
        },
    )
    path = os.pathsep.join([str(tmp_path / "venv" / "bin"), os.environ["PATH"]])
    (tmp_path / "libraries").mkdir()
    try:
        libraries = find_perf_analyzer(tmp_path / "libraries").library_path
    except PerfAnalyzerError as error:
        pytest.skip(str(error))
    out = paste(script, tmp_path, 600, PATH=path, LD_LIBRARY_PATH=libraries)
    starts = [found.start() for found in re.finditer(re.escape('{"model_name"'), out)]
    answers = [json.JSONDecoder().raw_decode(out, start)[0] for start in starts]
    columns = [{output["name"]: output["data"] for output in answer["outputs"]} for answer in answers]
    assert [column["num_detections"] for column in columns] == [[5], [14]], out
    assert "Throughput: " in out


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("ports")
def test_export_verify_and_train_as_their_page_says(weights: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        images, annotations = [], []
        for number in range(2):
            Image.new("RGB", (400, 300), (60 * number, 90, 30)).save(tmp_path / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 400, "height": 300})
            box = {"id": number, "image_id": number, "category_id": 1, "bbox": [50, 60, 200, 150]}
            annotations.append(box | {"area": 30000, "iscrowd": 0})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    shutil.copy(weights, tmp_path)
    shutil.copy(ROOT / "export" / "samples" / "labels.txt", tmp_path)
    shutil.copytree(SAMPLE_PICTURES, tmp_path / "pictures")
    published = tmp_path / "torch" / "hub" / "checkpoints" / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
    published.parent.mkdir(parents=True)
    torch.save(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), published)
    script = script_of(ROOT / "export" / "README.md", {"--epochs 12": "--epochs 1 --batch-size 2"})
    path = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]])
    paste(script, tmp_path, 1200, TORCH_HOME=str(tmp_path / "torch"), PATH=path)
    assert (tmp_path / "model_repository" / "my_detector" / "config.pbtxt").exists()
    assert (tmp_path / "model_repository" / "mine" / "config.pbtxt").exists()


def test_the_messages_of_the_troubleshooting_page_exist() -> None:
    sources = "".join(
        path.read_text()
        for package in ("client/rcnn_client", "python_backend/rcnn_backend", "export/rcnn_export")
        for path in (ROOT / package).rglob("*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)  # messages may be split into several strings
    rows = re.findall(r"^\| `([^`]+)`", (ROOT / "TROUBLESHOOTING.md").read_text(), re.MULTILINE)
    assert rows
    for message in rows:
        assert message in joined, message
