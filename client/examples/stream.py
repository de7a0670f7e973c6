"""Detects in every picture of a folder as fast as the server answers, and prints a line of JSON for each.

python client/examples/stream.py photos --url localhost:8001 > detections.jsonl
"""

import argparse
import json
import sys
from pathlib import Path

from rcnn_client import Detector


def main() -> int:
    """Returns 0, or 1 if a picture failed; the reason is printed on stderr."""
    parser = argparse.ArgumentParser(description="Detect in every picture of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", default="localhost:8001")
    parser.add_argument("--model", default="faster_rcnn")
    arguments = parser.parse_args()
    failed = 0
    with Detector(arguments.url, arguments.model) as detector:
        for result in detector.detect_stream(sorted(arguments.folder.iterdir()), score_thresh=0.5):
            if result.error:
                failed += 1
                print(result.error, file=sys.stderr)
                continue
            found = [detection._asdict() for detection in result.detections]
            print(json.dumps({"file": result.image.name, "detections": found}))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
