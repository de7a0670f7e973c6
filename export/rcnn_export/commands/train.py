"""``rcnn-train``: trains or fine-tunes a detector on a COCO-format dataset or on the sample digits."""

import argparse
import os
import sys
from typing import Any

import torch
from rcnn_client.tools.coco_score import Kind
from rich.console import Console
from torch.utils.data import DataLoader, Subset

from rcnn_export.commands.choices import DEFAULT_MODEL
from rcnn_export.commands.train_arguments import parse
from rcnn_export.detector.weights import DEFAULT, RANDOM
from rcnn_export.digits.dataset import DigitsDataset
from rcnn_export.errors import INTERRUPTED, ExportError
from rcnn_export.train.coco_dataset import CocoDataset, Sample, check_same_keypoints, read, used_names
from rcnn_export.train.coco_eval import PREFIXES
from rcnn_export.train.epochs import evaluate, train_epoch
from rcnn_export.train.loop import EpochBatches, Settings, Training
from rcnn_export.train.mirror import describe_mirroring
from rcnn_export.train.processes import Processes
from rcnn_export.train.results import write_results
from rcnn_export.train.signals import StopSignals
from rcnn_export.train.start import initial_detector, kind_built_by

SAMPLE_MODEL = "rcnn_export.digits.detector:digits_detector"

METRICS: dict[Kind, str] = {"bbox": "AP", "segm": "mask AP", "keypoints": "keypoint AP"}

Data = CocoDataset | DigitsDataset


def main(argv: list[str] | None = None) -> int:
    """Runs ``rcnn-train``; 0 when done, 1 after an error, 130 when stopped with a checkpoint written."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    try:
        arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        processes = Processes(arguments.device)
        try:
            return _train(arguments, argv, processes)
        finally:
            processes.close()
    except ExportError as error:
        print(f"rcnn-train: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print("rcnn-train: the GPU's memory is full: give a smaller --batch-size", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rcnn-train: stopped before the first step", file=sys.stderr)
        return INTERRUPTED


def _train(arguments: argparse.Namespace, argv: list[str], processes: Processes) -> int:
    # 1. Data, then a detector with as many classes as the data has.
    console = Console(quiet=processes.rank > 0, soft_wrap=True)
    model = arguments.model or (SAMPLE_MODEL if arguments.sample else DEFAULT_MODEL)
    train_data, val_data = _load_data(arguments, kind_built_by(model), console)
    settings = _settings(arguments, model, train_data, processes)

    def report(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    training = Training(initial_detector(settings, report), settings, processes)
    if settings.horizontal_flip and settings.keypoint_names:
        report(describe_mirroring(settings.keypoint_names))
    chosen_by = f"{PREFIXES[training.kind]}ap"

    # 2. The folder: a new run's, or that of the run to continue.
    checkpoint = arguments.out / "checkpoint.pt"
    if arguments.resume:
        training.load(checkpoint)
        console.print(f"resuming at step {training.step} of {settings.num_steps}")
        if len(training.history) == settings.epochs:
            console.print(f"all {settings.epochs} epochs are done: give more --epochs to train longer")
    elif checkpoint.exists():
        raise ExportError(
            f"{checkpoint} belongs to an earlier run: add --resume (with more --epochs, if it has ended), or give "
            "another --out"
        )
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot make the folder --out {arguments.out}: {error.strerror}") from error

    # 3. Epochs, each ended by an evaluation.
    order = EpochBatches(settings, processes.rank)
    val_numbers = range(processes.rank, len(val_data), processes.count)
    train_batches = _loader(train_data, arguments, batch_sampler=order)
    val_batches = _loader(Subset(val_data, val_numbers), arguments, batch_size=1)
    with StopSignals(console, ends_at_second=processes.count == 1) as stop:
        run = (stop.requested, processes, console)
        while len(training.history) < settings.epochs:
            order.first_step = training.step
            is_trained = training.step == (len(training.history) + 1) * settings.steps_per_epoch
            if not is_trained and not train_epoch(training, train_batches, checkpoint, *run):
                console.print(f"stopped at step {training.step} of {settings.num_steps}: --resume continues")
                return INTERRUPTED
            metrics = evaluate(training, val_numbers, val_batches, *run)
            if metrics is None:
                if processes.rank == 0:
                    training.save(checkpoint)
                console.print("stopped during the evaluation: --resume starts with it")
                return INTERRUPTED
            is_best = all(metrics[chosen_by] > earlier[chosen_by] for earlier in training.history)
            training.finish_epoch(metrics)
            if processes.rank == 0:
                if is_best:
                    write_results(arguments.out, training, argv)
                training.save(checkpoint)
            console.print(
                f"epoch {len(training.history)}/{settings.epochs}  loss {metrics['loss']:.3f}  "
                f"{_precision(metrics)}  "
                f"{metrics['pictures_per_s']:.3g} pictures/s{'  best so far' if is_best else ''}"
            )
    best = max(metrics[chosen_by] for metrics in training.history)
    lists = "labels.txt, keypoints.txt" if settings.keypoint_names else "labels.txt"
    name = METRICS[training.kind]
    console.print(f"best {name}50:95 {best:.4f}: {arguments.out}/weights.safetensors, metrics.json, {lists}")
    return 0


def _precision(metrics: dict[str, Any]) -> str:
    keys = {METRICS[kind]: f"{prefix}ap" for kind, prefix in PREFIXES.items()}
    return "  ".join(
        f"{name}50:95 {metrics[key]:.4f}  {name}50 {metrics[f'{key}50']:.4f}  {name}75 {metrics[f'{key}75']:.4f}"
        for name, key in keys.items()
        if key in metrics
    )


def _load_data(arguments: argparse.Namespace, kind: Kind, console: Console) -> tuple[Data, Data]:
    if arguments.sample:
        train_size, val_size = arguments.sample_pictures
        return DigitsDataset("train", train_size, kind), DigitsDataset("held-out", val_size, kind)
    files = [read(annotations, kind) for annotations, _ in (arguments.train, arguments.val)]
    for file in files:
        console.print(file.summary, markup=False)
    class_names = used_names(*files)
    check_same_keypoints(*files)
    train_data, val_data = (
        CocoDataset(file, pictures, class_names)
        for file, (_, pictures) in zip(files, (arguments.train, arguments.val), strict=True)
    )
    return train_data, val_data


def _settings(arguments: argparse.Namespace, model: str, train_data: Data, processes: Processes) -> Settings:
    weights = arguments.weights or (RANDOM if arguments.sample or ":" in model else DEFAULT)
    if arguments.batch_size % processes.count or arguments.batch_size > len(train_data):
        raise ExportError(
            f"--batch-size {arguments.batch_size} does not fit {len(train_data)} pictures and "
            f"{processes.count} processes: give a multiple of the processes, at most the pictures"
        )
    return Settings(
        model=model,
        weights=weights,
        class_names=train_data.class_names,
        num_pictures=len(train_data),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate or (1e-3 if weights == RANDOM else 1e-4),
        weight_decay=arguments.weight_decay,
        horizontal_flip=arguments.horizontal_flip,
        amp=processes.device.type == "cuda" and not arguments.no_amp,
        seed=arguments.seed,
        num_processes=processes.count,
        weights_key=arguments.weights_key,
        batch_norm_eps=arguments.batch_norm_eps,
        keypoint_names=train_data.keypoint_names or None,
    )


def _loader(data: Any, arguments: argparse.Namespace, **batching: Any) -> DataLoader[Sample]:
    return DataLoader(
        data,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
        collate_fn=list,
        pin_memory=arguments.device.startswith("cuda"),
        worker_init_fn=_leave_process_group,
        **batching,
    )


def _leave_process_group(_worker: int) -> None:
    # Ctrl-C is sent to the whole process group; a loader's worker must live until its parent's step has ended.
    os.setsid()


if __name__ == "__main__":
    raise SystemExit(main())
