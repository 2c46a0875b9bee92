"""Encoders compared: the table."""

from experiments import encoders


def test_the_page() -> None:
    found = {"r2": {"positions": 0.912, "velocities": 0.7}, "minutes": 12.3}
    found["returns"] = {"planner": [1.0, 3.0], "mpdiffuser": [5.0, 5.0], "expert": [9.0, 9.0]}
    names = list(encoders.ENCODERS)
    text = encoders.page({("walker_walk", names[0]): [found, found], ("walker_walk", names[2]): [found]}, [0, 1])
    lines = [line for line in text.splitlines() if line.startswith("| walker_walk")]
    assert lines[0] == f"| walker_walk | {names[0]} |  | 0.91 0.70, 0.91 0.70 | 2 ± 1, 2 ± 1 | 5 ± 0, 5 ± 0 | 12, 12 |"
    options = " ".join(encoders.ENCODERS[names[2]])
    assert lines[1] == f"| walker_walk | {names[2]} | `{options}` | 0.91 0.70 | 2 ± 1 | 5 ± 0 | 12 |"


def test_each_encoder_has_its_options() -> None:
    assert len(set(encoders.ENCODERS.values())) == len(encoders.ENCODERS)
