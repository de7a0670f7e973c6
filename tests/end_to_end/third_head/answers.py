"""Exports the made-up detector and compares its angles, in process and served, with those of its torch modules.

python answers.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from angle_detector import angle_detector
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_export.repository.write import export_repository
from rcnn_export.verify.reference import run_reference
from small_detectors import PICTURES, pixels_of


def main(repository: Path) -> None:
    detector, pictures, pixels = angle_detector(), PICTURES[:3], pixels_of([0, 1, 2])
    export_repository(detector, repository, "turned")
    trace = run_reference(detector.model, pixels)
    expected = [np.arctan2(vectors[:, 0], vectors[:, 1]) for vectors in trace.head_maps]
    assert all(len(angles) for angles in expected)
    found = Pipeline.load(repository, "turned").detect(pixels)
    check(found.num_detections, found.of_head["angles"], expected)
    image = triton.InferInput("image", [len(pictures), 1], "BYTES")
    image.set_data_from_numpy(np.array(pictures, np.object_)[:, None])
    with running_server(repository, ["turned", "turned_fused"]) as server:
        client = triton.InferenceServerClient(server.grpc_url)
        for served in ("turned", "turned_fused"):
            answer = client.infer(served, [image], client_timeout=60)
            check(answer.as_numpy("num_detections"), answer.as_numpy("angles"), expected)


def check(counts: np.ndarray, angles: np.ndarray, expected: list[np.ndarray]) -> None:
    for (count,), row, own in zip(counts, angles, expected, strict=True):
        assert count == len(own)
        np.testing.assert_allclose(row[:count], own, atol=1e-3)
        assert not row[count:].any()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(Path(sys.argv[1]))
