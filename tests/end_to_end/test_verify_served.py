"""rcnn-verify on the answers of the real tritonserver, with one picture and with several pictures in a request."""

import re
from pathlib import Path

import pytest
from rcnn_backend.server.local_server import running_server
from rcnn_export.commands import verify
from rcnn_export.verify.reference import ImageDetections

pytestmark = pytest.mark.xdist_group("server")

PICTURES = Path(__file__).resolve().parents[2] / "export" / "samples" / "pictures"


def test_served_answers_are_judged(
    digits_repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--repository", str(digits_repository), "--name", "digits", "--images", str(PICTURES)]
    with running_server(digits_repository, models=["digits"]) as server:
        arguments += ["--server", server.grpc_url, "--batch", "1", "3"]
        assert verify.main(arguments) == verify.HOLDS
        assert re.search(r"^ +served +px +.* yes", capsys.readouterr().out, re.MULTILINE)

        ask_server = verify.ask_server

        def ask_and_lose_one(*question: object) -> list[ImageDetections]:
            first, *others = ask_server(*question)
            shorter = ImageDetections(first.boxes[1:], first.scores[1:], first.labels[1:])
            return [shorter, *others]

        monkeypatch.setattr(verify, "ask_server", ask_and_lose_one)
        assert verify.main(arguments) == verify.DIVERGES
        shown = capsys.readouterr().out
        assert "The first stage that diverges: detections (served)" in shown
        assert "row 0 only in torchvision: dropped without a reason" in shown

        monkeypatch.setattr(verify, "ask_server", ask_server)
        assert verify.main([*arguments, "--batch", "9"]) == verify.UNUSABLE
        assert re.match(r"rcnn-verify: the server .* must be <= 8", capsys.readouterr().err)
