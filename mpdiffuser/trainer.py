"""The training loop of all models.

Every random choice is a pure function of (seed, step): the data order, the noise, the dropped conditions. Each process
samples the random numbers of the whole batch and uses its part. A resumed run therefore gives the same result as an
uninterrupted run. Several processes give the same losses as one process with the same total batch.

    <folder>/log.jsonl                    losses and times
    <folder>/step_00002000/model/         the weights for users (`TrainConfig.keep`)
    <folder>/step_00002000/state/         raw weights, EMA weights, optimiser and step, for a resume
    <folder>/step_00002000/manifest.json  sizes and checksums, which a resume checks
    <folder>/last                         name of the newest complete checkpoint
"""

import json
import math
import re
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from mpdiffuser.averages import KEEP, Averages
from mpdiffuser.console import progress
from mpdiffuser.errors import InputError
from mpdiffuser.files import check_manifest, publish, read_json, write_manifest, write_whole, writing
from mpdiffuser.identity import plain, refuse_other
from mpdiffuser.randomness import data_order, seeded_generator
from mpdiffuser.schedule import NoiseSchedule

# settings that may differ when a run is resumed
MAY_CHANGE = ("skip_bad_steps", "log_every", "checkpoint_every")
MAY_BE_ZERO = ("weight_decay", "warmup", "seed", "ema_decay", "skip_bad_steps", "patience")


class Data(Protocol):
    """Training examples, accessed by index.

    `batch` returns named tensors (B, ...) for indices (B,). `sources` returns the numbers (B,) of the dataset's
    episodes that the examples are from.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]: ...

    def sources(self, indices: torch.Tensor) -> np.ndarray: ...


@dataclass(frozen=True)
class TrainConfig:
    """Training settings of a model.

    Args:
        steps: largest number of optimiser steps.
        batch_size: examples in a step, over all processes.
        learning_rate: of AdamW after `warmup` steps; a cosine then decays it to a tenth.
        weight_decay: of AdamW.
        warmup: number of steps with a linear increase of the learning rate.
        clip: largest norm of the gradient.
        ema_decay: decay of the exponential moving average (EMA) of the weights.
        keep: "best": the result is the EMA weights with the lowest held-out loss; "last": those of the last step.
        patience: with keep="best", the training ends when the held-out loss has had no new minimum for this number of
            steps; 0: it never ends early.
        seed: seed of all random choices.
        log_every, validate_every, checkpoint_every: intervals in steps; the held-out loss is measured at the first and
            the last step too.
        skip_bad_steps: number of steps with a non-finite loss or gradient that are skipped; one more ends the training.

    Raises:
        InputError: for a value that is not allowed.
    """

    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    warmup: int = 100
    clip: float = 1.0
    ema_decay: float = 0.998
    keep: str = "best"
    patience: int = 2000
    seed: int = 0
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 1000
    skip_bad_steps: int = 0

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise InputError(f"train.keep: must be one of {', '.join(KEEP)}, found {self.keep!r}")
        for name, value in asdict(self).items():
            zero = name in MAY_BE_ZERO
            if name != "keep" and (value < 0 or (value == 0 and not zero)):
                raise InputError(f"train.{name}: must be {'at least 0' if zero else 'positive'}, found {value}")


class _Loss(nn.Module):
    """Computes the model's loss in `forward`, so that accelerate can wrap it (mixed precision, several processes)."""

    def __init__(self, model: Any, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.model: Any = model
        self.schedule = schedule

    def forward(self, batch: dict[str, torch.Tensor], random: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.model.loss(batch, random, self.schedule)


class Trainer:
    """Trains a model and writes its checkpoints.

    Args:
        name: of the model, for messages and logs.
        model: a `mpdiffuser.models.base.Model`.
        data, validation: training examples and held-out examples.
        config: the training settings.
        folder: for checkpoints and the log.
        accelerator: of the run.
        schedule: the noise schedule; None: the default.
        identity: further facts that the run depends on, such as the dataset's checksum. The identity of a run also has
            `config` and the model's configuration.

    Raises:
        InputError: if the processes cannot divide the batch evenly, or the accelerator accumulates gradients.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        data: Data,
        validation: Data,
        config: TrainConfig,
        folder: str | Path,
        accelerator: Accelerator,
        schedule: NoiseSchedule | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.model, self.data, self.validation = name, model, data, validation
        self.config, self.folder, self.accelerator = config, Path(folder), accelerator
        self.schedule = schedule or NoiseSchedule()
        train = {key: value for key, value in asdict(config).items() if key not in MAY_CHANGE}
        self.identity = {"train": train, "model": plain(dict(model.config)), **plain(identity or {})}
        processes = accelerator.num_processes
        if config.batch_size % processes:
            raise InputError(f"{name}.batch_size: {config.batch_size} cannot be split among {processes} processes")
        if accelerator.gradient_accumulation_steps != 1:
            raise InputError(
                f"accelerator: gradient_accumulation_steps must be 1, found {accelerator.gradient_accumulation_steps} "
                "(see ACCELERATE_GRADIENT_ACCUMULATION_STEPS in the environment); raise batch_size instead"
            )
        self.share = config.batch_size // processes
        self.model.to(accelerator.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.averages = Averages(model, config.ema_decay, config.keep)
        self.step, self.skipped = 0, 0

    def train(self) -> Any:
        """Train from the start or from the last checkpoint. Return the model in eval mode, with the weights to keep.

        Raises:
            InputError: if the folder has a run of another identity or a damaged checkpoint, or cannot be written. Also
                if more than `skip_bad_steps` steps have a non-finite loss or gradient.
        """
        resumed = self._resume()
        if not self.finished:
            self._loop(resumed)
        elif self.accelerator.is_main_process:
            print(f"{self.name}: trained already, reusing {self.folder}")
        self.averages.set(self.averages.kept)
        return self.model.eval()

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the held-out loss has had no new minimum for `patience` steps."""
        config = self.config
        stale = 0 < config.patience <= self.averages.steps_since_best and config.keep == "best"
        return stale or self.step >= config.steps

    def _loop(self, resumed: bool) -> None:
        config, main = self.config, self.accelerator.is_main_process
        loss_module, self.optimizer = self.accelerator.prepare(_Loss(self.model, self.schedule), self.optimizer)
        self.model.train()
        label = f"{self.name}{' (resumed)' if resumed else ''}"
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb" and main:
                tracker.tracker.define_metric(f"{self.name}/*", step_metric=f"{self.name}/step")
        bar = progress(total=config.steps, initial=self.step, desc=label, disable=not main, unit="step")
        clock = {"data_s": 0.0, "update_s": 0.0, "core_s": 0.0}
        with ThreadPoolExecutor(1) as background:
            upcoming = background.submit(self._batch, self.step)
            while not self.finished:
                values = self._update(loss_module, upcoming, background, clock)
                bar.update()
                if self.step == 1 or self.step % config.log_every == 0 or self.step == config.steps:
                    self._log(values, clock, bar)
                if self.step % config.validate_every == 0 or self.step in (1, config.steps):
                    self._validate(loss_module)
                if self.step % config.checkpoint_every == 0 or self.finished:
                    self._save()
                upcoming = self._next
        bar.close()
        if main and self.step < config.steps:
            print(f"{self.name}: ended at step {self.step}; the held-out loss was lowest at {self.averages.best_step}")

    def _update(
        self, loss_module: nn.Module, upcoming: Future, background: ThreadPoolExecutor, clock: dict[str, float]
    ) -> dict[str, torch.Tensor]:
        """Run one optimiser step. A background thread prepares the next batch."""
        began, began_core = time.perf_counter(), time.thread_time()
        batch, random = (self._to_device(part) for part in upcoming.result())
        self._next = background.submit(self._batch, self.step + 1)
        ready = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        values = loss_module(batch, random)
        self.accelerator.backward(values["loss"])
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.clip)
        finite = self._finite(values["loss"], norm)
        if finite or self.accelerator.scaler is not None:  # the scaler skips a step that is not finite
            self.optimizer.step()
        if finite:
            self.averages.update()
        self.optimizer.zero_grad()
        self.model.after_step()
        self.step += 1
        clock["data_s"] += ready - began
        clock["update_s"] += time.perf_counter() - ready
        clock["core_s"] += time.thread_time() - began_core  # CPU time, which other processes do not increase
        return {**values, "gradient_norm": norm}

    def _finite(self, loss: torch.Tensor, norm: torch.Tensor) -> bool:
        """Whether the loss and the gradient are finite in all processes. All processes get the same result.

        Raises:
            InputError: if they are not finite, and `skip_bad_steps` steps are already skipped.
        """
        accelerator = self.accelerator
        scaled = accelerator.scaler is not None  # fp16 finds its scale through non-finite gradients
        watched = torch.stack([loss.detach().float(), loss.detach().float() if scaled else norm.detach().float()])
        found = accelerator.reduce(watched, "mean").tolist()
        if all(math.isfinite(value) for value in found):
            return True
        self.skipped += 1
        batch = data_order(len(self.data), self.config.seed, self.step * self.config.batch_size, self.config.batch_size)
        words = (
            f"{self.name}: the loss is {found[0]}, its gradient {found[1]} at step {self.step + 1}, on a batch of the "
            f"episodes {np.unique(self.data.sources(batch)).tolist()}"
        )
        if self.skipped > self.config.skip_bad_steps:
            last = self.folder / "last"
            good = self.folder / last.read_text().strip() if last.exists() else "none yet"
            raise InputError(
                f"{words}; last good checkpoint: {good}; lower the learning rate, look at those episodes, or go on "
                f"with skip_bad_steps above {self.config.skip_bad_steps}"
            )
        if accelerator.is_main_process:
            print(f"note: {words}; skipped ({self.skipped} of {self.config.skip_bad_steps})")
        return False

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then a cosine decay to a tenth."""
        config = self.config
        if step < config.warmup:
            return config.learning_rate * (step + 1) / config.warmup
        progress = (step - config.warmup) / max(1, config.steps - config.warmup)
        return config.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)

    def _batch(self, step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return this process's part of the batch of a step, and of its random numbers."""
        config = self.config
        mine = slice(self.accelerator.process_index * self.share, (self.accelerator.process_index + 1) * self.share)
        indices = data_order(len(self.data), config.seed, step * config.batch_size, config.batch_size)[mine]
        random = self.model.draw(config.batch_size, self.schedule, seeded_generator(config.seed, step, 2))
        return self.data.batch(indices), {key: value[mine] for key, value in random.items()}

    def _to_device(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value.to(self.accelerator.device, non_blocking=True) for key, value in tensors.items()}

    def _log(self, values: dict[str, torch.Tensor], clock: dict[str, float], bar: Any) -> None:
        reduced = {key: self.accelerator.reduce(v.detach().float(), "mean").item() for key, v in values.items()}
        since = max(1, self.step % self.config.log_every or self.config.log_every)
        times = {key: value / since for key, value in clock.items()}
        clock.update(dict.fromkeys(clock, 0.0))
        self._write({**reduced, "learning_rate": self.learning_rate(self.step - 1), **times})
        bar.set_postfix(loss=f"{reduced['loss']:.4f}", data_ms=f"{1e3 * times['data_s']:.1f}", refresh=False)

    @torch.no_grad()
    def _validate(self, loss_module: nn.Module) -> None:
        """Log the loss of the EMA weights on up to 8 held-out batches, always the same ones. Keep the best weights."""
        size = min(len(self.validation), self.config.batch_size)
        order = torch.randperm(len(self.validation), generator=seeded_generator(0, 0, 3))
        self.model.eval()
        totals: dict[str, float] = {}
        batches = [order[i : i + size] for i in range(0, min(len(order), 8 * size) - size + 1, size)]
        with self.averages.in_place(self.averages.ema.shadow_params):
            for i, indices in enumerate(batches):
                random = self.model.draw(size, self.schedule, seeded_generator(0, i, 4))
                values = loss_module(self._to_device(self.validation.batch(indices)), self._to_device(random))
                for key, value in values.items():
                    totals[f"validation_{key}"] = totals.get(f"validation_{key}", 0.0) + value.item() / len(batches)
        self.model.train()
        self.averages.validated(self.step, totals["validation_loss"])
        self._write(totals)

    def _write(self, values: dict[str, float]) -> None:
        named = {f"{self.name}/{key}": value for key, value in values.items()}
        for tracker in self.accelerator.trackers:
            if tracker.name == "wandb":  # its own steps only rise, but each model begins at 0
                tracker.log(named | {f"{self.name}/step": self.step})
            else:
                tracker.log(named, step=self.step)
        if self.accelerator.is_main_process:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(self.folder / "log.jsonl", "a") as file:
                    file.write(json.dumps({"step": self.step, **values}) + "\n")

    def _save(self) -> None:
        """Write a checkpoint under a temporary name, rename it, write its name to `last`, and remove older ones."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            final = self.folder / f"step_{self.step:08d}"
            partial = final.with_name(final.name + ".partial")
            with writing(final):
                shutil.rmtree(partial, ignore_errors=True)
                self._write_checkpoint(partial)
                publish(partial, final)
                write_whole(self.folder / "last", final.name)
            self._remove_others(final)
        self.accelerator.wait_for_everyone()

    def _remove_others(self, checkpoint: Path) -> None:
        """Remove all checkpoints but this one, also those that a killed run has half removed."""
        for other in self.folder.glob("step_*"):
            if other != checkpoint:
                shutil.rmtree(other)

    def _write_checkpoint(self, folder: Path) -> None:
        (folder / "state").mkdir(parents=True)
        raw = {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}
        save_file(raw, folder / "state" / "weights.safetensors")
        save_file(_flat(self.optimizer.state_dict()), folder / "state" / "optimizer.safetensors")
        with self.averages.in_place(self.averages.kept):
            self.model.save_pretrained(folder / "model")
        state = {"step": self.step, "skipped": self.skipped, **self.averages.save(folder / "state")}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        (folder / "state" / "trainer.json").write_text(json.dumps({**state, "identity": self.identity}, indent=1))
        write_manifest(folder)

    def _resume(self) -> bool:
        """Load the last checkpoint. Return whether there is one.

        Raises:
            InputError: if the checkpoint has another identity, or is damaged.
        """
        last = self.folder / "last"
        if not last.exists():
            self._trim_log()  # removes the log of a run that was killed before its first checkpoint
            return False
        name = last.read_text(errors="replace").strip()
        if not re.fullmatch(r"step_\d{8}", name):
            raise InputError(f"{last}: must name a checkpoint, such as step_00001000, found {name[:80]!r}")
        checkpoint = self.folder / name
        check_manifest(checkpoint, f"to train anew remove {self.folder}, or choose another output_dir=")
        state = read_json(checkpoint / "state" / "trainer.json")
        refuse_other(self.folder, state["identity"], self.identity)
        device = str(self.accelerator.device)
        self.model.load_state_dict(load_file(checkpoint / "state" / "weights.safetensors", device))
        moments = _nested(load_file(checkpoint / "state" / "optimizer.safetensors", device))
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.averages.load(checkpoint / "state", device, state)
        self.step, self.skipped = state["step"], state["skipped"]
        if self.accelerator.scaler is not None and "scaler" in state:  # absent after a start in another precision
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.accelerator.is_main_process:
            with writing(self.folder):
                self._remove_others(checkpoint)
        self._trim_log()
        return True

    def _trim_log(self) -> None:
        """Remove the log lines of steps after the checkpoint, which run again, and an incomplete last line."""
        log = self.folder / "log.jsonl"
        if self.accelerator.is_main_process and log.exists():
            lines = log.read_text().splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
            with writing(log):
                write_whole(log, "".join(line + "\n" for line in kept))


def _flat(optimizer: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return an optimiser's moments as named tensors for safetensors. The configuration has its settings."""
    moments = optimizer["state"].items()
    return {f"{index}.{key}": value.detach().cpu().clone() for index, of in moments for key, value in of.items()}


def _nested(flat: dict[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """Invert `_flat`."""
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in flat.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = value
    return moments
