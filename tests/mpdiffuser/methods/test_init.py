"""The registry: every method complete, in the order of tables, and nothing in two places."""

import re

import pytest

from mpdiffuser import methods
from mpdiffuser.methods import METHODS, Baseline, Method, Planning, recipes_of
from mpdiffuser.sampler import SamplerConfig

ORDER = [
    "random",
    "cloning",
    "iql",
    "td3_bc",
    "rebrac",
    "diffusion_policy",
    "diffuser",
    "decision_diffuser",
    "d_mpc",
    "sample_and_rank",
]
ORDER += ["planner", "mpdiffuser", "distilled", "expert"]


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb, 0 to 1 (WCAG 2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_the_methods_in_the_order_of_tables() -> None:
    assert list(METHODS) == ORDER
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in ORDER}


@pytest.mark.parametrize("name", ORDER)
def test_every_method_is_complete(name: str) -> None:
    method = METHODS[name]
    assert issubclass(method, Method) and method.__doc__
    assert method.label and method.label == method.label.strip()
    assert re.fullmatch(r"[A-Z].*\.", method.summary) and ". " not in method.summary  # one sentence
    light, dark = method.color
    assert all(re.fullmatch(r"#[0-9a-f]{6}", color) for color in method.color)
    assert contrast(light, "#ffffff") >= 3 and contrast(dark, "#111111") >= 3  # WCAG 2 for graphics
    assert {*method.evaluated_with} <= set(METHODS) - {name}
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)


def test_labels_and_colours_are_told_apart() -> None:
    for values in zip(*[(method.label, *method.color) for method in METHODS.values()]):
        assert len(set(values)) == len(METHODS)


def test_what_evaluation_asks_of_a_method() -> None:
    def which(attribute: str) -> list[str]:
        return [name for name, method in METHODS.items() if getattr(method, attribute)]

    assert which("sees_states") == ["random", "expert"]
    assert which("needs_expert") == ["expert"]
    assert which("takes_limits") == ["cloning", "planner", "mpdiffuser", "distilled"]
    drawing = [name for name, method in METHODS.items() if issubclass(method, Planning | Baseline)]
    assert which("plans_states") == [name for name in drawing if name != "diffusion_policy"]


def test_settings_of_baselines_are_samplers_settings() -> None:
    for name, method in METHODS.items():
        if issubclass(method, Baseline):
            config = method.sampler_config(method.settings)
            assert isinstance(config, SamplerConfig), name
            assert set(method.settings) <= set(vars(config)) and not set(method.fixed) & set(method.settings)
            kinds = {recipe.name for recipe in method.models}
            assert set(method.roles.values()) == kinds


def test_a_model_has_one_recipe_whatever_methods_share_it() -> None:
    found: dict = {}
    for method in METHODS.values():
        for recipe in method.recipes([20, 40]):
            assert found.setdefault(recipe.name, recipe) == recipe
            assert set(recipe.after) <= {each.name for each in method.recipes([20, 40])}
    assert set(found) == set(recipes_of(METHODS, [20, 40]))


def test_recipes_of_methods() -> None:
    assert list(recipes_of(["random", "expert"])) == []
    assert list(recipes_of(["random", "cloning"])) == ["cloning"]
    assert list(recipes_of(["cloning"], [20, 40])) == ["cloning", "cloning_within_20", "cloning_within_40"]
    assert list(recipes_of(["cloning", "planner"])) == ["ranker", "planner", "forward", "cloning"]  # MPDiffuser's first
    assert list(recipes_of(["planner", "cloning"])) == ["ranker", "planner", "forward", "cloning"]
    shared = [set(recipes_of([name])) for name in ("diffusion_policy", "d_mpc")]
    assert shared[0] & shared[1] == {"action_planner"}


def test_a_new_file_adds_a_method(monkeypatch, tmp_path) -> None:
    (tmp_path / "zeros.py").write_text(
        "from mpdiffuser.methods.base import Method\n"
        "class Zeros(Method):\n"
        "    name, label, color, order = 'zeros', 'zeros', ('#000000', '#ffffff'), 5\n"
        "    summary = 'Does nothing.'\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    found = methods._found()
    assert list(found) == ["random", "zeros", *ORDER[1:]]
    assert {name: found[name] for name in ORDER} == METHODS
