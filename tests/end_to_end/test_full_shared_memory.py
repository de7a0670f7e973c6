"""/dev/shm is full while a server runs: only a picture that finds no room gets an error, until there is room again."""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rcnn_client import Detector, RcnnError

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("server")]

CHAOS = Path(__file__).resolve().parents[1] / "chaos"
PICTURE = next((Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures").glob("*.jpg"))


def test_only_a_picture_that_finds_no_room_is_refused(
    digits_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(CHAOS)
    disks = importlib.import_module("own_disks")
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((2500, 2500, 3), np.uint8)).save(buffer, "PNG", compress_level=0)
    large = buffer.getvalue()
    command = [Path(sys.executable).with_name("rcnn-serve"), digits_repository, "--models", "digits"]
    ports = [f"--{protocol}-port=0" for protocol in ("http", "grpc", "metrics")]
    with disks.own_disks(tmp_path / "disk") as folder:
        if not folder.is_mount():
            pytest.skip(disks.MISSING)
        with subprocess.Popen(
            disks.with_own_shared_memory([*command, *ports], folder), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            serving = next(line for line in process.stdout if line.startswith("Serving"))
            url = re.search(r"grpc (\S+?:\d+)", serving)
            assert url
            with Detector(url[1], "digits", retries=0, timeout_s=30) as detector:
                found = len(detector.detect(PICTURE))
                filler = os.open(folder / "shm" / "filler", os.O_CREAT | os.O_WRONLY)
                with contextlib.suppress(OSError):
                    while os.write(filler, bytes(1 << 16)):
                        pass
                for _ in range(2):
                    with pytest.raises(RcnnError, match="Failed to increase the shared memory pool size"):
                        detector.detect(large)
                    assert len(detector.detect(PICTURE)) == found
                os.truncate(filler, 0)
                os.close(filler)
                assert len(detector.detect(large)) == 0
            process.terminate()
            assert process.wait(60) == 0
