"""The averages of the weights in training: the moving average (EMA), and the one with the lowest held-out loss."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import nn

KEEP = ("best", "last")


class Averages:
    """The EMA of a model's trained parameters, and a copy of the EMA with the lowest held-out loss.

    Args:
        model: the model in training.
        decay: of the EMA.
        keep: which weights are for users, "best" or "last" (`TrainConfig.keep`).
    """

    def __init__(self, model: nn.Module, decay: float, keep: str) -> None:
        self.named = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.parameters, self.keep = list(self.named.values()), keep
        self.ema = EMAModel(self.parameters, decay=decay, use_ema_warmup=True, power=0.75, foreach=True)
        self.best: list[torch.Tensor] = []
        self.best_step, self.best_loss, self.validated_step = 0, math.inf, 0

    @property
    def kept(self) -> list[torch.Tensor]:
        """The weights for users. Before the first finite held-out loss these are the EMA."""
        return self.best if self.keep == "best" and self.best else self.ema.shadow_params

    @property
    def steps_since_best(self) -> int:
        """Number of steps from the lowest held-out loss to the last one."""
        return self.validated_step - self.best_step

    def update(self) -> None:
        """Move the EMA towards the weights, after an optimiser step."""
        self.ema.step(self.parameters)

    def validated(self, step: int, loss: float) -> None:
        """Record the held-out loss of the EMA at a step."""
        self.validated_step = step
        if loss < self.best_loss:
            self.best_step, self.best_loss = step, loss
            self.best = [weight.clone() for weight in self.ema.shadow_params]

    @torch.no_grad()
    def set(self, weights: Sequence[torch.Tensor]) -> None:
        """Copy weights into the model."""
        for parameter, weight in zip(self.parameters, weights):
            parameter.copy_(weight)

    @contextmanager
    def in_place(self, weights: Sequence[torch.Tensor]) -> Iterator[None]:
        """Set the model's weights for a while, then restore those in training."""
        raw = [parameter.detach().clone() for parameter in self.parameters]
        self.set(weights)
        try:
            yield
        finally:
            self.set(raw)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the averages into a checkpoint's folder. Return the rest of the state, for `load`."""
        for name, weights in (("ema", self.ema.shadow_params), ("best", self.best)):
            named = {key: weight.cpu().contiguous() for key, weight in zip(self.named, weights)}
            save_file(named, folder / f"{name}.safetensors")
        best_loss = self.best_loss if self.best else None
        steps = {"ema_step": self.ema.optimization_step, "best_step": self.best_step}
        return {**steps, "best_loss": best_loss, "validated_step": self.validated_step}

    def load(self, folder: Path, device: str, state: dict[str, Any]) -> None:
        """Read what `save` wrote. `state` has its result."""
        ema, best = (load_file(folder / f"{name}.safetensors", device) for name in ("ema", "best"))
        self.ema.shadow_params = [ema[name] for name in self.named]
        self.best = [best[name] for name in self.named] if best else []
        self.ema.optimization_step = state["ema_step"]
        self.best_step, self.validated_step = state["best_step"], state["validated_step"]
        self.best_loss = math.inf if state["best_loss"] is None else state["best_loss"]
