"""An epoch: training steps, then the evaluation of the averaged weights. Both can be stopped and resumed."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import Sample
from rcnn_export.train.coco_eval import detect, score
from rcnn_export.train.loop import Training
from rcnn_export.train.processes import Processes
from rcnn_export.train.progress import Progress

CHECKPOINT_INTERVAL_S = 600.0


def train_epoch(
    training: Training,
    batches: Iterable[list[Sample]],
    checkpoint: Path,
    stop_requested: Callable[[], bool],
    processes: Processes,
    console: Console,
) -> bool:
    """Trains to the end of the epoch, with periodic checkpoints; False if stopped earlier, which also saves a checkpoint.

    Raises:
        ExportError: a picture cannot be read, the loss is not finite, or a checkpoint cannot be written.
    """
    settings = training.settings
    epoch, first_step = divmod(training.step, settings.steps_per_epoch)
    saved_s = step_s = time.monotonic()
    name = f"epoch {epoch + 1}/{settings.epochs}: step"
    with Progress(console, name, settings.steps_per_epoch, first_step) as progress:
        for batch in readable(batches):
            learning_rate = training.learning_rate()
            loss, stopping = processes.mean(training.train_step(batch), stop_requested())
            now_s = time.monotonic()
            training.epoch_losses.append(loss)
            training.epoch_s, step_s = training.epoch_s + now_s - step_s, now_s
            progress.advance(f"loss {loss:.3f}  learning rate {learning_rate:.1e}")
            is_epoch_end = training.step % settings.steps_per_epoch == 0
            if not is_epoch_end and (stopping or now_s - saved_s > CHECKPOINT_INTERVAL_S):
                if processes.rank == 0:
                    training.save(checkpoint)
                saved_s = now_s
                if stopping:
                    return False
    return True


def evaluate(
    training: Training,
    numbers: Sequence[int],
    batches: Iterable[list[Sample]],
    stop_requested: Callable[[], bool],
    processes: Processes,
    console: Console,
) -> dict[str, Any] | None:
    """Evaluates the averaged weights; None if stopped before the end.

    Args:
        numbers: the numbers of this process's pictures in the whole dataset.
        batches: these pictures, one per batch.

    Returns:
        ``coco_eval.score`` of all processes' pictures, and the epoch's mean ``loss`` and ``pictures_per_s``.

    Raises:
        ExportError: a picture cannot be read.
    """
    processes.share_buffers(training.averaged_model)
    with Progress(console, "evaluating picture", len(numbers)) as progress:

        def samples() -> Iterator[tuple[int, Sample]]:
            for number, (sample,) in zip(numbers, readable(batches), strict=True):
                if stop_requested():
                    return
                yield number, sample
                progress.advance()

        detected = detect(training.averaged_model, samples())
    (stopping,) = processes.mean(stop_requested())
    if stopping:
        return None
    losses = training.epoch_losses
    return {
        "loss": sum(losses) / len(losses),
        "pictures_per_s": len(losses) * training.settings.batch_size / training.epoch_s,
        **score(processes.gather(detected), training.settings.class_names, training.kind),
    }


def readable(batches: Iterable[list[Sample]]) -> Iterator[list[Sample]]:
    """Yields the batches.

    Raises:
        ExportError: a picture cannot be read, or a process that loads pictures died.
    """
    try:
        yield from batches
    except ExportError as error:
        # An error from a loader's process has that process's traceback before its message.
        raise ExportError(str(error).rpartition("ExportError: ")[2].strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ExportError(
            f"a process that loads pictures died ({str(error).splitlines()[0]}): give fewer --workers, or more "
            "memory, or more room in /dev/shm"
        ) from error
