"""The configuration as a user meets it: overrides, errors in one line, help."""

import inspect
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mpdiffuser.config import _check_type, _debug_overrides, configured, flat, load, settings
from mpdiffuser.errors import InputError
from mpdiffuser.methods import METHODS, recipes_of
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.sampler import SamplerConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vision", "state", "evaluate", "collect"])
def test_every_configuration_loads_and_so_does_its_debug_form(name: str) -> None:
    given = ["pipeline=somewhere"] if name == "evaluate" else []
    assert load(name, given).debug is False
    assert load(name, [*given, "debug=true"]).debug is True


def test_overrides_reach_their_options() -> None:
    config = load("vision", ["sampler.steps=3", "task=walker_walk", "train.planner.learning_rate=1e-3"])
    assert (config.sampler.steps, config.task.name, config.task.action_repeat) == (3, "walker_walk", 2)
    assert config.train.planner.learning_rate == 1e-3
    assert "walker_walk" in config.output_dir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("sampler.stepz=3", r"sampler\.steps"),
        ("epsiodes=3", "episodes"),
        ("horizn=16", "horizon"),
        ("evaluation.episode=4", r"evaluation\.episodes"),
        ("train.plannr.steps=3", r"train\.planner\.steps"),
    ],
)
def test_an_unknown_option_names_near_ones(override: str, near: str) -> None:
    key = override.partition("=")[0].replace(".", r"\.")
    with pytest.raises(InputError, match=rf"{key}: no such option.*nearest: .*\b{near}\b") as caught:
        load("vision", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sampler.steps=many", r"sampler\.steps: must be null or a whole number.*'many'"),
        ("sampler.steps=2.5", r"sampler\.steps: must be null or a whole number.*2\.5"),
        ("sampler.steps=true", r"sampler\.steps: must be null or a whole number.*True"),
        ("sampler.guidance=much", r"sampler\.guidance: must be a number .*'much'"),
        ("encoder.trainable=3", r"encoder\.trainable: must be true or false .*3"),
        ("quality=5", r"quality: must be a text .*5"),
        ("sampler.temperature=nan", r"sampler\.temperature: must be a number .*found nan"),
        ("trackers=tensorboard", r"trackers: must be a list .*'tensorboard'"),
        ("planner.multipliers=4", r"planner\.multipliers: must be a list .*4"),
        ("train.planner=3", r"train\.planner: is a section with several options, such as train\.planner\.\w+; found 3"),
    ],
)
def test_a_value_of_the_wrong_type(override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load("vision", [override])


def test_a_mandatory_option_that_is_missing() -> None:
    with pytest.raises(InputError, match=r"^pipeline: is missing"):
        load("evaluate", ["evaluation.episodes=3"])


def test_whole_numbers_are_numbers() -> None:
    assert load("vision", ["sampler.guidance=2"]).sampler.guidance == 2


def test_a_task_without_a_file_is_dm_controls(tmp_path: Path) -> None:
    task = load("vision", ["task=fish_swim", "task.action_repeat=2"]).task
    assert dict(task) == {"name": "fish_swim", "action_repeat": 2, "size": 64, "camera": 0}
    assert load("collect", ["task=fish_swim"]).task.action_repeat == 4
    assert load("collect", ["task=dm_control/walker_walk"]).task.action_repeat == 4
    assert load("collect", ["task=walker_walk"]).task.action_repeat == 2  # of its own file
    mine = own(tmp_path, MINE, "task/fish_swim.yaml")
    assert load("vision", ["task=fish_swim"], mine).task.size == 84
    with pytest.raises(InputError, match=r"Could not override 'task'"):
        load("evaluate", ["pipeline=somewhere", "task=fish_swim"])


@pytest.mark.parametrize("given", ["Pendulum-v1", "ALE/Pong-v5", "package.module:factory"])
def test_an_environment_is_a_text(given: str) -> None:
    assert load("state", [f"environment={given}"]).environment == given
    assert load("evaluate", ["pipeline=somewhere"]).environment is None
    with pytest.raises(InputError, match=r"environment: must be null or a text, found 5"):
        load("vision", ["environment=5"])


@pytest.mark.parametrize(("group", "name"), [("task", "no-task"), ("encoder", "nonsense"), ("planner", "nonsense")])
def test_an_unknown_member_lists_the_available(group: str, name: str) -> None:
    """A word is a task of dm_control, which checks it later."""
    with pytest.raises(InputError) as caught:
        load("vision", [f"{group}={name}"])
    message = str(caught.value)
    assert name in message
    assert all(file.stem in message for file in (CONFIGS / group).glob("*.yaml"))
    assert "\n" not in message


@pytest.mark.parametrize(
    "override", ["sampler.steps", "=3", "sampler.steps=[1,", "~horizon", "+new=3", "++sampler.stepz=3", "sampler=3"]
)
def test_a_malformed_override_is_an_input_error(override: str) -> None:
    with pytest.raises(InputError) as caught:
        load("vision", [override])
    assert "\n" not in str(caught.value)


MINE = "name: reacher_easy\naction_repeat: 2\nsize: 84\ncamera: 0\n"


def own(folder: Path, text: str | bytes, name: str = "task/mine.yaml") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_configuration_files_of_ones_own(tmp_path: Path) -> None:
    config = load("vision", ["task=mine", "sampler.steps=3"], own(tmp_path, MINE))
    assert (config.task.size, config.task.action_repeat, config.sampler.steps) == (84, 2, 3)
    assert load("vision", [], tmp_path).task.name == "cartpole_swingup"
    main = (CONFIGS / "vision.yaml").read_text() + "horizon: 8\n"
    assert load("vision", [], own(tmp_path, main, "vision.yaml")).horizon == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINE + "sizee: 64\n", r"task\.sizee: no such option \(found 64\); nearest: task\.size"),
        (MINE.replace("size: 84\n", ""), r"task\.size: is missing in your files; its value in configs/ is 64"),
        (MINE.replace("84", "big"), r"task\.size: must be a whole number \(such as 64\), found 'big'"),
        (MINE.replace("84", "[84]"), r"task\.size: must be a whole number \(such as 64\), found \[84\]"),
        (MINE.replace("84", "{x: 1}"), r"task\.size\.x: no such option|task\.size: is missing in your files"),
        ("", r"task"),
        ("[1, 2]", r"Index 'name' \(str\) is not an int"),
        ("a: [", r"while parsing"),
        (b"\xff\xfe\x00", r"mine\.yaml|decode|character"),
        ("name: !!python/object/apply:os.system [id]\n", r"could not determine a constructor for the tag"),
        ("defaults: [/task/mine]\n" + MINE, r"circular references"),
        ("[" * 90_000, r"mine\.yaml: must have at most 1000 opening brackets"),
        ("a: &a [x, x]\nb: [*a, *a]\n" + MINE, r"mine\.yaml: aliases \(\*name\) are not allowed"),
        ("".join(f"a{i}: ${{a{i + 1}}}${{a{i + 1}}}\n" for i in range(40)) + MINE, r"mine\.yaml: .*20 references"),
        ("#" * 200_000, r"mine\.yaml: must be a file of at most 100,000 bytes"),
    ],
)
def test_a_file_of_ones_own_that_is_wrong(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load("vision", ["task=mine"], own(tmp_path, text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 3000


def test_the_folder_of_ones_own_files_is_an_argument(tmp_path: Path, monkeypatch, capsys) -> None:
    called: list = []
    monkeypatch.setattr(sys, "argv", ["x.py", f"--config-dir={own(tmp_path, MINE)}", "task=mine"])
    configured("vision")(called.append)()
    assert called[0].task.size == 84
    monkeypatch.setattr(sys, "argv", ["x.py", f"--config-dir={tmp_path / 'absent'}"])
    with pytest.raises(SystemExit):
        configured("vision")(called.append)()
    assert "absent: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("vision", "processes=x", r"processes: must be null or a whole number, found 'x'"),
        ("vision", "trackers=[1]", r"trackers\[0\]: must be a text \(such as 'tensorboard'\), found 1"),
        ("vision", "planner.multipliers=[1,a]", r"planner\.multipliers\[1\]: must be a whole number"),
    ],
)
def test_options_without_a_value_and_lists_have_types_too(name: str, override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(name, [override])


def test_help_lists_every_option(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["train_vision.py", "--help"])
    called = []
    configured("vision")(called.append)()
    out = capsys.readouterr().out
    assert not called
    assert "Usage: train_vision.py" in out
    for word in ("sampler:", "candidates:", "learning_rate", "output_dir:", "debug:"):
        assert word in out


@pytest.mark.slow
def test_errors_are_one_line_and_status_2() -> None:
    program = (
        "from mpdiffuser.config import configured\n"
        "from mpdiffuser.errors import InputError\n"
        "@configured('evaluate')\n"
        "def main(cfg):\n"
        "    raise InputError(f'pipeline: {cfg.pipeline} is not here')\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "pipeline=nowhere"], capture_output=True, text=True, cwd=CONFIGS.parent
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: pipeline: nowhere is not here\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dynamics.embedding=${nothing}", r"configuration: Interpolation key 'nothing' not found"),
        ("debug=${nothing}", r"configuration: Interpolation key 'nothing' not found"),
        ("horizon=${horizon}", r"configuration: Recursive"),
        ("train.planner.steps=${output_dir}", r"train\.planner\.steps: must be a whole number"),
        ("planner=${evaluation}", r"Could not find .planner/default."),
        ("planner=${horizon}", r"resolving interpolation .\$\{horizon\}."),
    ],
)
def test_references_are_followed_before_anything_is_checked(override: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load("state", [override])
    assert load("state", ["train.planner.steps=${horizon}"]).train.planner.steps == 16


@pytest.mark.parametrize("text", ["a: 1\n", "task: 3\n", "defaults: []\n"])
def test_a_main_file_of_ones_own_without_its_groups(tmp_path: Path, text: str) -> None:
    (tmp_path / "vision.yaml").write_text(text)
    with pytest.raises(InputError, match=r"is missing in your files|is a section with several options"):
        load("vision", [], tmp_path)


@pytest.mark.parametrize("found", [float("nan"), float("inf"), 10**400, -(10**400), "x"])
def test_a_number_is_one_that_can_be_counted_with(found: Any) -> None:
    with pytest.raises(InputError, match="discount: must be a number"):
        _check_type("discount", 0.99, found)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["task", "encoder", "planner", "dynamics"])
def test_every_group_member_loads(group: str) -> None:
    """A file of a group gives every option a value; what it does not say stands in the code or in `defaults`."""
    for file in (CONFIGS / group).glob("*.yaml"):
        if file.stem == "base":  # what the others share
            continue
        told = OmegaConf.to_container(OmegaConf.load(file))
        assert isinstance(told, dict)
        told.pop("defaults", None)
        config = load("state" if "suite" in told else "vision", [f"{group}={file.stem}"])
        assert settings(config[group]).items() >= told.items()


@pytest.mark.slow
def test_the_defaults_of_the_code_are_those_of_the_configuration() -> None:
    """Each stands once, beside the class that it belongs to."""
    state, vision = load("state", []), load("vision", [])
    for config in (state, vision):
        for section, kind in (("planner", Planner), ("dynamics", Dynamics), ("ranker", Ranker)):
            parameters = inspect.signature(kind).parameters
            assert settings(config[section]) == {
                key: list(each.default) if isinstance(each.default, tuple) else each.default
                for key, each in parameters.items()
                if key not in ("latent_dim", "action_dim", "horizon", "condition_dim", "discount", "costs")
                and not key.startswith("goal_")
            }
    usual = asdict(SamplerConfig(guidance_interval=[0.0, 1.0], safe_action=[]))
    assert settings(vision.sampler) == settings(state.sampler) == usual
    assert set(settings(load("evaluate", ["pipeline=x"]).sampler).values()) == {None}  # as saved with the pipeline


def test_sections_derive_from_the_methods() -> None:
    for config in (load("state", ["method=all"]), load("vision", [])):
        sections = {name: dict(method.settings) for name, method in METHODS.items() if method.settings}
        assert settings(config.baselines) == sections
        recipes = [recipe for recipe in recipes_of(METHODS).values() if recipe.train is not None]
        for recipe in recipes:
            assert settings(config.train[recipe.section or recipe.name]) == dict(recipe.train or {})
        own = {"representation", "decoder"} if "encoder" in config else set()
        assert set(config.train) == {recipe.section or recipe.name for recipe in recipes} | own


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_a_group_of_each_method(name: str) -> None:
    """What is trained and evaluated: the method and what it is compared with, in the order of tables."""
    config, method = load("state", [f"method={name}"]), METHODS[name]
    assert config.evaluation.methods == [each for each in METHODS if each == name or each in method.evaluated_with]
    assert config.output_dir == f"results/hopper-medium-v2{'' if name == 'mpdiffuser' else f'-{name}'}"


def test_all_methods_at_once_and_one_that_there_is_not() -> None:
    config = load("state", ["method=all"])
    assert config.evaluation.methods == list(METHODS) and config.run.endswith("-all")
    with pytest.raises(InputError) as caught:
        load("state", ["method=magic"])
    assert all(name in str(caught.value) for name in METHODS)


@pytest.mark.slow
def test_debug_shrinks_and_the_user_has_the_last_word() -> None:
    usual, small = load("vision", []), load("vision", ["debug=true"])
    assert small.train.planner.steps < usual.train.planner.steps / 10
    assert small.episodes < usual.episodes
    assert small.output_dir != usual.output_dir
    mine = load("vision", ["debug=true", "train.planner.steps=77", "output_dir=elsewhere"])
    assert (mine.train.planner.steps, mine.output_dir) == (77, "elsewhere")
    assert mine.train.dynamics.steps == small.train.dynamics.steps


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vision", "state"])
def test_debug_is_a_rule_for_every_model_and_every_baseline(name: str) -> None:
    """Those of a method that is added tomorrow too: the rules name none."""
    usual, small = load(name, ["method=all"]), load(name, ["method=all", "debug=true"])
    assert {section.steps for section in small.train.values()} == {20}
    for section in (small.sampler, *(each for each in small.baselines.values() if "candidates" in each)):
        assert (section.candidates, section.chunk) == (2, 4)
    assert small.output_dir.startswith("results/debug-")
    assert settings(small.baselines.iql) == settings(usual.baselines.iql)  # it has none of these options
    for method in METHODS:
        assert not any(method in rule.split(".") for rule in usual.debug_rules)


def test_the_rule_may_choose_the_levels_where_the_default_is_a_number() -> None:
    assert load("state", ["method=diffuser", "baselines.diffuser.steps=null"]).baselines.diffuser.steps is None
    with pytest.raises(InputError, match=r"baselines.diffuser.candidates: must be a whole number"):
        load("state", ["method=diffuser", "baselines.diffuser.candidates=null"])


def test_a_rule_changes_the_options_that_match() -> None:
    config = OmegaConf.create({"a": {"x": {"steps": 1}, "y": {"steps": 2}}, "steps": 3, "b": {"steps": 4}})
    config.debug_rules = ["a.*.steps=7", "nothing.*=1", "steps=5"]
    assert list(_debug_overrides(config)) == ["a.x.steps=7", "a.y.steps=7", "steps=5"]


@pytest.mark.parametrize(
    "value",
    [
        "lr=0.01/a=b",
        "with space, comma",
        "[1]{2}(3)<4>",
        "it's",
        "'a' \"b\" c",
        "back\\\\slash\\\\",
        "2024",
        "true",
        "#a;b&c|d",
        "é/ü",
        "a: b",
        "a'",
    ],
)
@pytest.mark.parametrize(("name", "option"), [("vision", "output_dir"), ("vision", "dataset"), ("state", "data_dir")])
def test_a_path_is_taken_as_the_shell_gives_it(name: str, option: str, value: str) -> None:
    assert load(name, [f"{option}={value}"])[option] == value


@pytest.mark.parametrize("name", ["vision", "state"])
def test_a_dataset_with_other_letters_and_spaces(name: str) -> None:
    cfg = load(name, ["dataset=/tmp/größe 2.npz", "debug=true"])
    assert cfg.output_dir == "results/debug-gr__e_2" and cfg.dataset == "/tmp/größe 2.npz"


@pytest.mark.parametrize(
    ("name", "option"), [("collect", "data_root"), ("evaluate", "pipeline"), ("export", "pipeline")]
)
def test_paths_of_the_other_commands(name: str, option: str) -> None:
    assert load(name, [f"{option}=a=1,b"])[option] == "a=1,b"


def test_paths_with_hydras_quotes_references_and_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    options = ["output_dir='a=b'", "dataset=null", "data_root=~/x=1"]
    cfg = load("vision", options)
    assert (cfg.output_dir, cfg.dataset, cfg.data_root) == ("a=b", None, "/somewhere/x=1")
    assert load("vision", ["output_dir=x=1/${run}"]).output_dir == "x=1/cartpole_swingup-mixed"


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("-n", "-n: no such flag; there are --config-dir=FOLDER, --multirun and --help"),
        ("horizon=8,16", "horizon: must be one value, found 'horizon=8,16'; a list is .*; several runs: --multirun"),
        ("train.planner.steps=range(1,3)", r"train\.planner\.steps: must be one value"),
        (
            "--config-name=mine",
            "--config-name=mine: no such flag; there are --config-dir=FOLDER, --multirun and",
        ),
        ("horizon", "'horizon': must be name=value"),
        ("task.name=a=b", r"task\.name: cannot read 'task\.name=a=b' .*quote .* twice: \"task\.name='TEXT'\""),
    ],
)
def test_words_of_hydra_that_are_no_options(word: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load("vision", [word])


def test_a_flat_configuration() -> None:
    found = flat(load("state", ["seed=4", "task=dsrl/OfflineHalfCheetahVelocityGymnasium-v1"]))
    assert found["seed"] == 4 and found["task.name"] == "OfflineHalfCheetahVelocityGymnasium-v1"
    methods = ["random", "cloning", "planner", "mpdiffuser", "expert"]
    assert found["evaluation.methods"] == methods and found["discount"] is None
    assert not any(isinstance(value, dict) for value in found.values())
