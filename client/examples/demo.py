"""Serves a detector on this machine, sends it a picture and draws what it found.

python client/examples/demo.py --repository model_repository --model digits photo.jpg --out boxed.png
"""

import argparse
from pathlib import Path

from rcnn_backend.server.local_server import running_server
from rcnn_client.tools.detect_cli import main as rcnn_detect


def main() -> int:
    """Run rcnn-serve and rcnn-detect together; returns the exit code of rcnn-detect."""
    parser = argparse.ArgumentParser(description="Serve a detector, send it a picture, then stop the server.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="faster_rcnn")
    parser.add_argument("--out", type=Path, default=Path("demo.png"))
    arguments = parser.parse_args()
    print(f"Starting tritonserver on {arguments.repository} ...", flush=True)
    with running_server(arguments.repository, models=[arguments.model]) as server:
        print(f"Serving {arguments.model} at grpc {server.grpc_url}", flush=True)
        exit_code = rcnn_detect(
            [
                "--url",
                server.grpc_url,
                "--model",
                arguments.model,
                "--out",
                str(arguments.out),
                str(arguments.picture),
            ]
        )
    print(f"Stopped the server. What it found is drawn in {arguments.out}")
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
