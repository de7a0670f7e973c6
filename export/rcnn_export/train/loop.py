"""The optimisation: seeded steps, a moving average of the weights, checkpoints.

The seed and the number of a step decide all its random choices: the order of the pictures, the
flips, the RoIs that torchvision samples. So a checkpoint needs no state of a random generator, and on a CPU a resumed
run ends with the same weights as an uninterrupted one.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from torchvision.models.detection import FasterRCNN

from rcnn_export.detector.batch_norm import batch_norm_eps_of
from rcnn_export.detector.weights_file import BATCH_NORM_EPS
from rcnn_export.errors import ExportError
from rcnn_export.train.coco_dataset import Sample
from rcnn_export.train.coco_eval import kind_of
from rcnn_export.train.files import replacing
from rcnn_export.train.mirror import counterparts, mirrored
from rcnn_export.train.processes import Processes

WARM_UP_STEPS = 500  # at most, and at most a tenth of the run
EMA_DECAY = 0.998
MAX_GRADIENT_NORM = 10.0
TRAINED_ON = ("boxes", "labels", "masks", "keypoints")


@dataclass(frozen=True)
class Settings:
    """The settings that decide a run's final weights; a resumed run must have the same, except for ``epochs``.

    ``batch_size`` is the number of pictures per step, over all ``num_processes``.
    """

    model: str
    weights: str
    class_names: list[str]
    num_pictures: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    horizontal_flip: bool
    amp: bool
    seed: int
    num_processes: int
    weights_key: str | None = None
    batch_norm_eps: float | None = None
    keypoint_names: list[str] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.num_pictures // self.batch_size

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class EpochBatches(Sampler[list[int]]):
    """One process's share of an epoch's batches, in a seeded order; the last incomplete batch is dropped.

    ``first_step`` is the step at which the next iteration starts, counted from the start of training.
    """

    def __init__(self, settings: Settings, rank: int) -> None:
        self.first_step = 0
        self._settings = settings
        self._rank = rank

    def __len__(self) -> int:
        return self._settings.steps_per_epoch - self.first_step % self._settings.steps_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        settings = self._settings
        epoch, first_batch = divmod(self.first_step, settings.steps_per_epoch)
        order = torch.randperm(
            settings.num_pictures, generator=torch.Generator().manual_seed(_seed(settings.seed, epoch, 0))
        )
        for batch in order.split(settings.batch_size)[first_batch : settings.steps_per_epoch]:
            yield batch[self._rank :: settings.num_processes].tolist()


class Training:
    """A detector being trained, with everything that a checkpoint contains.

    Attributes:
        averaged_model: the moving average of the weights, in eval mode, which is evaluated and saved.
        kind: what it finds in addition to boxes; ``bbox`` if nothing.
        step: how many steps are done.
        history: the metrics after each epoch.
        epoch_losses, epoch_s: the losses of the steps since the latest evaluation, and how long they took.
    """

    def __init__(self, model: FasterRCNN, settings: Settings, processes: Processes) -> None:
        self.settings = settings
        self.kind = kind_of(model)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.epoch_losses: list[float] = []
        self.epoch_s = 0.0
        self._device = processes.device
        self._rank = processes.rank
        names = settings.keypoint_names or []
        self._mirrored_places = counterparts(names) if settings.horizontal_flip else []
        self._model = model.to(self._device)
        # The statistics in given weights are frozen, because small batches would make them worse.
        is_fine_tuning = settings.weights != "random"
        self._frozen_norms = [
            module
            for module in model.modules()
            if is_fine_tuning and isinstance(module, nn.BatchNorm2d) and _has_statistics(module)
        ]
        for norm in self._frozen_norms:
            norm.requires_grad_(False)
        self.averaged_model = copy.deepcopy(self._model).eval()
        # Every process uses the statistics of its own pictures, so only gradients are exchanged.
        self._losses: nn.Module = (
            DistributedDataParallel(self._model, broadcast_buffers=False)
            if processes.count > 1
            else self._model
        )
        self._optimizer = torch.optim.AdamW(_parameter_groups(model, settings.weight_decay))
        self._scaler = GradScaler(self._device.type, enabled=settings.amp)

    def train_step(self, batch: list[Sample]) -> float:
        """Takes one optimiser step and returns the sum of torchvision's losses over ``batch``.

        Raises:
            ExportError: the loss is not finite.
        """
        torch.manual_seed(_seed(self.settings.seed, self.step, self._rank))
        self._model.train()
        for norm in self._frozen_norms:
            norm.eval()
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate()
        pictures, targets = self._to_device(batch)
        with torch.autocast(self._device.type, torch.float16, enabled=self.settings.amp):
            losses = self._losses(pictures, targets)
            loss = torch.stack(list(losses.values())).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            parts = ", ".join(f"{name} {float(part):.3g}" for name, part in losses.items())
            raise ExportError(
                f"the loss became {value} at step {self.step} ({parts}): start again with a lower "
                "--learning-rate or with --no-amp"
            )
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average()
        self.step += 1
        return value

    def finish_epoch(self, metrics: dict[str, Any]) -> None:
        """Adds the metrics of the epoch that has been evaluated."""
        self.history.append(metrics)
        self.epoch_losses, self.epoch_s = [], 0.0

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to a hundredth at the last step.

        A run that is resumed with more epochs follows the longer curve from there on. For example, after 12 epochs of 24
        it continues at half of the highest rate.
        """
        warm_up = max(min(WARM_UP_STEPS, self.settings.num_steps // 10), 1)
        if self.step < warm_up:
            return self.settings.learning_rate * (self.step + 1) / warm_up
        progress = (self.step - warm_up) / max(self.settings.num_steps - warm_up, 1)
        return self.settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)

    def save(self, path: Path) -> None:
        """Writes a checkpoint and moves it into place in one step, so that a killed run keeps the previous one.

        Raises:
            ExportError: it cannot be written, for example because the disk is full; the previous one is kept.
        """
        state = {
            "settings": asdict(self.settings),
            "model": self._model.state_dict(),
            "averaged_model": self.averaged_model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self.step,
            "history": self.history,
            "epoch_losses": self.epoch_losses,
            "epoch_s": self.epoch_s,
            BATCH_NORM_EPS: batch_norm_eps_of(self._model),
        }
        with replacing(path) as (partial,), partial.open("wb") as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Continues from a checkpoint, which may have been made for another number of epochs.

        Raises:
            ExportError: there is none, it is damaged, it was made with other settings, or it has done more epochs.
        """
        if not path.is_file():
            raise ExportError(f"there is no checkpoint {path} to resume from: leave out --resume to start")
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            made_with = state["settings"]
            num_done = len(state["history"])
        except Exception as error:  # torch.load raises many kinds for a file that is not its own
            raise ExportError(f"cannot read the checkpoint {path}: {error}") from error
        differing = [
            f"{name} was {made_with.get(name)!r}, now {value!r}"
            for name, value in asdict(self.settings).items()
            if name != "epochs" and made_with.get(name) != value
        ]
        if differing:
            raise ExportError(
                f"the checkpoint {path} was made with other settings ({'; '.join(differing)}): "
                "resume with the same (only --epochs may change), or start a new run in another --out"
            )
        if num_done > self.settings.epochs:
            raise ExportError(
                f"the checkpoint {path} has done {num_done} epochs already: give a larger --epochs than "
                f"{num_done} to train longer"
            )
        self._model.load_state_dict(state["model"])
        self.averaged_model.load_state_dict(state["averaged_model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.history = state["history"]
        self.epoch_losses, self.epoch_s = state.get("epoch_losses", []), state.get("epoch_s", 0.0)

    def _to_device(self, batch: list[Sample]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        pictures, targets = [], []
        for pixels, target in batch:
            picture = pixels.to(self._device, non_blocking=True).float() / 255
            is_object = ~target["iscrowd"]  # a crowd's box bounds no single object
            objects = {name: target[name][is_object] for name in TRAINED_ON if name in target}
            if self.settings.horizontal_flip and torch.rand(()) < 0.5:
                picture, objects = mirrored(picture, objects, self._mirrored_places)
            pictures.append(picture)
            targets.append({name: values.to(self._device) for name, values in objects.items()})
        return pictures, targets

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential moving average of weights and statistics; its decay grows over the first steps."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        averaged, current = self.averaged_model.state_dict(), self._model.state_dict()
        floating = [name for name, tensor in current.items() if tensor.is_floating_point()]
        torch._foreach_lerp_(
            [averaged[name] for name in floating], [current[name] for name in floating], 1 - decay
        )


def _has_statistics(norm: nn.BatchNorm2d) -> bool:
    """Whether it has trained statistics; a newly initialised head has none."""
    return norm.running_mean is not None and bool((norm.running_mean != 0).any())


def _seed(seed: int, number: int, rank: int) -> int:
    return (seed * 1_000_003 + number) * 1024 + rank


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and normalisation scales are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
