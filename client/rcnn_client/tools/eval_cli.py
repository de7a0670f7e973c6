"""rcnn-eval: measures COCO average precision of a served detector on annotated pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import DetectorInfo, RcnnError
from .._picture_files import open_picture
from .console import complain, escape_what_cannot_be_encoded, progress_bar
from .differences import difference, draw_side_by_side
from .endpoint import Endpoint
from .eval_arguments import PROG, parse
from .eval_report import as_json, class_table, metrics_table, plot
from .evaluation import Answers, Dataset, ask, read_shapes, score_all

DRAWN_PICTURES = 10
MIN_DIFFERENCE = 0.01  # smaller differences are rounding


def main(argv: Sequence[str] | None = None) -> int:
    """Run rcnn-eval; returns the exit code: 0, or 1 if a picture failed. Wrong usage exits with 2."""
    escape_what_cannot_be_encoded()
    args = parse(argv)
    endpoints = [Endpoint.of(args)]
    if args.against:
        endpoints.append(parse_against(args.against, endpoints[0]))
    try:
        dataset = Dataset.read(args.annotations, args.images)
        args.out.mkdir(parents=True, exist_ok=True)
        infos = [endpoint.info() for endpoint in endpoints]
        annotations, kinds, reasons = read_shapes(dataset.annotations, infos)
        dataset = Dataset(annotations, dataset.pictures)
        print(annotations.summary, flush=True)
        answers = [
            _ask_with_progress(endpoint, info, dataset, args)
            for endpoint, info in zip(endpoints, infos, strict=True)
        ]
    except (RcnnError, ValueError, OSError) as error:
        return complain(PROG, error)
    except KeyboardInterrupt:
        complain(PROG, "interrupted")
        return 130
    failed = {path: reason for each in answers for path, reason in each.failed.items()}
    for path, reason in failed.items():
        complain(PROG, reason if reason.startswith(str(path)) else f"{path}: {reason}")

    image_ids, scores = score_all(dataset, answers, kinds)
    if not image_ids:
        return complain(PROG, f"none of the {len(dataset.pictures)} pictures was answered")
    names = [str(endpoint) for endpoint in endpoints]
    console = Console(highlight=False)
    for which, name in zip(("first", "second"), names, strict=False):
        print(f"{which}: {name}" if len(names) == 2 else name)
    for kind, of_kind in scores.items():
        console.print(metrics_table(of_kind, kind))
        console.print(class_table(of_kind, kind))
    for reason in reasons:
        print(reason)
    left_out = f"; left out because they failed: {len(failed)}" if failed else ""
    print(f"scored on {len(image_ids)} of {len(dataset.pictures)} pictures{left_out}")

    for kind, of_kind in scores.items():
        plot(names, of_kind, args.out / f"precision_recall{'' if kind == 'bbox' else f'_{kind}'}.png")
    numbers = [
        as_json(endpoint.url, endpoint.model, {kind: of_kind[index] for kind, of_kind in scores.items()})
        for index, endpoint in enumerate(endpoints)
    ]
    _write_json(args.out / "scores.json", numbers)
    for each, file_name in zip(answers, ("results.json", "results_against.json"), strict=False):
        _write_json(args.out / file_name, each.records(set(each.detections)))
    if len(answers) == 2:
        _draw_differences(dataset, answers[0], answers[1], args.out / "differences")
    print(f"plot, scores and results are in {args.out}")
    return 1 if failed else 0


def parse_against(text: str, endpoint: Endpoint) -> Endpoint:
    """Parse HOST:PORT/MODEL, HOST:PORT or MODEL; what is missing is taken from `endpoint`."""
    url, slash, model = text.rpartition("/")
    if not slash and ":" in text:
        url, model = text, endpoint.model
    return replace(endpoint, url=url or endpoint.url, model=model)


def _ask_with_progress(
    endpoint: Endpoint, info: DetectorInfo, dataset: Dataset, args: argparse.Namespace
) -> Answers:
    with progress_bar() as progress:
        task = progress.add_task(str(endpoint), total=len(dataset.pictures))
        return ask(
            endpoint,
            info,
            dataset,
            score_thresh=args.score_thresh,
            in_flight=args.in_flight,
            advance=lambda: progress.advance(task),
        )


def _draw_differences(dataset: Dataset, first: Answers, second: Answers, folder: Path) -> None:
    """Draw the pictures whose boxes differ most, the largest difference first."""
    compared = []
    for picture in dataset.pictures:
        if picture.image_id in first.detections and picture.image_id in second.detections:
            pair = first.detections[picture.image_id], second.detections[picture.image_id]
            compared.append((difference(*pair), picture, pair))
    differing = [entry for entry in compared if entry[0].total >= MIN_DIFFERENCE]
    differing.sort(key=lambda entry: -entry[0].total)
    print(f"boxes differ in {len(differing)} of {len(compared)} pictures")
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("[0-9][0-9]_*.png"):
        stale.unlink()
    for rank, (how, picture, pair) in enumerate(differing[:DRAWN_PICTURES], start=1):
        titles = [f"{which}: {each.endpoint}" for which, each in (("first", first), ("second", second))]
        try:
            with open_picture(picture.path) as image:
                panels = list(zip(titles, pair, strict=True))
                drawing = draw_side_by_side(image, panels, f"{picture.path.name}   {how}")
            drawing.save(folder / f"{rank:02d}_{picture.path.stem}.png")
        except Exception as error:  # Pillow raises many kinds
            complain(PROG, f"{picture.path}: not drawn: {error}")
        print(f"{rank:3}. {picture.path.name}: {how}")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    sys.exit(main())
