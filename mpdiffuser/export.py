"""Export the networks of a pipeline as graphs: python -m mpdiffuser.export pipeline=FOLDER engine=onnx

Graphs run without Python. The networks are the planner, the dynamics model and, for a pipeline from pixels, the
encoder's frame_net. The graphs are float32, take any batch size, and name their inputs like the arguments of `forward`.
The files are <name>.onnx, or <name>.xml and <name>.bin for OpenVINO, and export.json, which identifies the pipeline.
The default folder is beside the pipeline's folder, because a pipeline's folder has only weights and JSON.

A controller does not need these files. It compiles the weights itself (sampler.engine=), in about a second.
"""

import hashlib
import io
import json
import shutil
from pathlib import Path

from omegaconf import DictConfig

from mpdiffuser.config import configured
from mpdiffuser.engines import graph, require
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, publish, writing
from mpdiffuser.pipeline import MPDiffuserPipeline

KINDS = ("openvino", "onnx")


def export(folder: Path, engine: str, output: Path) -> list[Path]:
    """Write the graphs of a pipeline folder into `output`. The folder appears only when it is complete.

    Args:
        folder: the pipeline folder.
        engine: "onnx" or "openvino", the format of the graphs.
        output: the folder to write; an earlier export in it is replaced.

    Returns:
        The file of each network.

    Raises:
        InputError: for an engine without graphs, a folder that is not a pipeline, or an output that cannot be written.
    """
    if engine not in KINDS:
        raise InputError(f"engine: must be one of {', '.join(KINDS)}, found {engine!r}")
    require(engine)
    if output.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"output_dir: {output} lies in the pipeline's folder, which holds weights and JSON alone")
    if output.exists() and not (output / "export.json").is_file():
        raise InputError(f"output_dir: {output} holds something else; choose another")
    pipeline = MPDiffuserPipeline.from_pretrained(folder)
    partial, files = output.with_name(output.name + ".partial"), []
    with writing(output):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, (module, example) in pipeline.networks().items():
            files.append(_write(graph(module, example), partial / name, engine))
        made_of = {"pipeline": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest(), "engine": engine}
        (partial / "export.json").write_text(json.dumps(made_of, indent=1) + "\n")
        publish(partial, output)
    return [output / file.name for file in files]


def _write(network: bytes, stem: Path, engine: str) -> Path:
    if engine == "onnx":
        file = stem.with_suffix(".onnx")
        file.write_bytes(network)
        return file
    import openvino

    openvino.save_model(openvino.Core().read_model(io.BytesIO(network)), stem.with_suffix(".xml"), False)
    return stem.with_suffix(".xml")


@configured("export")
def main(cfg: DictConfig) -> None:
    """Export the pipeline `cfg.pipeline` and print the written files."""
    folder = Path(cfg.pipeline)
    for file in export(folder, cfg.engine, Path(cfg.output_dir or f"{folder.absolute()}-{cfg.engine}")):
        print(f"written: {file}")


if __name__ == "__main__":
    main()
