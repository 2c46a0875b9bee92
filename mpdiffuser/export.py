"""Export the policy of a pipeline as one graph: python -m mpdiffuser.export pipeline=FOLDER engine=onnx

One run of the graph is one decision: observations, history and noise in, action and plan out
(`mpdiffuser.policy_graph`). The folder holds policy.onnx, or policy.xml and policy.bin for OpenVINO, and policy.json,
which tells inputs, outputs, the bounds of the actions and the pipeline. The default folder is beside the pipeline's
folder, because a pipeline's folder has only weights and JSON. examples/ has programs that run it, without torch and in
C++.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mpdiffuser.config import configured, settings
from mpdiffuser.engines import graph, require
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, publish, writing
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.policy_graph import PolicyGraph, described

KINDS = ("openvino", "onnx")
FACTS = "policy.json"


def export(
    folder: Path, engine: str, output: Path, sampler: Mapping[str, Any] | None = None, robots: int = 1
) -> tuple[Path, PolicyGraph]:
    """Write the policy of a pipeline folder into `output`. The folder appears only when it is complete.

    Args:
        folder: the pipeline folder.
        engine: "onnx" or "openvino", the format of the graph.
        output: the folder to write; an earlier export in it is replaced.
        sampler: fields of `SamplerConfig`; where one is missing or None, the one that is saved in the pipeline.
        robots: number of robots that the graph controls at once.

    Returns:
        The graph's file, and the policy.

    Raises:
        InputError: for an engine without graphs, a folder that is not a pipeline, an output that cannot be written, and
            as `PolicyGraph`.
    """
    if engine not in KINDS:
        raise InputError(f"engine: must be one of {', '.join(KINDS)}, found {engine!r}")
    require(engine)
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"output_dir: {output} lies in the pipeline's folder, which holds weights and JSON alone")
    if output.exists() and not (output / FACTS).is_file():
        raise InputError(f"output_dir: {output} holds something else; choose another")
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    policy = PolicyGraph(pipeline, pipeline.sampler_config(sampler or {}), robots)
    drawn = graph(policy, policy.example(), policy.outputs, any_batch=False)
    facts = {"engine": engine, "pipeline": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()}
    partial = output.with_name(output.name + ".partial")
    with writing(output):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        file = _write(drawn, partial / "policy", engine)
        (partial / FACTS).write_text(json.dumps(facts | described(policy), indent=1) + "\n")
        publish(partial, output)
    return output / file.name, policy


def _write(drawn: bytes, stem: Path, engine: str) -> Path:
    if engine == "onnx":
        file = stem.with_suffix(".onnx")
        file.write_bytes(drawn)
        return file
    import openvino

    openvino.save_model(openvino.Core().read_model(io.BytesIO(drawn)), stem.with_suffix(".xml"), False)
    return stem.with_suffix(".xml")


@configured("export")
def main(cfg: DictConfig) -> None:
    """Export the pipeline `cfg.pipeline` and print the written file with its inputs and outputs."""
    folder = Path(cfg.pipeline)
    output = Path(cfg.output_dir or f"{folder.resolve()}-{cfg.engine}")
    file, policy = export(folder, cfg.engine, output, settings(cfg.sampler), cfg.robots)
    for name, part in policy.example().items():
        print(f"input: {name} {str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}")
    print(f"outputs: {', '.join(policy.outputs)}")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
