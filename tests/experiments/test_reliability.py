"""Short versions of the drills of docs/reliability.md."""

from pathlib import Path

import pytest

from experiments.reliability import fuzz, kills, live, soak

pytestmark = pytest.mark.slow  # make quick leaves evidence and drills out


def small_training(folder: Path) -> None:
    kills.training(folder, steps=12, options=["sampler.steps=2"])


def test_a_training_with_kills_ends_as_one_without(tmp_path: Path) -> None:
    result = kills.drill(small_training, tmp_path, kills=2, operations=120)
    assert result["kills"] == {"time": 1, "operation": 1}


def test_features_with_kills(tmp_path: Path) -> None:
    assert sum(kills.drill(kills.features, tmp_path, kills=4, operations=20)["kills"].values()) == 4


def test_a_drill_finds_a_difference(tmp_path: Path) -> None:
    """A job that is not exact after a kill."""

    def careless(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        with open(folder / "log", "a") as log:
            log.write("begun\n")
        (folder / "done").write_text("x")

    with pytest.raises(RuntimeError, match=r"these files are not those of a run without kills: \['log'\]"):
        kills.drill(careless, tmp_path, kills=4, operations=3)


SLOW = ("pipeline", "vision files", "state files", "options")


@pytest.mark.parametrize(
    "target",
    [
        *(name for name in fuzz.TARGETS if name not in SLOW),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_damaged_files_are_refused_or_load(tmp_path: Path, target: str) -> None:
    count = 8 if target == "options" or target.endswith(" files") else 30  # Hydra is slow
    result = fuzz.fuzz(target, count, tmp_path)
    assert not result["wrong"], result["wrong"][0]
    assert result["refused"] + result["loaded"] == count and result["refused"] >= count // 4


def test_a_reader_that_hangs_or_fails_or_eats_memory_is_found() -> None:
    def read(what: str) -> None:
        exec(what)

    programs = ["1", "1 / 0", "import os; os.kill(os.getpid(), 9)", "bytearray(2**33)", "1"]
    first, failed, killed, large, last = fuzz.attempts(read, programs)
    assert (first, last) == ("loaded", "loaded")
    assert "ZeroDivisionError" in failed and "signal 9" in killed and "MemoryError" in large


def test_a_soak_that_grows_fails() -> None:
    steady, grown = [(1e9, 20, 1.0)] * 4, [(1.2e9, 20, 1.0)] * 4
    assert soak.drift(steady * 2)["memory_mb"] == [1000.0, 1000.0]
    with pytest.raises(RuntimeError, match="memory or descriptors grow"):
        soak.drift(steady + grown)
    with pytest.raises(RuntimeError, match="memory or descriptors grow"):
        soak.drift([*steady, *[(1e9, 40, 1.0)] * 4])


def test_a_short_soak() -> None:
    """1,000 environments at once, then changing batches, resets and observations that are not finite."""
    result = soak.soak(minutes=0.05, every=0.1)
    assert result["large batch"]["environments"] == 1000
    assert result["decisions"] > 0 and result["resets"] > 0


def test_a_short_soak_of_the_runner() -> None:
    result = live.soak_runner(minutes=0.05, every=0.5)
    assert result["ticks"] > 20 and result["episodes"] > 0 and result["samples"] > 1
    assert result["odd_observations"] < result["ticks"]


def test_a_short_soak_of_the_server() -> None:
    result = live.soak_server(minutes=0.05, clients=3, every=0.5)
    assert result["answers"] > 20
