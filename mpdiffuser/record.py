"""The record of a dataset: what its observations and actions are.

Every reader writes a record, a dataset's folder and a pipeline keep it, and every check reads it. As JSON:

    {"observations": {"frames": {"kind": "picture", "shape": [96, 128, 3]},
                      "observations": {"kind": "proprioception", "shape": [7], "names": ["shoulder", ...]}},
     "actions": {"low": [-90.0, ...], "high": [90.0, ...], "bounds": "declared", "names": ["shoulder", ...]}}
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from mpdiffuser.action_scale import ActionMap, ActionScale
from mpdiffuser.errors import InputError

PICTURE, PROPRIOCEPTION, TRUE_STATE = "picture", "proprioception", "true_state"
KINDS = {  # what an observation is -> dtype and number of dimensions of its array
    PICTURE: ("uint8", 4),  # of a camera, (M, height, width, 3)
    PROPRIOCEPTION: ("float32", 2),  # what the robot measures, (M, o); a policy sees it
    TRUE_STATE: ("float32", 2),  # of the simulator, (M, o); from pixels it is a training target that no policy sees
}
LARGEST = 2**14  # entries of a vector, and pixels a side
FARTHEST = float(np.finfo(np.float32).max)  # bound of an action
DECLARED, SEEN = "declared", "seen"
TOLERANCE = 1e-5  # of the range: actions beyond the bounds by less are rounding errors


@dataclass(frozen=True)
class Observation:
    """An array of observations.

    Args:
        kind: of `KINDS`.
        shape: of one observation.
        names: of the entries of a vector; empty: unknown.

    Raises:
        InputError: for another kind, or a shape or names that do not fit it.
    """

    kind: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise InputError(f"record: kind: must be one of {', '.join(KINDS)}, found {self.kind!r}")
        whole = all(type(n) is int and 0 < n <= LARGEST for n in self.shape)
        if len(self.shape) != KINDS[self.kind][1] - 1 or not whole:
            raise InputError(f"record: shape of a {self.kind}: found {self.shape}")
        texts = all(isinstance(name, str) for name in self.names)
        if self.names and not (texts and (len(self.names),) == self.shape):
            raise InputError(f"record: names: must be {self.shape} texts, found {self.names}")

    @property
    def dtype(self) -> str:
        """The dtype of the array."""
        return KINDS[self.kind][0]


@dataclass(frozen=True)
class Actions:
    """The bounds of the actions, in the data's units. Models see [-1, 1], by an affine map.

    Args:
        low, high: (m,), the lowest and the highest allowed action.
        bounds: "declared" by the data or their environment, or "seen": the range of the data.
        names: of the entries; empty: unknown.

    Raises:
        InputError: if bounds are not finite numbers, or low exceeds high.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    bounds: str = SEEN
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.bounds not in (DECLARED, SEEN):
            raise InputError(f"record: actions.bounds: must be {DECLARED} or {SEEN}, found {self.bounds!r}")
        if not self.low or len(self.low) != len(self.high) or len(self.names) not in (0, len(self.low)):
            raise InputError(f"record: actions: low, high and names must have one length, found {self}")
        if not all(isinstance(name, str) for name in self.names):
            raise InputError(f"record: actions.names: must be texts, found {self.names}")
        numbers = all(type(n) in (int, float) and abs(n) <= FARTHEST for n in (*self.low, *self.high))
        if not numbers or any(low > high for low, high in zip(self.low, self.high)):
            raise InputError(f"record: actions: bounds must be finite and low at most high, found {self}")

    @classmethod
    def seen(cls, actions: np.ndarray, lasts: np.ndarray) -> Self:
        """Return the range of the actions (M, m) of a dataset that declares no bounds.

        Args:
            actions: of all rows.
            lasts: (E,), the rows without an action: the final row of each episode.
        """
        taken = np.ones((len(actions), 1), bool)
        taken[lasts] = False
        low, high = actions.min(0, where=taken, initial=np.inf), actions.max(0, where=taken, initial=-np.inf)
        return cls(*(tuple(end.astype(float).tolist()) for end in (low, high)))  # type: ignore[arg-type]

    @classmethod
    def of_all(cls, parts: Sequence[Self]) -> Self:
        """Return the bounds of several datasets as one: those that they all declare, or the range of all.

        Raises:
            InputError: if they have other numbers of actions, or declare different bounds.
        """
        first = parts[0]
        for part in parts:
            same = part == first if DECLARED in (part.bounds, first.bounds) else len(part.low) == len(first.low)
            if not same:
                raise InputError(f"actions: bounds differ: {part} and {first}")
        low, high = (
            tuple(map(pick, zip(*ends)))
            for pick, ends in ((min, [part.low for part in parts]), (max, [part.high for part in parts]))
        )
        return replace(first, low=low, high=high)

    @classmethod
    def unit(cls, dim: int) -> Self:
        """Return the declared bounds -1 and 1 of `dim` actions."""
        return cls((-1.0,) * dim, (1.0,) * dim, DECLARED)

    def scale(self, change: ActionMap | None = None) -> ActionScale:
        """Return the map between the data's units and [-1, 1]. `change` is that of a changed robot."""
        return ActionScale(np.array(self.low, np.float64), np.array(self.high, np.float64), change)

    def beyond(self, rows: np.ndarray) -> np.ndarray:
        """Return which of the actions (N, m) are outside of the bounds, (N, m)."""
        low, high = np.array(self.low), np.array(self.high)
        slack = TOLERANCE * np.maximum(high - low, 1e-6)
        return (rows < low - slack) | (rows > high + slack)


def read_observations(
    observations: Any, count: int, record: "Record | None"
) -> tuple[np.ndarray | dict[str, np.ndarray], bool]:
    """Check observations and return them with a batch axis, and whether they came without one.

    Args:
        observations: a dict name -> (B, ...), or an array (B, ...) if the record has one observation. For one robot
            (B = 1) the batch axis can be left out.
        count: B.
        record: of the data; None: observations are an array of any shape.

    Raises:
        InputError: naming what is missing, or of another shape or dtype than the data.
    """
    if record is None:
        _check_count(len(observations), count)
        return np.asarray(observations), False
    wanted = record.observations
    given = observations if isinstance(observations, Mapping) else dict.fromkeys(wanted, observations)
    if set(given) != set(wanted) or (len(wanted) > 1 and given is not observations):
        found = sorted(map(str, given)) if given is observations else type(observations).__name__
        raise InputError(f"observations: must be a dict of {_described(wanted)}, found {found}")
    arrays, single = {}, False
    for name, each in wanted.items():
        array = np.asarray(given[name])
        alone = count == 1 and array.shape == each.shape
        fits = array.dtype == each.dtype or (array.dtype.kind in "fiu" and each.dtype == "float32")
        if not fits or not (alone or array.shape[1:] == each.shape):
            found = f"{name} {array.dtype} {array.shape}"
            raise InputError(f"observations: the pipeline takes {_described(wanted)}, found {found}")
        array = array[None] if alone else array
        _check_count(len(array), count)
        arrays[name], single = array, alone
    return arrays, single


def _described(wanted: Mapping[str, Observation]) -> str:
    return ", ".join(f"{name} {each.dtype} (B, {', '.join(map(str, each.shape))})" for name, each in wanted.items())


def _check_count(found: int, count: int) -> None:
    if found != count:
        raise InputError(f"observations: must be one for each of the {count} seeds of reset, found {found}")


@dataclass(frozen=True)
class Record:
    """What a dataset holds.

    Args:
        observations: name of the array -> what it is, in the order of the names.
        actions: their bounds and names.
    """

    observations: Mapping[str, Observation]
    actions: Actions

    def __post_init__(self) -> None:
        # one order everywhere, also after JSON with sorted keys: encoders join their inputs in this order
        object.__setattr__(self, "observations", dict(sorted(self.observations.items())))

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], lasts: np.ndarray) -> Self:
        """Return the record of arrays of which nothing is declared.

        `observations` are proprioception, and the bounds of actions are `Actions.seen`, with the rows `lasts` (E,).
        """
        found = {name: PROPRIOCEPTION for name in ("observations",) if name in arrays}
        found |= {name: PICTURE for name, array in arrays.items() if (str(array.dtype), array.ndim) == KINDS[PICTURE]}
        observations = {name: Observation(kind, tuple(arrays[name].shape[1:])) for name, kind in found.items()}
        return cls(observations, Actions.seen(np.asarray(arrays["actions"]), lasts))

    def only(self, *kinds: str) -> Self:
        """Return the record with the observations of these kinds only."""
        return replace(self, observations={name: self.observations[name] for name in self.names(*kinds)})

    def with_actions(self, actions: Actions) -> Self:
        """Return the record with other bounds of the actions."""
        return replace(self, actions=actions)

    def names(self, *kinds: str) -> list[str]:
        """Return the names of the observations of these kinds, in the record's order."""
        return [name for name, each in self.observations.items() if each.kind in kinds]

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        observations = {name: _plain(each) for name, each in self.observations.items()}
        return {"observations": observations, "actions": _plain(self.actions)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """Return the record of a JSON object. It may come from a stranger's folder, so every field is checked.

        Args:
            value: the object.
            where: what errors call it, such as "data/meta.json: record".

        Raises:
            InputError: naming `where` and the field.
        """
        try:
            observations = {
                name: Observation(each["kind"], _items(each, "shape"), _items(each, "names"))
                for name, each in _object(value, "observations").items()
            }
            actions = _object(value, "actions")
            lists = {key: _items(actions, key) for key in ("low", "high", "names")}
            return cls(observations, Actions(**actions | lists))
        except InputError as error:
            raise InputError(f"{where}: {error}"[:400]) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: not a record of a dataset ({type(error).__name__}: {error})"[:300]) from error


def _items(parent: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    found = parent[key] if key != "names" else parent.get(key, [])
    if not isinstance(found, list):
        raise InputError(f"{key}: must be a list, found {found!r}"[:200])
    return tuple(found)


def _object(parent: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(parent[key], dict):
        raise InputError(f"{key}: must be an object, found {parent[key]!r}"[:200])
    return parent[key]


def _plain(value: Observation | Actions) -> dict[str, Any]:
    return {key: list(each) if isinstance(each, tuple) else each for key, each in asdict(value).items()}
