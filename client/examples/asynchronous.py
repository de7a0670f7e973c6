"""Detects in several pictures at the same time with asyncio, and waits at most two seconds for each.

python client/examples/asynchronous.py photo.jpg other.jpg --url localhost:8001
"""

import argparse
import asyncio
from collections.abc import Sequence

from rcnn_client import RcnnError, aio


async def detect_all(url: str, model: str, pictures: Sequence[str]) -> None:
    """Print what is in each picture, or why there is no answer."""
    async with aio.Detector(url, model) as detector:
        calls = (detector.detect(picture, score_thresh=0.5, timeout_s=2) for picture in pictures)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    for picture, answer in zip(pictures, answers, strict=True):
        if isinstance(answer, RcnnError):
            print(f"{picture}: no answer: {answer}")
        elif isinstance(answer, BaseException):
            raise answer
        else:
            print(f"{picture}: {', '.join(answer.class_names) or 'nothing'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Detect in several pictures at the same time.")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--url", default="localhost:8001")
    parser.add_argument("--model", default="faster_rcnn")
    arguments = parser.parse_args()
    asyncio.run(detect_all(arguments.url, arguments.model, arguments.pictures))
