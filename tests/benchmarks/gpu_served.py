"""Measures the served models and the peer with perf_analyzer, over gRPC with JPEGs."""

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tritonclient.grpc as triton
from gpu_in_process import check_counts
from gpu_report import FUSED, PEER, Served, name_of
from rcnn_backend.contract.configs import read_config
from rcnn_backend.server.local_server import running_server
from rcnn_backend.server.mps import CONTROL as mps_control
from rcnn_client.tools.perf_analyzer import PerfAnalyzerError, find_perf_analyzer, write_input
from rcnn_export.detector.load import Detector

HERE = Path(__file__).resolve().parent
PEER_MODEL = "torchvision_peer"


class Way(NamedTuple):
    """A way to serve a detector: the model's name, in which ``{}`` is the detector's, and two of rcnn-serve's options."""

    model: str
    mps: str
    fused: str = "off"


WAYS = {
    PEER: Way(PEER_MODEL, mps="off"),
    "ensemble": Way("{}", mps="off"),
    FUSED: Way("{}_fused", mps="off"),
    "ensemble-mps": Way("{}", mps="on"),
    "fused-mps": Way("{}_fused", mps="on"),
    "default": Way("{}", mps="auto", fused="auto"),
}


def measure_served(
    repository: Path,
    detector: Detector,
    name: str,
    jpegs: Sequence[bytes],
    ways: Sequence[str],
    detections: Sequence[int],
    clients: Sequence[int],
    seconds: float,
) -> list[Served]:
    """Measures each way, on a separate server, with each number of detections and of clients.

    Ways with MPS are skipped if the machine has no MPS. Requests limit the detections by ``detections_per_img``.

    Raises:
        ValueError: a picture has fewer detections than asked for.
    """
    add_peer(repository, detector, name)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        links, data = folder / "links", folder / "input.json"
        links.mkdir()
        analyzer = find_perf_analyzer(links)
        for index, jpeg in enumerate(jpegs):
            (folder / f"{index}.jpg").write_bytes(jpeg)
        write_input(sorted(folder.glob("*.jpg")), data)
        for label in ways:
            way = WAYS[label]
            if way.mps == "on" and not shutil.which(mps_control):
                continue
            model = way.model.format(name)
            with running_server(repository, [model], mps=way.mps, fused=way.fused) as server:
                for count in detections:
                    parameters = {"detections_per_img": count}
                    check_counts(label, ask_counts(server.grpc_url, model, jpegs, parameters), count)
                    for num_clients in clients:
                        load = server.grpc_url, model, data, num_clients
                        with contextlib.suppress(
                            PerfAnalyzerError
                        ):  # the speed is not stable yet: this only warms the server up
                            analyzer.measure(*load, seconds / 2, parameters)
                        found = analyzer.measure(*load, seconds, parameters)
                        speed = found.images_per_s, found.p50_ms, found.p99_ms
                        rows.append(Served(name_of(detector), count, label, num_clients, *speed))
    return rows


def ask_counts(url: str, model: str, jpegs: Sequence[bytes], parameters: dict[str, int]) -> list[int]:
    """How many detections the model returns for each picture."""
    image = triton.InferInput("image", [len(jpegs), 1], "BYTES")
    image.set_data_from_numpy(np.array([[jpeg] for jpeg in jpegs], np.object_))
    with triton.InferenceServerClient(url) as client:
        answer = client.infer(model, [image], parameters=parameters, client_timeout=120)
    return [int(number) for number in answer.as_numpy("num_detections")[:, 0]]


def add_peer(repository: Path, detector: Detector, name: str) -> None:
    """Adds the peer of a detector to the repository. It has the same outputs as the exported detector ``name``."""
    folder = repository / PEER_MODEL
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "peer", folder)
    shutil.copyfile(HERE / "unpasted.py", folder / "1" / "unpasted.py")
    with (folder / "config.pbtxt").open("a") as config:
        for output in read_config(repository / name)["output"]:
            dims = ", ".join(str(size) for size in output["dims"])
            config.write(
                f'output {{ name: "{output["name"]}" data_type: {output["data_type"]} dims: [ {dims} ] }}\n'
            )
        for key, value in (("model", detector.model_name), ("weights", detector.weights)):
            config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')
