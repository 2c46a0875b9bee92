"""The report, read back with an HTML parser."""

import copy
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evaluation.report import main, write_report
from evaluation.statistics import summary
from evaluation.video import Film, write_video
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, tags with attributes, and whether every element is closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def method(returns: list[float], **more: Any) -> dict[str, Any]:
    return {**summary(returns), "returns": returns, "lengths": [250] * len(returns), "seconds": 3.0, **more}


PLANNING = {
    "plan_ms": {"median": 270.25, "p95": 359.5, "batch": 20},
    "plan_ms_single": {"median": 38.6, "p95": 54.1, "batch": 1},
}
FULL = {
    "task": "pendulum_swingup",
    "date": "2025-11-22T18:50:01",
    "command": "train_vision.py task=pendulum_swingup 'note=<b>'",
    "settings": {"episodes": 4, "sampler": {"steps": 6, "shape": [1, 2]}},
    "data": "0f1e2d3c",
    "machine": {"cpu": "x86_64", "cores": 2, "threads": 2, "versions": {"torch": "2.9.1"}},
    "seeds": [1000, 1001, 1002, 1003],
    "stages": {"collect": 30.0, "representation": 60.0, "ranker": 3725.0},
    "methods": {
        "random": method([10.0, 12.0, 8.0, 10.0]),
        "cloning": method([300.0, 310.0, 290.0, 300.0]),
        "planner": method(
            [500.0, 520.0, 480.0, 500.0],
            feasibility={str(k): {"mean": 0.06 * k, "standard_error": 0.005} for k in (1, 2, 4, 8)},
            **PLANNING,
        ),
        "mpdiffuser": method(
            [700.0, 720.0, 680.0, 700.0],
            feasibility={str(k): {"mean": 0.02 * k, "standard_error": 0.001} for k in (1, 2, 4, 8)},
            **PLANNING,
        ),
        "expert": method([800.0, 800.0, 800.0, 800.0]),
    },
}


def write_metrics(folder: Path, metrics: Any) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    folder = tmp_path_factory.mktemp("run")
    write_metrics(folder, FULL)
    for part in ("ranker", "representation", "cloning"):
        (folder / part).mkdir()
        lines = [{"step": s, "loss": 1 / s} for s in (1, 50, 100)] + [{"step": 100, "validation_loss": 0.02}]
        (folder / part / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    write_video(folder / "video.mp4", [Film(np.zeros((2, 16, 16, 3), np.uint8))], 25)
    assert write_report(folder) == folder / "report.html"
    return folder


def test_whole_report(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert "Mean return 700.0 ± 8.2 over 4 episodes, 88 % of the expert’s." in page.text
    assert "planner only 500.0 ± 8.2, behaviour cloning 300.0 ± 4.1" in page.text
    assert "270.2 / 359.5" in page.text and "38.6 / 54.1" in page.text
    assert "Batch: plans for 20 environments at once." in page.text
    assert page.text.count("3.00 ×") == 4
    assert "0.1600 ± 0.0010" in page.text and "0.4800 ± 0.0050" in page.text
    assert "1 h 02 min" in page.text and "30.0 s" in page.text
    assert "sampler.shape 1, 2" in page.text and "versions.torch 2.9.1" in page.text
    assert page.text.count("0f1e2d3c") == 1 and "checksum of the data 0f1e2d3c" in page.text
    assert "note=<b>" in page.text and page.count("b") == 5 + 2
    assert not list(folder.glob("*.partial"))


def test_figures(folder: Path) -> None:
    page = Page(folder / "report.html")
    labels = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]
    assert [label.partition(" ")[0] for label in labels[:2]] == ["Return", "Squared"]
    assert [label.split()[-1] for label in labels[2:]] == ["representation", "ranker", "cloning"]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = (folder / "report.html").read_text(encoding="utf-8")
    used = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert used and set(used) <= set(ids)
    assert "mathdefault" not in text
    svgs = re.findall(r"<svg.*?</svg>", text, re.S)
    assert all("var(--ink)" in svg and not re.search(r"#[0-9a-f]{6}\b", svg) for svg in svgs)


def test_curves_follow_the_stages_then_their_names(tmp_path: Path) -> None:
    write_metrics(tmp_path, FULL | {"stages": {"ranker": 1.0, "features": 1.0, "planner": 1.0}})
    for model in ("cloning_within_20", "planner", "ranker", "action_planner"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    page = Page(write_report(tmp_path))
    words = [a["aria-label"] or "" for tag, a in page.tags if tag == "svg"]
    curves = [word.partition(" of the ")[2] for word in words[2:]]
    assert curves == ["ranker", "planner", "action planner", "cloning within 20"]


def test_a_method_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new method's label, colour, order and sentence are where all others' are."""
    new = SimpleNamespace(name="ours", label="New (one)", color=("#0a1b2c", "#d3e4f5"), summary="Does it anew.")
    known = list(METHODS.items())
    monkeypatch.setattr("evaluation.labels.METHODS", dict([known[0], ("ours", new), *known[1:]]))
    names = {
        "other": "expert",
        "ours within 20": "planner",
        "ours": "planner",
        "random": "random",
        "x within 3": "random",
    }
    write_metrics(tmp_path, {"methods": {name: FULL["methods"][old] for name, old in names.items()}})
    page = Page(write_report(tmp_path))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "--ours: #0a1b2c;" in text and "--ours: #d3e4f5;" in text
    dots = [a["style"] for _, a in page.tags if a.get("class") == "card"]
    assert dots == [f"--c: var(--{name})" for name in ("random", "ours", "ours", "faint", "faint")]
    labels = ["random actions", "New (one) within 20", "New (one)", "other", "x within 3"]
    rows = re.findall(r'<span class="dot"[^>]*></span>([^<]*)</span></td>', text)
    assert rows[:5] == labels
    assert "New within 20 500.0" in page.text and "New (one) Does it anew." in page.text
    assert "Baselines" not in page.text and METHODS["expert"].summary not in page.text
    figures = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(figures) == 2 and all("var(--ours)" in figure for figure in figures)
    assert "var(--faint)" in figures[0] and "stroke-dasharray" in figures[1]


def test_cards_are_rounded_alike(tmp_path: Path) -> None:
    means = {"random": (5.26, 0.41), "mpdiffuser": (708.4, 15.3), "expert": (860.04, 0.059), "iql": (3.0, 0.0)}
    methods = {
        name: {"returns": [mean], "mean": mean, "standard_error": error} for name, (mean, error) in means.items()
    }
    write_metrics(tmp_path, {"methods": methods | {"other": {"returns": [1.5], "mean": 1.5}}})
    page = Page(write_report(tmp_path))
    cards = page.text[: page.text.index(" Returns ")]
    for words in ("random actions 5 ± <1", "IQL 3 ± 0", "MPDiffuser 708 ± 15 82 %", "expert 860 ± <1 other 2"):
        assert words in cards
    assert "Mean return 708 ± 15 over 1 episode" in cards
    assert "860.040 ± 0.059" in page.text


@pytest.mark.parametrize(("batch", "words"), [(1, "plans for 1 environment at"), (8, "plans for 8 environments at")])
def test_one_environment_and_several(tmp_path: Path, batch: int, words: str) -> None:
    times = {"plan_ms": {"median": 3.0, "p95": 4.0, "batch": batch}}
    write_metrics(tmp_path, {"methods": {"planner": method([1.0, 2.0], **times), "random": method([1.0])}})
    page = Page(write_report(tmp_path))
    assert words in page.text
    assert page.text.count("random actions") == 4  # card, table and figure of returns, glossary; it has no plan times


def test_needs_no_network(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text
    page = Page(folder / "report.html")
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    addresses = [a[key] or "" for _, a in page.tags for key in ("src", "href", "xlink:href") if key in a]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert sum(address.startswith("data:video/mp4;base64,") for address in addresses) == 1


def test_least(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"methods": {"mpdiffuser": {"returns": [3.0], "mean": 3.0}}})
    page = Page(write_report(tmp_path))
    assert "Mean return 3.00 over 1 episode." in page.text
    assert page.count("svg") == 1
    assert page.count("video") == page.count("pre") == page.count("details") == 0
    for word in ("expert’s", "IQM interval", "Learning", "Time of", "Can the plans"):
        assert word not in page.text


@pytest.mark.parametrize("keys", [("task", "settings", "seeds", "data"), ("date", "machine", "stages", "command")])
def test_without_some_fields(tmp_path: Path, keys: tuple[str, ...]) -> None:
    write_metrics(tmp_path, {name: value for name, value in FULL.items() if name not in keys})
    page = Page(write_report(tmp_path))
    assert page.count("svg") == 2
    assert page.count("details") == 1


def test_methods_without_some_fields(tmp_path: Path) -> None:
    metrics: dict[str, Any] = copy.deepcopy(FULL)
    methods = metrics["methods"]
    del methods["mpdiffuser"]["iqm"], methods["mpdiffuser"]["plan_ms"], methods["mpdiffuser"]["feasibility"]["4"]
    del methods["planner"]["iqm_interval"], methods["planner"]["plan_ms_single"]
    del methods["planner"]["feasibility"]["1"]["standard_error"]
    del methods["cloning"]["standard_error"], methods["expert"]["lengths"], methods["random"]["seconds"]
    write_metrics(tmp_path, metrics)
    page = Page(write_report(tmp_path))
    assert page.text.count("3.00 ×") == 3
    assert "behaviour cloning 300.0." in page.text


def test_scores_costs_and_limits_of_a_suite(tmp_path: Path) -> None:
    score = {"mean": 71.5, "standard_error": 2.25, "low": -20.25, "high": 3234.5}
    costs = {
        "cost": {"mean": 18.5, "standard_error": 0.5},
        "normalised_cost": {"20": 0.925},
        "share_within_limit": {"20": 0.8},
    }
    methods = {
        "mpdiffuser": FULL["methods"]["mpdiffuser"] | {"score": score},
        "planner within 20": FULL["methods"]["planner"],
    }
    methods["planner within 20"] = methods["planner within 20"] | costs | {"limit": 20.0}
    suite = {"suite": "d4rl", "stand_in": True, "settings": {"safety_probability": 0.9}, "methods": methods}
    write_metrics(tmp_path, FULL | suite)
    text = Page(write_report(tmp_path)).text
    for words in ("71.5 ± 2.2", "18.50 ± 0.50", "0.925", "80%", "no number here is a D4RL result", "Target: 90%"):
        assert words in text
    assert "Normalised score: 100 (return - low) / (high - low), low -20.25, high 3234.5." in text
    write_metrics(tmp_path, FULL)
    assert "Normalised score" not in Page(write_report(tmp_path)).text


def test_text_is_escaped(tmp_path: Path) -> None:
    odd = "<script>$x_1$</script>"
    write_metrics(tmp_path, {"task": odd, "settings": {odd: odd}, "methods": {odd: {"returns": [1, 2], "mean": 1.5}}})
    page = Page(write_report(tmp_path))
    assert page.count("script") == 0
    assert page.text.count(odd) >= 5


def test_broken_metrics(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.json: not found"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text('{"methods": ')
    with pytest.raises(InputError, match=r"metrics\.json: cannot be read"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((), [], "methods"),
        (("methods",), {}, "methods"),
        (("levels",), {"planner": {"levels": 3}}, "levels.planner must be an object with levels and windows"),
        (
            ("levels",),
            {"planner": {"levels": 3, "windows": 9, "episodes": 2, "errors": {"1": 0.5}}},
            "levels.planner.errors must be an object with 3",
        ),
        (("methods", "mpdiffuser"), {"returns": [1.0]}, "methods.mpdiffuser must be .* mean"),
        (("methods", "mpdiffuser", "mean"), "high", "methods.mpdiffuser.mean .*'high'"),
        (("methods", "mpdiffuser", "mean"), float("nan"), "methods.mpdiffuser.mean .*nan"),
        (("methods", "mpdiffuser", "returns"), [], "methods.mpdiffuser.returns"),
        (("methods", "mpdiffuser", "returns"), [1.0, None], "methods.mpdiffuser.returns.1 .*None"),
        (("methods", "mpdiffuser", "iqm_interval"), [1.0], "methods.mpdiffuser.iqm_interval"),
        (("methods", "mpdiffuser", "plan_ms"), {"median": 1.0}, "methods.mpdiffuser.plan_ms .*p95"),
        (("methods", "mpdiffuser", "feasibility"), {"far": {"mean": 1.0}}, "methods.mpdiffuser.feasibility"),
        (("methods", "mpdiffuser", "feasibility", "2"), {}, "methods.mpdiffuser.feasibility.2"),
        (("methods", "mpdiffuser", "score"), {"low": 0.0}, "methods.mpdiffuser.score .*mean"),
        (("methods", "mpdiffuser", "limit"), 20, "methods.mpdiffuser.normalised_cost .*20"),
        (("methods", "mpdiffuser", "limit"), "low", "methods.mpdiffuser.limit .*'low'"),
        (("stages",), {"collect": "long"}, "stages.collect .*'long'"),
        (("machine",), "fast", "machine"),
    ],
)
def test_wrong_kind(tmp_path: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    metrics: Any = copy.deepcopy(FULL)
    if path:
        inner = metrics
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    write_metrics(tmp_path, metrics if path else value)
    with pytest.raises(InputError, match=rf"metrics\.json: .*{message}"):
        write_report(tmp_path)


def test_broken_log(tmp_path: Path) -> None:
    write_metrics(tmp_path, FULL)
    (tmp_path / "planner").mkdir()
    (tmp_path / "planner" / "log.jsonl").write_text('{"step": 1, "loss": 1}\n{"loss"\n{"step": 3, "loss": 1}\n')
    with pytest.raises(InputError, match=r"planner/log\.jsonl: line 2"):
        write_report(tmp_path)


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    """Also on a terminal that has only ASCII."""
    folder = tmp_path / "run-±-é"
    folder.mkdir()
    write_metrics(folder, FULL)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "evaluation.report", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == str(tmp_path / "run-+--?" / "report.html") and not done.stderr
    assert Page(folder / "report.html").count("svg") == 2


def test_an_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
