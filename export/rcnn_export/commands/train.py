"""``rcnn-train``: trains or fine-tunes a detector on a COCO-format dataset or on the sample digits."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Subset
from torchvision.models.detection import FasterRCNN

from rcnn_export.detector.load import build_detector, load_detector
from rcnn_export.digits.dataset import DigitsDataset
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import CocoDataset, Sample
from rcnn_export.train.coco_eval import detect, score
from rcnn_export.train.loop import EpochBatches, Settings, Training
from rcnn_export.train.processes import Processes
from rcnn_export.train.results import write_results

SAMPLE_MODEL = "rcnn_export.digits.detector:digits_detector"
DEFAULT_MODEL = "fasterrcnn_resnet50_fpn"
CHECKPOINT_INTERVAL_S = 600.0
INTERRUPTED = 130

Data = CocoDataset | DigitsDataset


def main(argv: list[str] | None = None) -> int:
    """Runs ``rcnn-train``; 0 when done, 1 after an error, 130 when stopped with a checkpoint written."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parse(argv)
    try:
        processes = Processes(arguments.device)
        try:
            return _train(arguments, argv, processes)
        finally:
            processes.close()
    except ExportError as error:
        # An error in a loader's worker arrives with the worker's traceback before its message.
        message = str(error).rpartition("ExportError: ")[2].strip()
        print(f"rcnn-train: {message}", file=sys.stderr)
        return 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rcnn-train",
        description=__doc__,
        epilog="Several GPUs, or several processes a GPU for a light detector: "
        "torchrun --nproc-per-node N -m rcnn_export.commands.train ...",
    )
    files = ("ANNOTATIONS", "PICTURES")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument("--train", nargs=2, type=Path, metavar=files, help="COCO instances file, its folder")
    source.add_argument("--sample", choices=["digits"], help="compose the sample dataset instead")
    data.add_argument("--val", nargs=2, type=Path, metavar=files, help="the same for evaluation")
    data.add_argument("--sample-pictures", type=int, nargs=2, metavar=("TRAIN", "VAL"), default=(12000, 500))
    data.add_argument("--horizontal-flip", action="store_true", help="mirror every second picture")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        help=f"torchvision builder or package.module:function ({DEFAULT_MODEL}; light for --sample)",
    )
    model.add_argument(
        "--weights",
        default="random",
        help="where to start: a torchvision weights name, .pth, .safetensors or random; "
        "the box predictor starts anew if its classes are others",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--out", type=Path, required=True, help="folder for weights, metrics and checkpoint")
    run.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    run.add_argument("--epochs", type=int, default=12)
    run.add_argument("--batch-size", type=int, default=16, help="pictures a step, over all processes (16)")
    run.add_argument("--learning-rate", type=float, help="of AdamW (1e-3 from random weights, else 1e-4)")
    run.add_argument("--weight-decay", type=float, default=0.05)
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--no-amp", action="store_true", help="train in FP32 on a GPU too")
    run.add_argument("--workers", type=int, default=min(len(os.sched_getaffinity(0)), 16), help="a process")
    run.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if bool(arguments.train) != bool(arguments.val):
        parser.error("--train and --val go together; --sample brings its own held-out pictures")
    if min(arguments.epochs, arguments.batch_size, *arguments.sample_pictures) < 1:
        parser.error("--epochs, --batch-size and --sample-pictures start at 1")
    return arguments


def _train(arguments: argparse.Namespace, argv: list[str], processes: Processes) -> int:
    # 1. Data, then a detector with as many classes as the data has.
    console = Console(quiet=processes.rank > 0, soft_wrap=True)
    train_data, val_data = _load_data(arguments, console)
    settings = _settings(arguments, train_data, processes)
    training = Training(_initial_detector(settings), settings, processes)

    # 2. The folder: a new run's, or that of the run to continue.
    checkpoint = arguments.out / "checkpoint.pt"
    if arguments.resume:
        training.load(checkpoint)
        console.print(f"resuming at step {training.step} of {settings.num_steps}")
    elif checkpoint.exists():
        raise ExportError(f"{checkpoint} belongs to an earlier run: add --resume, or give another --out")
    arguments.out.mkdir(parents=True, exist_ok=True)

    # 3. Epochs, each ended by an evaluation.
    order = EpochBatches(settings, processes.rank)
    val_share = Subset(val_data, range(processes.rank, len(val_data), processes.count))
    train_batches = _loader(train_data, arguments, batch_sampler=order)
    val_batches = _loader(val_share, arguments, batch_size=max(settings.batch_size // processes.count, 1))
    with _stop_on_signals() as stop:
        while training.step < settings.num_steps:
            order.first_step = training.step
            metrics = _train_epoch(training, train_batches, checkpoint, stop, processes, console)
            if metrics is None:
                console.print(f"stopped at step {training.step} of {settings.num_steps}: --resume continues")
                return INTERRUPTED
            processes.share_buffers(training.averaged_model)
            with _progress(console) as progress:
                batches = progress.track(val_batches, description="evaluating")
                detected = detect(training.averaged_model, batches)
            metrics |= score(processes.gather(detected), settings.class_names)
            is_best = all(metrics["ap"] > earlier["ap"] for earlier in training.history)
            training.history.append(metrics)
            if processes.rank == 0:
                if is_best:
                    write_results(arguments.out, training, argv)
                training.save(checkpoint)
            console.print(
                f"epoch {len(training.history)}/{settings.epochs}  loss {metrics['loss']:.3f}  "
                f"AP50:95 {metrics['ap']:.4f}  AP50 {metrics['ap50']:.4f}  AP75 {metrics['ap75']:.4f}  "
                f"{metrics['pictures_per_s']:.0f} pictures/s{'  best so far' if is_best else ''}"
            )
    best = max(metrics["ap"] for metrics in training.history)
    console.print(f"best AP50:95 {best:.4f}: {arguments.out}/weights.safetensors, metrics.json, labels.txt")
    return 0


def _load_data(arguments: argparse.Namespace, console: Console) -> tuple[Data, Data]:
    if arguments.sample:
        train_size, val_size = arguments.sample_pictures
        return DigitsDataset("train", train_size), DigitsDataset("held-out", val_size)
    train_data, val_data = CocoDataset(*arguments.train), CocoDataset(*arguments.val)
    if train_data.class_names != val_data.class_names:
        raise ExportError(
            f"{arguments.val[0]} has the categories {val_data.class_names}, but {arguments.train[0]} has "
            f"{train_data.class_names}: give both files the same list"
        )
    for (annotations, _), data in ((arguments.train, train_data), (arguments.val, val_data)):
        skipped = f", {data.num_skipped} empty boxes left out" if data.num_skipped else ""
        console.print(f"{annotations}: {len(data)} pictures, {len(data.class_names)} classes{skipped}")
    return train_data, val_data


def _settings(arguments: argparse.Namespace, train_data: Data, processes: Processes) -> Settings:
    from_scratch = arguments.weights == "random"
    if arguments.batch_size % processes.count or arguments.batch_size > len(train_data):
        raise ExportError(
            f"--batch-size {arguments.batch_size} does not fit {len(train_data)} pictures and "
            f"{processes.count} processes: give a multiple of the processes, at most the pictures"
        )
    return Settings(
        model=arguments.model or (SAMPLE_MODEL if arguments.sample else DEFAULT_MODEL),
        weights=arguments.weights,
        class_names=train_data.class_names,
        num_pictures=len(train_data),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate or (1e-3 if from_scratch else 1e-4),
        weight_decay=arguments.weight_decay,
        horizontal_flip=arguments.horizontal_flip,
        amp=processes.device.type == "cuda" and not arguments.no_amp,
        seed=arguments.seed,
        num_processes=processes.count,
    )


def _initial_detector(settings: Settings) -> FasterRCNN:
    detector = build_detector(settings.model, num_classes=len(settings.class_names) + 1)
    if settings.weights != "random":
        state = load_detector(settings.model, settings.weights).model.state_dict()
        for name, own in detector.state_dict().items():
            if state[name].shape != own.shape:
                if not name.startswith("roi_heads.box_predictor."):
                    raise ExportError(
                        f"the weights {settings.weights} do not fit {len(settings.class_names)} classes: {name} has "
                        f"{list(state[name].shape)} in them and {list(own.shape)} here, and only roi_heads.box_predictor "
                        "can start anew"
                    )
                state[name] = own
        detector.load_state_dict(state)
    return detector


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


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Turns Ctrl-C and SIGTERM into an event, so that a step ends and a checkpoint is written."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_process_group(_worker: int) -> None:
    # Ctrl-C goes to the whole group; a loader's worker must live until its parent's step has ended.
    os.setsid()


def _train_epoch(
    training: Training,
    batches: DataLoader[Sample],
    checkpoint: Path,
    stop: threading.Event,
    processes: Processes,
    console: Console,
) -> dict[str, Any] | None:
    """Trains to the epoch's end and returns its loss and speed; None if asked to stop before."""
    settings = training.settings
    losses: list[float] = []
    started_s = saved_s = time.monotonic()
    with _progress(console) as progress:
        task = progress.add_task("", total=len(batches))
        for batch in batches:
            loss, stopping = processes.mean(training.train_step(batch), stop.is_set())
            losses.append(loss)
            epoch = (training.step - 1) // settings.steps_per_epoch + 1
            progress.update(task, advance=1, description=f"epoch {epoch}/{settings.epochs}  loss {loss:.3f}")
            is_epoch_end = training.step % settings.steps_per_epoch == 0
            if not is_epoch_end and (stopping or time.monotonic() - saved_s > CHECKPOINT_INTERVAL_S):
                if processes.rank == 0:
                    training.save(checkpoint)
                saved_s = time.monotonic()
                if stopping:
                    return None
    return {
        "loss": sum(losses) / len(losses),
        "pictures_per_s": len(losses) * settings.batch_size / (time.monotonic() - started_s),
    }


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # In a log file only the lines after each epoch are of use.
    shown = console if console.is_terminal else Console(quiet=True)
    return Progress(*columns, console=shown, transient=True)


if __name__ == "__main__":
    raise SystemExit(main())
