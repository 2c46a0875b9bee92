"""The ablation on a tiny pipeline that falls over at once: the command, what it reuses, and its page."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import ablation
from mpdiffuser.errors import InputError
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from vision import IdentityEncoder

D, M, H = 11, 3, 8  # a hopper


def pipeline(randomize, seed: int) -> MPDiffuserPipeline:
    sizes = dict(latent_dim=D, action_dim=M, horizon=H, width=8, multipliers=(1, 2), embedding=16)
    random = np.random.default_rng(seed)
    ranker = randomize(Ranker(D, M, hidden=8), seed=seed)
    ranker.returns.fit(random.normal(size=(50, 1)))
    info = {
        "task": "hopper",
        "environment": {"env_id": "Hopper-v4"},
        "file": "f.hdf5",
        "suite": "d4rl",
        "stand_in": True,
    }
    return MPDiffuserPipeline(
        IdentityEncoder(D, M),
        Normalizer(D).fit(random.normal(size=(50, D))),
        Normalizer(M).fit(random.uniform(-1, 1, (50, M))),
        Marginals(1).fit(random.normal(size=(50, 1))),
        randomize(Planner(**sizes), seed=seed),
        randomize(Dynamics(**sizes), seed=seed + 1),
        ranker,
        NoiseSchedule(100),
        info=info,
    )


def test_every_setting_can_be() -> None:
    for name, setting in ablation.SETTINGS.items():
        config = SamplerConfig(**ablation.BASE | setting)
        assert (
            name.startswith(("p =", "joint", "guidance", "target", "temp", "2 of", "4 cand", "16 cand"))
            or str(config.steps) == name.rpartition(" ")[2]
        )


@pytest.mark.filterwarnings("ignore")
def test_the_command(randomize, tmp_path: Path, capsys) -> None:
    for seed, name in ((0, "a"), (1, "b")):
        pipeline(randomize, seed).save_pretrained(tmp_path / name)
    names = ["fused, 3", "planner, 3", "release, 3"]
    arguments = [f"hopper={tmp_path / 'a'}", f"hopper@1={tmp_path / 'b'}", "--episodes", "2", "--settings", *names]
    arguments += ["--folder", str(tmp_path / "results"), "--docs", str(tmp_path)]
    ablation.main(arguments)
    files = sorted((tmp_path / "results").rglob("*.json"))
    assert len(files) == 6
    text = (tmp_path / "ablation.md").read_text()
    found = {file.stem: json.loads(file.read_text()) for file in files if file.parent.name == "hopper"}
    for name in names:
        m = found[ablation.file_name(name)]
        assert f"| {name} | {np.mean(m['returns']):.0f} ± " in text
    assert "2 training seeds" in text and "f.hdf5, a stand-in, not d4rl's data" in text
    assert (tmp_path / "ablation.png").stat().st_size > 10_000
    stamps = [file.stat().st_mtime_ns for file in files]
    ablation.main(arguments)  # all is reused
    assert stamps == [file.stat().st_mtime_ns for file in files]
    with pytest.raises(InputError, match="of another pipeline or with other settings"):
        ablation.main([f"hopper={tmp_path / 'b'}", *arguments[2:]])
