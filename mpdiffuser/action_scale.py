"""Maps between actions in the data's units and actions in [-1, 1], in which the models compute."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from mpdiffuser.errors import InputError

SMALLEST = 0.05  # of a singular value of A: a smaller one cannot be undone


@dataclass(frozen=True)
class ActionMap:
    """T u = A u + b, of actions in [-1, 1].

    Args:
        matrix: A, (m, m), as nested tuples.
        bias: b, (m,).

    Raises:
        InputError: for numbers that are not finite, other shapes, or a matrix that cannot be inverted.
    """

    matrix: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]

    def __post_init__(self) -> None:
        m = len(self.bias)
        numbers = [number for row in (*self.matrix, self.bias) for number in row]
        if len(self.matrix) != m or any(len(row) != m for row in self.matrix):
            raise InputError(f"action map: must be a square matrix and a bias of one size, found {self}"[:300])
        if not all(type(number) in (int, float) and abs(number) < 1e6 for number in numbers):
            raise InputError(f"action map: must be finite numbers, found {self}"[:300])
        if np.linalg.svd(np.array(self.matrix), compute_uv=False).min() < SMALLEST / 2:
            raise InputError(f"action map: the matrix cannot be inverted: {self.matrix}"[:300])

    @classmethod
    def of(cls, matrix: np.ndarray, bias: np.ndarray) -> Self:
        """Return the map of arrays (m, m) and (m,); singular values of the matrix are at least `SMALLEST`."""
        u, s, v = np.linalg.svd(matrix.astype(float))
        kept = (u * np.maximum(s, SMALLEST)) @ v if s.min() < SMALLEST else matrix.astype(float)
        return cls(tuple(map(tuple, kept.tolist())), tuple(bias.astype(float).tolist()))

    @classmethod
    def identity(cls, dim: int) -> Self:
        """Return the map of `dim` actions that changes nothing."""
        return cls.of(np.eye(dim), np.zeros(dim))

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """Return the map of an adaptation, {"map": {"matrix": ..., "bias": ...}}, which a stranger may have written.

        Raises:
            InputError: naming `where`.
        """
        try:
            found = value["map"]
            return cls(tuple(map(tuple, found["matrix"])), tuple(found["bias"]))
        except InputError as error:
            raise InputError(f"{where}: {error}"[:400]) from error
        except (KeyError, TypeError) as error:
            raise InputError(f"{where}: not an action map ({type(error).__name__}: {error})"[:300]) from error

    def to_json(self) -> dict[str, Any]:
        """Return the map as a JSON object."""
        return {"matrix": [list(row) for row in self.matrix], "bias": list(self.bias)}


class ActionScale:
    """The affine map between actions in the data's units and [-1, 1]. A constant action is 0 in [-1, 1].

    On a changed robot, an action in [-1, 1] is that of the nominal robot which has the same effect.

    Args:
        low, high: (m,), the bounds in the data's units.
        change: of a changed robot; None: the robot is that of the data.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, change: ActionMap | None = None) -> None:
        self.low, self.high = low, high
        self.center, self.half = (low + high) / 2, (high - low) / 2
        self.identity = bool(change is None and (self.center == 0).all() and (self.half == 1).all())
        self._divisor = np.where(self.half >= np.finfo(np.float32).tiny, self.half, 1.0)  # smaller ones may become 0
        self._change = None
        if change is not None:
            matrix, bias = np.array(change.matrix), np.array(change.bias)
            self._change = matrix.T, np.linalg.inv(matrix).T, bias

    def to_unit(self, actions: Any) -> Any:
        """Actions (..., m) in the data's units, numpy or torch -> in [-1, 1] if they are within the bounds."""
        if self.identity:
            return actions
        unit = (actions - self._like(actions, self.center)) / self._like(actions, self._divisor)
        if self._change is None:
            return unit
        forth, _, bias = (self._like(actions, part) for part in self._change)
        return unit @ forth + bias

    def to_data(self, actions: Any) -> Any:
        """Actions (..., m), numpy or torch, in [-1, 1] -> in the data's units, on a changed robot within the bounds."""
        if self.identity:
            return actions
        if self._change is not None:
            _, back, bias = (self._like(actions, part) for part in self._change)
            actions = ((actions - bias) @ back).clip(-1, 1)
        return self._like(actions, self.center) + self._like(actions, self.half) * actions

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Return actions (..., m) in the data's units, clipped to the bounds."""
        low, high = (end.astype(actions.dtype) for end in (self.low, self.high))
        return actions.clip(low, high)

    def _like(self, actions: Any, values: np.ndarray) -> Any:
        return values.astype(actions.dtype) if isinstance(actions, np.ndarray) else actions.new_tensor(values)
