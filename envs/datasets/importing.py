"""Datasets for training: one dataset, or several that fit together; pixels are kept as an Episodes folder."""

import contextlib
import glob
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from envs.datasets.opening import dataset_files, open_dataset, stacked
from mpdiffuser.episodes import VERSION, Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import fingerprint, writing
from mpdiffuser.record import PICTURE, SEEN, Actions

Sources = str | Sequence[str]


def open_datasets(
    sources: Sources,
    data_dir: str | None = None,
    keys: Mapping[str, str | None] | None = None,
    pictures: bool = True,
) -> Episodes:
    """Open a dataset, or several as one.

    Args:
        sources: ids or paths (see `open_dataset`).
        data_dir: folder of a task's file; None: the suite's own cache folder.
        keys: our names of arrays -> their names in an npz or HDF5 file; None: the same name.
        pictures: whether pictures are kept; data of nothing else keep them.

    Raises:
        InputError: as `open_dataset`, or if the datasets do not fit together.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    renamed = {name: key for name, key in (keys or {}).items() if key}
    found = joined([open_dataset(name, data_dir, keys=renamed, pictures=pictures) for name in names])
    return found if pictures else _without_pictures(found)


def import_datasets(
    sources: Sources,
    data_root: str,
    data_dir: str | None = None,
    keys: Mapping[str, str | None] | None = None,
) -> Episodes:
    """Open a dataset, or several as one, memory-mapped.

    An Episodes folder is opened as it is. Other data are converted once, to a folder in data_root/imported, whose name
    has what the content depends on: the paths, sizes and times of the files, and the keys. Pictures are copied in
    blocks, and a killed conversion is resumed.

    Args:
        sources, data_dir, keys: see `open_datasets`.
        data_root: folder of the converted data.

    Raises:
        InputError: as `open_datasets`, or if the folder cannot be written.
    """
    names = [sources] if isinstance(sources, str) else list(sources)
    if len(names) == 1 and (Path(names[0]).expanduser() / "meta.json").is_file():
        return Episodes.load(Path(names[0]).expanduser())
    root = Path(data_root) / "imported"
    folder = root / f"{Path(names[0]).stem[:48] or 'data'}-{_identity(names, data_dir, keys)}"
    if not folder.exists():  # a folder has this name only when it is complete
        with _locked(root):
            if folder.exists():  # imported by the process that had the lock
                return Episodes.load(folder)
            stem = glob.escape(folder.name.rpartition("-")[0])
            for stale in root.glob(f"{stem}-{'[0-9a-f]' * 12}.partial"):
                if stale.name != f"{folder.name}.partial":  # of these data before they changed
                    shutil.rmtree(stale, ignore_errors=True)
            print(f"{folder}: importing {', '.join(names)}")
            open_datasets(names, data_dir, keys).save(folder)
    return Episodes.load(folder)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is missing; tells of another process that has it."""
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{root}: waiting for another process that imports data")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def joined(parts: Sequence[Episodes]) -> Episodes:
    """Return the episodes of several datasets as one dataset.

    Arrays that not all parts have are left out, if they are not required, and listed in info["left_out"]. The bounds of
    actions are `Actions.of_all`.

    Raises:
        InputError: if the parts differ in their observations, their actions, their rewards or their seconds a decision.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        _check_fit(first, part)
    common = [key for key in first.arrays if all(key in part for part in parts)]
    dropped = sorted({key for part in parts for key in part.arrays} - set(common))
    left_out = {name: reason for part in parts for name, reason in part.info.get("left_out", {}).items()}
    left_out |= dict.fromkeys(dropped, "not in all of the datasets")
    info = {key: value for key, value in first.info.items() if all(part.info.get(key) == value for part in parts)}
    info |= {"joined": [str(part.path) for part in parts], "left_out": left_out}
    known = [part.info["decision_seconds"] for part in parts if part.info.get("decision_seconds") is not None]
    info |= {"decision_seconds": known[0]} if known else {}
    info |= {"missing": sorted({key for part in parts for key in _missing(part)})}
    return stacked(parts, common, info, first.path)


def _without_pictures(episodes: Episodes) -> Episodes:
    dropped = episodes.record.names(PICTURE)
    if len(dropped) == len(episodes.record.observations):
        return episodes
    kept = [name for name in episodes.record.observations if name not in dropped]
    record = replace(episodes.record, observations={name: episodes.record.observations[name] for name in kept})
    arrays = {name: array for name, array in episodes.arrays.items() if name not in dropped}
    return replace(episodes, arrays=arrays, record=record)


def _check_fit(first: Episodes, other: Episodes) -> None:
    a, b = first.record, other.record
    facts = {
        "observations": ({k: (v.kind, v.shape) for k, v in each.observations.items()} for each in (a, b)),
        "actions": (_declared(each.actions) for each in (a, b)),
        "rewards": ("none" if "rewards" in _missing(each) else "some" for each in (first, other)),
        "decision_seconds": (each.info.get("decision_seconds") for each in (first, other)),
    }
    for name, pair in facts.items():
        ours, theirs = pair
        unknown = name == "decision_seconds" and None in (ours, theirs)
        if ours != theirs and not unknown:
            raise InputError(
                f"dataset: {other.path} does not fit {first.path}: {name}: found {theirs}, expected {ours}; train on "
                "them separately"
            )


def _missing(episodes: Episodes) -> list[str]:
    """Return the keys that a dataset's files lacked."""
    return episodes.info.get("missing", [])


def _declared(actions: Actions) -> Actions | int:
    """Return what must be equal: the bounds if they are declared, or else the number of actions."""
    return len(actions.low) if actions.bounds == SEEN else actions


def _identity(names: Sequence[str], data_dir: str | None, keys: Mapping[str, str | None] | None) -> str:
    files = [fingerprint(dataset_files(name, data_dir)) for name in names]
    about = (VERSION, list(names), data_dir, sorted((keys or {}).items()), files)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:12]
