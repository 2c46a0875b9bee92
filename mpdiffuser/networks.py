"""The networks of a pipeline, compiled for engines. Each is compiled once."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mpdiffuser.engines import Run, compiled, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.plan_graph import PlanEngine
from mpdiffuser.record import PICTURE
from mpdiffuser.sampler import SamplerConfig

if TYPE_CHECKING:
    from mpdiffuser.pipeline import MPDiffuserPipeline


KEPT = 32  # compiled networks and graphs of one pipeline


def changes(module: torch.nn.Module) -> tuple[int, ...]:
    """Return how often each weight was changed in place."""
    return tuple(0 if weight.is_inference() else weight._version for weight in module.parameters())


class Networks:
    """The compiled networks of a pipeline. If a model is replaced, its networks are compiled again.

    Weights that are changed in place are noticed by the next sampler or controller that is made (`look`).

    Compile in the main thread, before other threads compute: torch's exporter changes the whole process.
    """

    def __init__(self, pipeline: "MPDiffuserPipeline") -> None:
        self.pipeline = pipeline
        self._made: dict[Any, tuple[Sequence[Any], Any]] = {}
        self._lock = threading.RLock()
        self.look()

    def look(self) -> None:
        """Note how often the weights were changed in place."""
        modules = [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        self._changes = [changes(module) for module in [*modules, *self.pipeline.other_models().values()]]

    def examples(self) -> dict[str, tuple[Any, tuple[torch.Tensor, ...]]]:
        """Return name -> (network, example inputs) of all networks that engines compute.

        These are the planner, the dynamics model and the encoder's frame_net, if the pipeline has them. If its cameras
        differ in size, there is a frame_net_HEIGHTxWIDTH for each size. The inputs are those of the forward pass, a
        batch of 2.
        """
        denoisers = {name: getattr(self.pipeline, name) for name in ("planner", "dynamics")}
        found = {name: (model, model.example()) for name, model in denoisers.items() if model is not None}
        if self.pipeline.sees_pixels:
            for name, shape in self._frame_nets().items():
                found[name] = (self.pipeline.encoder.frame_net, (torch.zeros(2, *shape, dtype=torch.uint8),))
        return found

    def compiled(self, name: str, engine: str) -> Run:
        """Return one of `examples`, compiled for an engine; of a denoiser, its `denoise`.

        Raises:
            InputError: as `mpdiffuser.engines.compiled`.
        """
        model, example = self.examples()[name]

        def compile_network() -> Run:
            if name.startswith("frame_net"):
                return compiled(model, engine, example)
            x, levels, *rest = example
            modulation = model.modulation(levels, x[:, 0, : model.config["latent_dim"]], *rest).detach()
            return compiled(model, engine, (x, modulation), "denoise")

        return self._cached((name, engine, changes(model)), [model], compile_network)

    def plan_engine(self, config: SamplerConfig, goal: bool) -> PlanEngine:
        """Return the engine that computes the plan of one latent as one graph; arguments as `PlanEngine`."""
        pipeline = self.pipeline
        fitted = [part for part in (pipeline.latents, pipeline.actions, pipeline.condition) if part is not None]
        models = [*fitted, pipeline.planner, pipeline.dynamics, pipeline.ranker, *pipeline.other_models().values()]
        places = [tensor.data_ptr() for part in fitted for tensor in part.parameters()]
        same = replace(config, chunk=1, delay=0, deadline_ms=0, safe_action=())  # a graph does not depend on these
        key = "plan", repr(same), goal, repr(pipeline.action_map), *self._changes, *places
        return self._cached(key, models, lambda: PlanEngine(pipeline, config, goal))

    def frame_encoder(self, engine: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the encoder's `features`, compiled for the engine if the encoder takes pixels.

        The encoder runs in eager torch if the engine does not support its network. It always computes in float32, since
        the sampler keeps the present latent fixed and so cannot correct an error in it.
        """
        encoder = self.pipeline.encoder
        if not self.pipeline.sees_pixels:
            return encoder.features
        engine = resolved(engine, self.pipeline.device).removesuffix("_bf16")
        try:
            nets = {shape: self.compiled(name, engine) for name, shape in self._frame_nets().items()}
        except InputError:
            return encoder.features
        return lambda frames: nets[tuple(frames.shape[1:])](frames)

    def _frame_nets(self) -> dict[str, tuple[int, ...]]:
        """Return the name of the `frame_net` for each shape of pictures; engines compile it for one shape."""
        record = self.pipeline.record
        assert record is not None
        shapes = {record.observations[name].shape for name in record.names(PICTURE)}
        if len(shapes) == 1:
            return {"frame_net": shapes.pop()}
        return {f"frame_net_{shape[0]}x{shape[1]}": shape for shape in sorted(shapes)}

    def _cached(self, key: Any, models: Sequence[Any], make: Callable[[], Any]) -> Any:
        """Return the result of `make`. It is kept for the key as long as the models are the same objects."""
        with self._lock:
            if key not in self._made or any(one is not other for one, other in zip(self._made[key][0], models)):
                self._made[key] = (models, make())
                while len(self._made) > KEPT:
                    del self._made[next(iter(self._made))]
            return self._made[key][1]
