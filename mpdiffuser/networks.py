"""The networks of a pipeline, compiled for engines. Each is compiled once, at its first use."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mpdiffuser.engines import Run, compiled, require, resolved
from mpdiffuser.errors import InputError
from mpdiffuser.plan_graph import PlanEngine
from mpdiffuser.record import PICTURE
from mpdiffuser.sampler import SamplerConfig

if TYPE_CHECKING:
    from mpdiffuser.pipeline import MPDiffuserPipeline


class Networks:
    """The compiled networks of a pipeline. If a model is replaced, its networks are compiled again."""

    def __init__(self, pipeline: "MPDiffuserPipeline") -> None:
        self.pipeline = pipeline
        self._made: dict[Any, tuple[Sequence[Any], Any]] = {}

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

        return self._cached((name, engine), [model], compile_network)

    def at_first_call(self, name: str, engine: str) -> Run:
        """Return a function that compiles the network when it is called first.

        Raises:
            InputError: if the engine is not installed.
        """
        require(engine)
        found: list[Run] = []

        def call(*inputs: torch.Tensor) -> torch.Tensor:
            if not found:
                found.append(self.compiled(name, engine))
            return found[0](*inputs)

        return call

    def plan_engine(self, config: SamplerConfig, goal: bool) -> PlanEngine:
        """Return the engine that computes the plan of one latent as one graph; arguments as `PlanEngine`."""
        models = [*self.pipeline.components.values(), *self.pipeline.other_models().values()]
        return self._cached(("plan", repr(config), goal), models, lambda: PlanEngine(self.pipeline, config, goal))

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
        if key not in self._made or any(one is not other for one, other in zip(self._made[key][0], models)):
            self._made[key] = (models, make())
        return self._made[key][1]
