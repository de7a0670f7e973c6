"""Exports the made-up detector, and compares its angles in process and served with those of its torch modules.

python answers.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from angle_detector import CLASSES, angle_detector
from rcnn_backend.operators.decode import decode_image
from rcnn_backend.pipeline import Pipeline
from rcnn_backend.server.local_server import running_server
from rcnn_export.detector.load import Detector
from rcnn_export.repository.write import export_repository
from rcnn_export.verify.reference import run_reference
from rcnn_export.verify.sample_pictures import sample_pictures


def main(repository: Path) -> None:
    model, pictures = angle_detector(), list(sample_pictures().values())[:3]
    names = ["__background__", *(f"class_{label}" for label in range(1, CLASSES))]
    export_repository(Detector(model, "angles", "random", names), repository, "turned")
    pixels = [decode_image(picture, 10**8) for picture in pictures]
    trace = run_reference(model, pixels)
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
