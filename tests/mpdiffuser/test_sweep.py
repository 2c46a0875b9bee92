"""--multirun: which runs there are, where they go, and the real commands side by side."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpdiffuser.errors import InputError
from mpdiffuser.sweep import plan, program, values

ROOT = Path(__file__).parents[2]


def test_each_combination_is_a_run_with_a_folder_of_its_own() -> None:
    runs = plan("state", ["task=d4rl/hopper-medium-v2,d4rl/hopper-expert-v2", "seed=range(0,2)", "horizon=8"])
    assert [str(run.folder) for run in runs] == [
        f"results/hopper-{quality}-v2-seed{seed}" for quality in ("medium", "expert") for seed in (0, 1)
    ]
    assert runs[1].words == (
        *("task=d4rl/hopper-medium-v2", "seed=1", "horizon=8"),
        "output_dir=results/hopper-medium-v2-seed1",
    )


def test_names_have_what_the_usual_folders_do_not_tell() -> None:
    assert [str(run.folder) for run in plan("state", ["method=cloning,iql", "dataset=arm.npz"])] == [
        "results/arm-cloning",
        "results/arm-iql",
    ]
    assert [str(run.folder) for run in plan("state", ["method=cloning,iql", "run=x"])] == [
        "results/x-methodcloning",
        "results/x-methodiql",
    ]


def test_the_folders_lie_in_output_dir_where_it_is_given() -> None:
    words = ["output_dir=my runs/a,b=c", "sampler.steps=1,2", "task=d4rl/hopper-medium-v2,d4rl/hopper-expert-v2"]
    names = [f"steps{steps}-taskd4rl_hopper-{quality}-v2" for steps in (1, 2) for quality in ("medium", "expert")]
    assert [run.folder for run in plan("state", words)] == [Path("my runs/a,b=c") / name for name in names]


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("state", ["seed=0,0"], r"two runs have the folder results/hopper-medium-v2-seed0"),
        ("state", ["seed=0,1", "seed=2"], r"seed: is given twice; list its values, as in seed=A,B"),
        ("state", ["seed=0,one"], r"seed: must be a whole number"),
        ("state", ["sede=0,1"], r"sede: no such option .*nearest: seed"),
        ("state", ["seed=interval(0,1)"], r"seed: cannot list the values of 'seed=interval\(0,1\)'"),
        ("evaluate", ["pipeline=x", "sampler.steps=1,2"], r"output_dir: is needed with --multirun"),
        ("collect", ["task=reacher_easy,walker_walk"], r"--multirun: only the programs that train or evaluate"),
    ],
)
def test_wrong_options_of_any_run_are_refused_before_the_first(name: str, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(name, words)


def test_values() -> None:
    assert values("seed=0,1") == ["seed=0", "seed=1"]
    assert values("dataset=a,b.npz") == ["dataset=a,b.npz"]
    assert values("evaluation.methods=[a,b]") == ["evaluation.methods=[a,b]"]


def test_the_installed_command_starts_itself_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mpdiffuser train-state", "-m"])
    assert program() == [sys.executable, "-m", "mpdiffuser_cli", "train-state"]
    script = tmp_path / "mpdiffuser copy" / "train_state.py"
    script.parent.mkdir()
    script.write_text("")
    monkeypatch.setattr(sys, "argv", [str(script), "-m"])
    assert program() == [sys.executable, str(script)]


@pytest.mark.slow
def test_runs_at_the_same_time_one_of_which_fails(tmp_path: Path) -> None:
    random, ends = np.random.default_rng(0), np.arange(120) % 40 == 39
    states, actions = random.normal(size=(120, 3)).astype("f"), random.uniform(-1, 1, (120, 2)).astype("f")
    arrays = {"observations": states, "actions": actions, "rewards": states[:, 0], "truncations": ends}
    np.savez(tmp_path / "arm.npz", **arrays, terminations=np.zeros(120, bool))
    words = ["-m", "dataset=arm.npz", "seed=0,-1", "debug=true", "method=cloning", "trackers=[]", "output_dir=out"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_state.py"), *words, *launcher],
        **{"cwd": tmp_path, "capture_output": True, "text": True},
    )
    assert done.returncode == 2, done.stdout + done.stderr
    logs = sorted(tmp_path.glob("results/multirun/*/*/output.log"))
    assert done.stdout.splitlines()[-2:] == [
        f"done: out/seed0 (output: {logs[0]})",
        f"FAILED (exit status 2): out/seed-1 (output: {logs[1]})",
    ]
    assert (tmp_path / "out" / "seed0" / "pipeline" / "model_index.json").is_file()
    assert "error: seed: must lie in" in logs[1].read_text() and "error:" not in logs[0].read_text()
