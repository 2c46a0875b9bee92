"""Tests mirror the tree: each source file has a test file of its name, in the folder of the same place."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("mpdiffuser", "vision", "envs", "evaluation")
# source file -> why it has no test file of its own
WITHOUT = {
    "envs/__init__.py": "envs/test_record.py makes environments of records",
    "envs/collect_command.py": "envs/test_collect.py runs the command",
    "envs/datasets/__init__.py": "names of its modules",
    "envs/datasets/d4rl_file.py": "envs/datasets/test_maze2d.py and test_random_actions.py write such files",
    "envs/datasets/description.py": "envs/datasets/test_main.py prints them",
    "envs/datasets/readers/__init__.py": "names of its modules",
    "envs/datasets/readers/arrays.py": "readers/test_hostile.py and test_spoilt.py, through the readers",
    "envs/datasets/readers/films.py": "readers/test_lerobot.py and test_lerobot_layouts.py",
    "envs/datasets/readers/parquet.py": "readers/test_lerobot.py and test_lerobot_layouts.py",
    "envs/experts/__init__.py": "envs/experts/test_experts.py",
    "envs/gl.py": "envs/test_rendering.py",
    "envs/model_env.py": "envs/test_go2.py, test_maze2d.py, test_ant_maze.py, test_adroit.py and test_kitchen.py",
    "envs/protocol.py": "types alone",
    "envs/worker.py": "envs/test_vector.py holds the other end of its socket",
    "evaluation/__init__.py": "a docstring",
    "evaluation/labels.py": "evaluation/test_report.py",
    "evaluation/metrics_schema.py": "evaluation/test_report.py",
    "evaluation/report_figures.py": "evaluation/test_report.py",
    "evaluation/report_template.py": "evaluation/test_report.py",
    "mpdiffuser/action_scale.py": "mpdiffuser/test_adaptation.py and test_units.py",
    "mpdiffuser/memory.py": "envs/datasets/readers/test_guard.py",
    "mpdiffuser/models/forward.py": "mpdiffuser/test_adaptation.py trains one",
    "mpdiffuser/preparation.py": "mpdiffuser/test_units.py and test_dynamics_data.py",
    "mpdiffuser/models/__init__.py": "a docstring",
    "vision/__init__.py": "names of its modules",
}


def mirror_of(source: Path) -> Path:
    """tests/PACKAGE/test_NAME.py; of `__init__.py` and `__main__.py`, test_init.py and test_main.py."""
    return ROOT / "tests" / source.parent / f"test_{source.stem.strip('_')}.py"


def sources() -> list[Path]:
    return sorted(file.relative_to(ROOT) for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def test_each_source_file_has_its_test_file_or_a_reason() -> None:
    missing = [str(file) for file in sources() if str(file) not in WITHOUT and not mirror_of(file).is_file()]
    assert not missing, f"write these tests, or give a reason in WITHOUT: {missing}"


def test_no_reason_is_left_for_a_file_that_is_tested_or_gone() -> None:
    there = {str(file) for file in sources()}
    stale = [name for name in WITHOUT if name not in there or mirror_of(Path(name)).is_file()]
    assert not stale, f"take these out of WITHOUT: {stale}"
    assert all(reason for reason in WITHOUT.values())
