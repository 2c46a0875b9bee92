"""The training loop: exact resumption, several processes, and that it learns."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from safetensors.torch import save_file as save

from mpdiffuser.averages import Averages
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.randomness import data_order, seeded_generator
from mpdiffuser.sampler import Sampler, SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import Windows, to_go

SIZES = dict(latent_dim=3, action_dim=2, horizon=8, width=8, multipliers=(1, 2), embedding=16)
WEIGHTS = "state/weights.safetensors"
TWENTY = TrainConfig(
    steps=20, batch_size=8, learning_rate=1e-2, warmup=5, log_every=3, validate_every=7, checkpoint_every=10
)


def windows_of(episodes: Episodes) -> Windows:
    return Windows(
        episodes, to_go(episodes["rewards"], episodes, 0.9)[:, None], 8, Normalizer(3), Normalizer(2), Marginals(1)
    )


class Watched:
    """Data that counts its batches, and can stop the program as a kill would at batch `stop`."""

    def __init__(self, data: Any, stop: int | None = None) -> None:
        self.data, self.stop, self.batches = data, stop, 0

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.batches == self.stop:
            raise KeyboardInterrupt
        self.batches += 1
        return self.data.batch(indices)

    def sources(self, indices: torch.Tensor) -> np.ndarray:
        return self.data.sources(indices)


@pytest.fixture(scope="module")
def parts(make_episodes) -> tuple[Windows, Windows]:
    return windows_of(make_episodes([9, 7, 12])), windows_of(make_episodes([15], seed=1))


def trainer(parts: tuple, folder: Path, config: TrainConfig = TWENTY, kind: type = Dynamics, **options: Any) -> Trainer:
    torch.manual_seed(0)
    settings = {**SIZES, **options.pop("sizes", {})}
    return Trainer("tiny", kind(**settings), *parts, config, folder, Accelerator(cpu=True), **options)


def log_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith("_s")} for line in lines]


def checkpoint(folder: Path) -> Path:
    return folder / (folder / "last").read_text().strip()


def assert_same_run(a: Path, b: Path) -> None:
    """Bit for bit: weights, their average, the optimiser, the step, the log."""
    one, other = checkpoint(a), checkpoint(b)
    assert one.name == other.name
    for file in (
        "state/weights.safetensors",
        "state/optimizer.safetensors",
        "model/diffusion_pytorch_model.safetensors",
    ):
        left, right = load_file(one / file), load_file(other / file)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert (one / "state/trainer.json").read_text() == (other / "state/trainer.json").read_text()
    assert log_of(a) == log_of(b)


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory) -> Path:
    """A run of 20 steps without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    trainer(parts, folder).train()
    return folder


@pytest.mark.parametrize("stop", [4, 15, 19])
def test_a_killed_run_goes_on_bit_for_bit(parts, whole: Path, tmp_path: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer((Watched(parts[0], stop), parts[1]), tmp_path).train()
    assert (tmp_path / "last").exists() == (stop > 10)
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 1')  # a line that was being written
    data = Watched(parts[0])
    trainer((data, parts[1]), tmp_path).train()
    assert data.batches <= 20 - (10 if stop > 10 else 0) + 1
    assert_same_run(whole, tmp_path)


class Heard:
    """A tracker that keeps what it is told; `tracker` is the run of Weights & Biases."""

    def __init__(self, name: str) -> None:
        self.name, self.tracker, self.told = name, self, []

    def define_metric(self, names: str, step_metric: str) -> None:
        self.told.append((names, step_metric))

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.told.append((values, step))


def test_steps_of_weights_and_biases_only_rise(parts, tmp_path: Path) -> None:
    """So it gets none: a step of the second model would be below the last one of the first, and left out."""
    training, wandb, board = trainer(parts, tmp_path), Heard("wandb"), Heard("tensorboard")
    training.accelerator.trackers = [wandb, board]
    training.train()
    assert wandb.told.pop(0) == ("tiny/*", "tiny/step")
    assert all(step is None for _, step in wandb.told) and board.told[-1][1] == 20
    assert [values["tiny/step"] for values, _ in wandb.told] == [step for _, step in board.told]


def test_killed_between_checkpoint_and_pointer(parts, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer((Watched(parts[0], 15), parts[1]), tmp_path).train()
    shutil.copytree(checkpoint(whole), tmp_path / "step_00000020")
    shutil.copytree(checkpoint(whole), tmp_path / "step_00000020.partial")
    trainer(parts, tmp_path).train()
    assert_same_run(whole, tmp_path)
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000020"]


def test_a_removal_that_was_killed_is_finished(parts, whole: Path, tmp_path: Path) -> None:
    """A kill while an old checkpoint is removed leaves a part of it; the next start removes the rest."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "step_00000010" / "state").mkdir(parents=True)
    trainer(parts, tmp_path / "run").train()
    assert_same_run(whole, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("step_*")] == ["step_00000020"]


def test_a_finished_run_is_not_trained_again(parts, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    data = Watched(parts[0], stop=0)
    model = trainer((data, Watched(parts[1], stop=0)), tmp_path / "run").train()
    assert data.batches == 0
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before
    saved = load_file(checkpoint(whole) / "model" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    assert not model.training


def test_train_returns_what_it_saved(parts, whole: Path, tmp_path: Path) -> None:
    model = trainer(parts, tmp_path).train()
    loaded = Dynamics.from_pretrained(checkpoint(whole) / "model")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    raw = load_file(checkpoint(whole) / "state" / "weights.safetensors")
    assert not all(torch.equal(value, raw[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": TrainConfig(**{**TWENTY.__dict__, "learning_rate": 0.5})}, r"train\.learning_rate: 0\.01 .*0\.5"),
        ({"sizes": {"embedding": 8}}, r"model\.embedding: 16 there, 8 now"),
        ({"identity": {"data": "other"}}, r"data: null there, other now"),
    ],
)
def test_another_run_in_the_folder(parts, whole: Path, change: dict[str, Any], words: str) -> None:
    log = (whole / "log.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"other settings.*{words}.*output_dir="):
        trainer(parts, whole, **change).train()
    assert (whole / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "last").write_text("../elsewhere"), r"last: must name a checkpoint, .* found '\.\./elsewhere'"),
        (lambda f: (checkpoint(f) / WEIGHTS).write_bytes(b""), r"state/weights\.safetensors: .* manifest\.json says"),
        (lambda f: (checkpoint(f) / "state" / "trainer.json").unlink(), r"trainer\.json: missing, but"),
        (
            lambda f: (checkpoint(f) / "manifest.json").unlink(),
            r"manifest\.json is missing: half-written, or of an older",
        ),
        (lambda f: shutil.rmtree(checkpoint(f)), r"manifest\.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_never_gone_on_with(parts, whole: Path, tmp_path: Path, spoil: Any, words: str) -> None:
    shutil.copytree(whole, tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(InputError, match=rf"{words}"):
        trainer(parts, tmp_path / "run").train()


def test_a_full_disk_leaves_the_last_good_checkpoint(parts, whole: Path, tmp_path: Path, monkeypatch) -> None:
    full = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))  # noqa: E731
    saved = []
    monkeypatch.setattr("mpdiffuser.trainer.save_file", lambda *x: full() if len(saved) > 1 else saved.append(save(*x)))
    with pytest.raises(InputError, match=r"step_00000020: cannot be written .*No space left.*free some space"):
        trainer(parts, tmp_path).train()
    assert checkpoint(tmp_path).name == "step_00000010"
    monkeypatch.undo()
    trainer(parts, tmp_path).train()
    assert_same_run(whole, tmp_path)


def test_a_checkpoint_holds_no_programs(whole: Path) -> None:
    files = [file for file in whole.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".json", ".jsonl", ".safetensors", ""}
    assert [file.name for file in files if file.suffix == ""] == ["last"]


def test_the_log(parts, whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 3, 6, 9, 12, 15, 18, 20]
    assert [line["step"] for line in lines if "validation_loss" in line] == [1, 7, 14, 20]
    for line in lines:
        if "loss" in line:
            step = line["step"] - 1
            cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 5) / 15)) / 2
            expected = 1e-2 * (step + 1) / 5 if step < 5 else 1e-2 * cosine
            assert line["learning_rate"] == pytest.approx(expected)
            assert {"gradient_norm", "data_s", "update_s"} <= line.keys()


def test_validation_is_of_the_averaged_weights_on_held_out_data(parts, whole: Path) -> None:
    """The last value, again, from the saved model: all held-out windows, with noise drawn as the trainer draws it."""
    model, schedule, validation = Dynamics.from_pretrained(checkpoint(whole) / "model"), NoiseSchedule(), parts[1]
    order = torch.randperm(len(validation), generator=seeded_generator(0, 0, 3))
    losses = []
    for i, indices in enumerate(order.split(8)):
        if len(indices) == 8:
            random = model.draw(8, schedule, seeded_generator(0, i, 4))
            losses.append(model.loss(validation.batch(indices), random, schedule)["loss"].item())
    logged = [line["validation_loss"] for line in log_of(whole) if "validation_loss" in line]
    assert logged[-1] == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_loss_of_the_first_step(parts, whole: Path) -> None:
    """From the untrained weights, on the first batch of the data order."""
    torch.manual_seed(0)
    model = Dynamics(**SIZES)
    run = trainer(parts, whole / "elsewhere")
    batch, random = run._batch(0)
    assert torch.equal(batch["latents"], parts[0].batch(data_order(len(parts[0]), 0, 0, 8))["latents"])
    expected = model.loss(batch, random, NoiseSchedule())["loss"].item()
    assert log_of(whole)[0]["loss"] == pytest.approx(expected, rel=1e-6)


class Spoilt(Watched):
    """Data whose batches `bad` (counted from 0) hold a number that is not finite."""

    def __init__(self, data: Any, bad: set[int], value: float = math.nan) -> None:
        super().__init__(data)
        self.bad, self.value = bad, value

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        number = self.batches
        batch = super().batch(indices)
        return {**batch, "latents": batch["latents"] * self.value} if number in self.bad else batch


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(make_episodes, parts, tmp_path: Path, value: float) -> None:
    """It names the step, the batch's episodes by their numbers in the dataset, and the last good checkpoint."""
    whole = make_episodes([9, 7, 12, 8, 5])
    data = windows_of(whole.select(np.array([1, 3])))
    with pytest.raises(InputError, match=r"tiny: the loss is (nan|inf).* at step 1,.* episodes \[1, 3\];.*none yet"):
        trainer((Spoilt(data, {0}, value), parts[1]), tmp_path / "first").train()
    with pytest.raises(InputError, match=r"at step 14,.* checkpoint: \S+step_00000010;.*skip_bad_steps above 0"):
        trainer((Spoilt(data, {13}, value), parts[1]), tmp_path / "later").train()
    assert checkpoint(tmp_path / "later").name == "step_00000010"


def test_a_bounded_number_of_bad_steps_is_skipped(parts, tmp_path: Path, capsys) -> None:
    """They change nothing; a run that stopped at one goes on with the option; the count outlives a resume."""
    two = TrainConfig(**{**TWENTY.__dict__, "skip_bad_steps": 2})
    trainer((Spoilt(parts[0], {2, 13}), parts[1]), tmp_path / "through", two).train()
    assert capsys.readouterr().out.count("skipped") == 2
    assert all(value.isfinite().all() for value in load_file(checkpoint(tmp_path / "through") / WEIGHTS).values())
    one = TrainConfig(**{**TWENTY.__dict__, "skip_bad_steps": 1})
    with pytest.raises(InputError, match=r"at step 14.*skip_bad_steps above 1"):
        trainer((Spoilt(parts[0], {2, 13}), parts[1]), tmp_path / "stopped", one).train()
    trainer((Spoilt(parts[0], {3}), parts[1]), tmp_path / "stopped", two).train()  # its batches count from step 11
    assert_same_run(tmp_path / "through", tmp_path / "stopped")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, r"train\.steps: must be positive.*found 0"),
        ({"batch_size": -8}, r"train\.batch_size: must be positive.*found -8"),
        ({"learning_rate": 0.0}, r"train\.learning_rate: must be positive.*found 0"),
        ({"weight_decay": -1.0}, r"train\.weight_decay: must be at least 0.*found -1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainConfig(**settings)


TWO_PROCESSES = """
import os, sys
import numpy as np, torch
from accelerate import Accelerator
from mpdiffuser.averages import Averages
from mpdiffuser.episodes import Episodes
from mpdiffuser.models.denoisers import Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.trainer import TrainConfig, Trainer
from mpdiffuser.windows import Windows, to_go

torch.set_num_threads(1)
episodes = Episodes.load(sys.argv[1])
targets = to_go(episodes["rewards"], episodes, 0.9)[:, None]
windows = Windows(episodes, targets, 8, Normalizer(3), Normalizer(2), Marginals(1))
torch.manual_seed(0)
model = Planner(latent_dim=3, action_dim=2, horizon=8, width=8, multipliers=(1, 2), embedding=16)
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == int(sys.argv[3])
if len(sys.argv) > 4:  # dies at its batch of this number
    whole, left = windows.batch, iter(range(int(sys.argv[4])))
    windows.batch = lambda indices: whole(indices) if next(left, None) is not None else os.kill(os.getpid(), 9)
config = TrainConfig(steps=12, batch_size=8, warmup=3, log_every=1, validate_every=6, checkpoint_every=6)
Trainer("tiny", model, windows, windows, config, sys.argv[2], accelerator).train()
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_train_as_one_and_their_number_may_change(make_episodes, tmp_path: Path) -> None:
    make_episodes([9, 7, 2]).save(tmp_path / "episodes")
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = [*launch, script, tmp_path / "episodes", tmp_path / "two"]
    one = [sys.executable, script, tmp_path / "episodes", tmp_path / "one"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    half = [*launch, script, tmp_path / "episodes", tmp_path / "half"]
    changed = [sys.executable, script, tmp_path / "episodes", tmp_path / "half"]
    for command, fine in (
        ([*two, "2"], True),
        ([*one, "1"], True),
        ([*half, "2", "11"], False),
        ([*changed, "1"], True),
    ):
        done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
        assert (done.returncode == 0) == fine, done.stderr[-3000:]
    first, last = log_of(tmp_path / "one"), load_file(checkpoint(tmp_path / "one") / WEIGHTS)
    for other in ("two", "half"):  # the last: killed at step 9 or so on two processes, and gone on with on one
        log, weights = log_of(tmp_path / other), load_file(checkpoint(tmp_path / other) / WEIGHTS)
        assert len(first) == len(log) == 15
        for a, b in zip(first, log):
            assert a.keys() == b.keys()
            assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-5, abs=1e-5)
        for key, value in last.items():
            torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-4)


def test_a_batch_that_cannot_be_shared(parts, tmp_path: Path) -> None:
    class Three:
        num_processes, process_index = 3, 0

    with pytest.raises(InputError, match=r"tiny\.batch_size: 8 cannot be split among 3 processes"):
        Trainer("tiny", Dynamics(**SIZES), *parts, TWENTY, tmp_path, Three())  # type: ignore[arg-type]


# it learns

A = torch.tensor([[0.95, 0.3], [-0.3, 0.95]])
B = torch.tensor([[0.0], [0.5]])


def linear_episodes(count: int, steps: int, seed: int) -> Episodes:
    """z' = A z + B u with actions that switch at random."""
    random = np.random.default_rng(seed)
    rows = count * (steps + 1)
    latents, actions = np.zeros((rows, 2), np.float32), np.zeros((rows, 1), np.float32)
    ends = np.zeros(rows, bool)
    for e in range(count):
        z, u = random.normal(size=2), random.choice([-1.0, 1.0])
        for t in range(steps + 1):
            row = e * (steps + 1) + t
            latents[row] = z
            if t < steps:
                u = u if random.random() < 0.7 else random.uniform(-1, 1)
                actions[row] = u
                z = A.numpy() @ z + B.numpy()[:, 0] * u
        ends[(e + 1) * (steps + 1) - 2] = True
    rewards = -(latents**2).sum(1)
    arrays = {"observations": latents, "actions": actions, "rewards": rewards.astype(np.float32)}
    arrays |= {"terminations": np.zeros(rows, bool), "truncations": ends}
    return Episodes(arrays, np.arange(count + 1) * (steps + 1))


def inconsistency(
    models: tuple[Planner, Dynamics], normalizers: tuple[Normalizer, ...], present: torch.Tensor
) -> float:
    """Mean squared distance of planned states from what the system does with the planned actions."""
    latents, actions = normalizers
    low, high = (torch.cat(pair) for pair in zip(latents.bounds(), actions.bounds()))
    sampler = Sampler(*models, NoiseSchedule(), low, high, SamplerConfig(steps=10, temperature=1.0, dynamics_power=1.0))
    generator = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(len(present), 8, 3, generator=generator)  # noqa: E731
    x = sampler(latents.normalize(present), torch.zeros(len(present), 1), noise)
    z, u = latents.denormalize(x[..., :2]), actions.denormalize(x[..., 2:])
    return (z[:, 1:] - z[:, :-1] @ A.T - u[:, :-1] @ B.T).square().mean().item()


@pytest.mark.slow
def test_it_learns_a_linear_system(tmp_path: Path) -> None:
    train, held_out = linear_episodes(40, 30, 0), linear_episodes(8, 30, 1)
    normalizers = tuple(Normalizer(train[key].shape[1]).fit(train[key]) for key in ("observations", "actions"))
    condition = Marginals(1).fit(to_go(train["rewards"], train, 0.9)[:, None])
    data = [
        Windows(part, to_go(part["rewards"], part, 0.9)[:, None], 8, *normalizers, condition)
        for part in (train, held_out)
    ]
    config = TrainConfig(
        steps=400, batch_size=32, learning_rate=3e-3, warmup=20, ema_decay=0.98, log_every=100, validate_every=400
    )
    sizes = dict(latent_dim=2, action_dim=1, horizon=8, width=16, multipliers=(1, 2), embedding=32)
    models = []
    for kind in (Planner, Dynamics):
        torch.manual_seed(0)
        # the actions are random: with more weight on the first the loss could hardly fall
        more = {"first_action_weight": 10.0, "level_draws": 1, "bounded": False} if kind is Planner else {}
        models.append(trainer(data, tmp_path / kind.__name__, config, kind, sizes=sizes | more).train())
        first, *_, last = [line["validation_loss"] for line in log_of(tmp_path / kind.__name__) if len(line) == 2]
        assert last < (0.6 if kind is Planner else 0.3) * first  # a fresh net says 0, the mean: the trivial level
    present = torch.from_numpy(held_out["observations"][::20])
    torch.manual_seed(0)
    untrained = inconsistency((Planner(**sizes), Dynamics(**sizes)), normalizers, present)
    assert inconsistency((models[0], models[1]), normalizers, present) < untrained / 10


@pytest.mark.parametrize(("keep", "kept"), [("best", 7), ("last", 20)])
def test_the_weights_that_are_kept(parts, tmp_path: Path, monkeypatch, keep: str, kept: int) -> None:
    """Of the lowest held-out loss, or of the last step; in memory, in the checkpoint, and after a reload."""
    losses, seen = {1: 4.0, 7: 1.0, 14: 2.0, 20: 3.0}, {}
    settled = Averages.validated

    def validated(self: Averages, step: int, loss: float) -> None:
        seen[step] = [weight.clone() for weight in self.ema.shadow_params]
        settled(self, step, losses[step])

    monkeypatch.setattr(Averages, "validated", validated)
    config = replace(TWENTY, keep=keep)
    model = trainer(parts, tmp_path, config).train()
    assert all(map(torch.equal, [p for p in model.parameters() if p.requires_grad], seen[kept]))
    saved = load_file(checkpoint(tmp_path) / "model" / "diffusion_pytorch_model.safetensors")
    again = trainer(parts, tmp_path, config).train()
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]) and torch.equal(parameter, saved[name])


LOSSES = {1: 9.0, 4: 3.0, 8: 5.0, 12: 4.0, 16: 3.5, 20: 1.0}


@pytest.mark.parametrize(
    ("keep", "patience", "ends"), [("best", 7, 12), ("best", 9, 16), ("best", 0, 20), ("best", 40, 20), ("last", 7, 20)]
)
@pytest.mark.parametrize("stop", [None, 11])
def test_a_training_ends_when_the_held_out_loss_does_not_fall(
    parts, tmp_path: Path, monkeypatch, capsys, keep: str, patience: int, ends: int, stop: int | None
) -> None:
    """Also if it was interrupted, and it then counts as finished."""
    settled = Averages.validated
    monkeypatch.setattr(Averages, "validated", lambda self, step, loss: settled(self, step, LOSSES[step]))
    config = replace(TWENTY, keep=keep, patience=patience, validate_every=4, checkpoint_every=5)
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            trainer((Watched(parts[0], stop), parts[1]), tmp_path, config).train()
    trainer(parts, tmp_path, config).train()
    assert checkpoint(tmp_path).name == f"step_{ends:08d}"
    assert max(line["step"] for line in log_of(tmp_path)) == ends
    told = f"tiny: ended at step {ends}; the held-out loss was lowest at 4" in capsys.readouterr().out
    assert told == (ends < 20)
    data = Watched(parts[0], stop=0)
    trainer((data, parts[1]), tmp_path, config).train()
    assert data.batches == 0
