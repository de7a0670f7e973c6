"""rcnn-eval and rcnn-perf on the sample detector in the real tritonserver."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rcnn_backend.server.local_server import RunningServer, running_server
from rcnn_client.tools import eval_cli, perf_cli
from rcnn_client.tools.perf_analyzer import PerfAnalyzerError, find_perf_analyzer
from rcnn_export.detector import load as torch_detector
from rcnn_export.digits.dataset import write_coco
from rcnn_export.train.coco_dataset import CocoDataset
from rcnn_export.train.coco_eval import Detected, detect, score

pytestmark = pytest.mark.xdist_group("client")

# Picture 21 is left out: it has two boxes of equal score, and rounding decides which one suppresses the other.
PICTURES = [index for index in range(61) if index != 21]
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium")  # no held-out digit is large


@pytest.fixture(scope="module")
def server(digits_repository: Path) -> Iterator[RunningServer]:
    with running_server(digits_repository, models=["digits"]) as running:
        yield running


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The annotation file of held-out pictures, which are in the same folder."""
    return write_coco(tmp_path_factory.mktemp("held-out"), "held-out", PICTURES)


@pytest.fixture
def perf_analyzer_runs(tmp_path: Path) -> None:
    try:
        find_perf_analyzer(tmp_path)
    except PerfAnalyzerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def in_training(digits: torch_detector.Detector, annotations: Path) -> tuple[Detected, list[str]]:
    """The detections of torchvision in an evaluation of rcnn-train; image ids are positions."""
    data = CocoDataset(annotations, annotations.parent)
    samples = ((position, data[position]) for position in range(len(data)))
    return detect(digits.model, samples), data.class_names


@pytest.fixture(scope="module")
def served(server: RunningServer, annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of rcnn-eval."""
    out = tmp_path_factory.mktemp("rcnn-eval")
    arguments = [str(annotations), str(annotations.parent), "--url", server.grpc_url, "--model", "digits"]
    assert eval_cli.main([*arguments, "--out", str(out)]) == 0
    return out


def test_scores_equal_pycocotools_on_torchvisions_own_results(
    in_training: tuple[Detected, list[str]], served: Path, annotations: Path
) -> None:
    (ours,) = json.loads((served / "scores.json").read_text())
    truth = COCO(str(annotations))
    truth.dataset["info"] = {}  # loadRes needs it
    image_ids = truth.getImgIds()  # in the order of the file
    results = [{**record, "image_id": image_ids[record["image_id"]]} for record in in_training[0].found]
    found = truth.loadRes(results)
    expected = COCOeval(truth, found, "bbox")
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    assert expected.stats[0] > 0.7
    for metric, value in zip(METRICS, expected.stats, strict=False):
        assert ours[metric] == pytest.approx(value, abs=0.001), metric
    assert len(json.loads((served / "results.json").read_text())) == pytest.approx(
        len(found.dataset["annotations"]), rel=0.01
    )


def test_rcnn_train_and_rcnn_eval_measure_the_same(
    in_training: tuple[Detected, list[str]], served: Path
) -> None:
    detected, class_names = in_training
    trained = score([detected], class_names)
    (ours,) = json.loads((served / "scores.json").read_text())
    for metric in ("ap", "ap50", "ap75"):
        assert ours[metric] == pytest.approx(trained[metric], abs=1e-6), metric
    by_class = {name: scores["ap"] for name, scores in ours["classes"].items()}
    assert by_class == pytest.approx(trained["ap_per_class"], abs=1e-6)


def test_a_server_against_itself_differs_in_nothing(
    server: RunningServer, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(annotations), str(annotations.parent), "--url", server.grpc_url, "--model", "digits"]
    assert eval_cli.main([*arguments, "--against", "digits", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"boxes differ in 0 of {len(PICTURES)} pictures" in out
    first, second = json.loads((tmp_path / "scores.json").read_text())
    assert first["ap"] == pytest.approx(second["ap"], abs=0.001)
    assert not list((tmp_path / "differences").iterdir())


@pytest.mark.usefixtures("perf_analyzer_runs")
def test_perf(
    server: RunningServer, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = annotations.parent
    arguments = ["--url", server.grpc_url, "--model", "digits", "--seconds", "3", "--out", str(tmp_path)]
    assert perf_cli.main([str(pictures), *arguments, "--in-flight", "1", "3"]) == 0

    data = json.loads((tmp_path / "input.json").read_text())["data"]
    sent = [base64.b64decode(entry["image"]["b64"]) for entry in data]
    assert [element[4:] for element in sent] == [path.read_bytes() for path in sorted(pictures.glob("*.jpg"))]
    assert all(int.from_bytes(element[:4], "little") == len(element) - 4 for element in sent)

    measured = json.loads((tmp_path / "measurements.json").read_text())
    assert [each["in_flight"] for each in measured] == [1, 3]
    for each in measured:
        latencies = each["latencies"]
        assert 0 < latencies["p50_ms"] <= latencies["p90_ms"] <= latencies["p99_ms"]
        # Little's law: requests in flight = throughput x latency.
        in_flight = latencies["images_per_s"] * latencies["p50_ms"] / 1000
        assert in_flight == pytest.approx(each["in_flight"], rel=0.5)
        assert each["num_failed"] == 0
        assert [step["name"] for step in each["steps"]] == [
            f"digits_{step}" for step in ("preprocess", "rpn", "proposals", "header", "detections")
        ]
        inside_ms = sum(step["queue_ms"] + step["compute_ms"] for step in each["steps"])
        assert inside_ms == pytest.approx(latencies["p50_ms"], rel=0.5)
    with Image.open(tmp_path / "throughput_latency.png") as plot:
        assert plot.size == (900, 600)
    out = capsys.readouterr().out
    assert "images/s" in out and "│ rpn" in out


@pytest.mark.usefixtures("perf_analyzer_runs")
def test_perf_names_a_bad_picture_and_measures_the_others(
    server: RunningServer, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted(annotations.parent.glob("*.jpg"))[:2]:
        shutil.copy(path, pictures)
    (pictures / "broken.jpg").write_bytes(b"no picture")
    arguments = ["--url", server.grpc_url, "--model", "digits", "--seconds", "2", "--in-flight", "1"]
    assert perf_cli.main([str(pictures), *arguments, "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert f"rcnn-perf: {pictures / 'broken.jpg'}: " in err and "not an image of a known format" in err
    assert f"{server.grpc_url}/digits, 2 pictures in turn" in out
    assert json.loads((tmp_path / "measurements.json").read_text())[0]["latencies"]


@pytest.mark.usefixtures("perf_analyzer_runs")
def test_tls_and_a_token(digits_repository: Path, certificates: Path, tmp_path: Path) -> None:
    """rcnn-eval and rcnn-perf with the client's own certificate and a header."""
    flags = ["--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={certificates}/ca.pem"]
    flags += [f"--grpc-server-cert={certificates}/server.pem", f"--grpc-server-key={certificates}/server.key"]
    flags += ["--grpc-restricted-protocol=inference,model-config,statistics:token=secret"]
    annotations = write_coco(tmp_path / "held-out", "held-out", PICTURES[:2])
    with running_server(digits_repository, ["digits"], flags=flags) as server:
        arguments = ["--url", server.grpc_url, "--model", "digits", "--out", str(tmp_path)]
        arguments += ["--tls-ca", f"{certificates}/ca.pem", "--header", "triton-grpc-protocol-token: secret"]
        arguments += ["--tls-cert", f"{certificates}/client.pem", "--tls-key", f"{certificates}/client.key"]
        assert eval_cli.main([str(annotations), str(annotations.parent), *arguments]) == 0
        measured = [*arguments, "--seconds", "2", "--in-flight", "1"]
        assert perf_cli.main([str(annotations.parent), *measured]) == 0
    assert json.loads((tmp_path / "measurements.json").read_text())[0]["latencies"]


@pytest.mark.usefixtures("perf_analyzer_runs")
def test_perf_of_no_model(
    server: RunningServer, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", server.grpc_url, "--model", "none", "--out", str(tmp_path / "out")]
    assert perf_cli.main([str(annotations.parent), *arguments]) == 1
    assert "has no model 'none'" in capsys.readouterr().err
