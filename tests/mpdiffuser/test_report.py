"""The report, read back with an HTML parser."""

import copy
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpdiffuser.errors import InputError
from mpdiffuser.report import write_report
from mpdiffuser.statistics import summary
from mpdiffuser.video import write_video

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
    "machine": {"cpu": "x86_64", "cores": 2, "threads": 2, "versions": {"torch": "2.9.1"}},
    "seeds": [1000, 1001, 1002, 1003],
    "stages": {"collect": 30.0, "planner": 3725.0},
    "methods": {
        "random": method([10.0, 12.0, 8.0, 10.0]),
        "cloning": method([300.0, 310.0, 290.0, 300.0]),
        "planner": method(
            [500.0, 520.0, 480.0, 500.0],
            feasibility={str(k): {"mean": 0.06 * k, "standard_error": 0.005} for k in (1, 2, 4, 8)},
            **PLANNING,
        ),
        "ours": method(
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
    write_video(folder / "video.mp4", np.zeros((2, 16, 16, 3), np.uint8), None, (), None, 25)
    assert write_report(folder) == folder / "report.html"
    return folder


def test_whole_report(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert "Mean return 700.0 ± 8.2 over 4 episodes, 88 % of the expert’s." in page.text
    assert "planner only 500.0 ± 8.2, behaviour cloning 300.0 ± 4.1" in page.text
    assert "270.2 / 359.5" in page.text and "38.6 / 54.1" in page.text
    assert "20 environments planned for at once" in page.text
    assert page.text.count("3.00 ×") == 4
    assert "0.1600 ± 0.0010" in page.text and "0.4800 ± 0.0050" in page.text
    assert "1 h 02 min" in page.text and "30.0 s" in page.text
    assert "sampler.shape 1, 2" in page.text and "versions.torch 2.9.1" in page.text
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


def test_needs_no_network(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text
    page = Page(folder / "report.html")
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    addresses = [a[key] or "" for _, a in page.tags for key in ("src", "href", "xlink:href") if key in a]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert sum(address.startswith("data:video/mp4;base64,") for address in addresses) == 1


def test_least(tmp_path: Path) -> None:
    write_metrics(tmp_path, {"methods": {"ours": {"returns": [3.0], "mean": 3.0}}})
    page = Page(write_report(tmp_path))
    assert "Mean return 3.00 over 1 episode." in page.text
    assert page.count("svg") == 1
    assert page.count("video") == page.count("pre") == page.count("details") == 0
    for word in ("expert’s", "IQM interval", "Learning", "Time of", "Can the plans"):
        assert word not in page.text


@pytest.mark.parametrize("keys", [("task", "settings", "seeds"), ("date", "machine", "stages", "command")])
def test_without_some_fields(tmp_path: Path, keys: tuple[str, ...]) -> None:
    write_metrics(tmp_path, {name: value for name, value in FULL.items() if name not in keys})
    page = Page(write_report(tmp_path))
    assert page.count("svg") == 2
    assert page.count("details") == 1


def test_methods_without_some_fields(tmp_path: Path) -> None:
    metrics: dict[str, Any] = copy.deepcopy(FULL)
    methods = metrics["methods"]
    del methods["ours"]["iqm"], methods["ours"]["plan_ms"], methods["ours"]["feasibility"]["4"]
    del methods["planner"]["iqm_interval"], methods["planner"]["plan_ms_single"]
    del methods["planner"]["feasibility"]["1"]["standard_error"]
    del methods["cloning"]["standard_error"], methods["expert"]["lengths"], methods["random"]["seconds"]
    write_metrics(tmp_path, metrics)
    page = Page(write_report(tmp_path))
    assert page.text.count("3.00 ×") == 3
    assert "behaviour cloning 300.0." in page.text


def test_scores_costs_and_limits_of_a_suite(tmp_path: Path) -> None:
    score = {"mean": 71.5, "standard_error": 2.25, "low": -20.25, "high": 3234.5}
    costs = {"cost": {"mean": 18.5, "standard_error": 0.5}, "normalised_cost": {"20": 0.925}, "within": {"20": 0.8}}
    methods = {"ours": FULL["methods"]["ours"] | {"score": score}, "planner within 20": FULL["methods"]["planner"]}
    methods["planner within 20"] = methods["planner within 20"] | costs | {"limit": 20.0}
    suite = {"suite": "d4rl", "stand_in": True, "settings": {"within": 0.9}, "methods": methods}
    write_metrics(tmp_path, FULL | suite)
    text = Page(write_report(tmp_path)).text
    for words in ("71.5 ± 2.2", "18.50 ± 0.50", "0.925", "80%", "no number here is a D4RL result", "Wanted: 90%"):
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
        (("methods", "ours"), {"returns": [1.0]}, "methods.ours must be .* mean"),
        (("methods", "ours", "mean"), "high", "methods.ours.mean .*'high'"),
        (("methods", "ours", "mean"), float("nan"), "methods.ours.mean .*nan"),
        (("methods", "ours", "returns"), [], "methods.ours.returns"),
        (("methods", "ours", "returns"), [1.0, None], "methods.ours.returns.1 .*None"),
        (("methods", "ours", "iqm_interval"), [1.0], "methods.ours.iqm_interval"),
        (("methods", "ours", "plan_ms"), {"median": 1.0}, "methods.ours.plan_ms .*p95"),
        (("methods", "ours", "feasibility"), {"far": {"mean": 1.0}}, "methods.ours.feasibility"),
        (("methods", "ours", "feasibility", "2"), {}, "methods.ours.feasibility.2"),
        (("methods", "ours", "score"), {"low": 0.0}, "methods.ours.score .*mean"),
        (("methods", "ours", "limit"), 20, "methods.ours.normalised_cost .*20"),
        (("methods", "ours", "limit"), "low", "methods.ours.limit .*'low'"),
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


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mpdiffuser.report", str(tmp_path)]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    write_metrics(tmp_path, FULL)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "report.html")
    assert Page(tmp_path / "report.html").count("svg") == 2
