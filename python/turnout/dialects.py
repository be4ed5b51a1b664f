"""What a request says, whatever its dialect, and the first of them: a row of features as JSON.

The service routes, runs, counts and falls back in the same way for all of them.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from numpy.typing import NDArray

from turnout.errors import TurnoutError, problem
from turnout.router import Serving

Read = tuple[int, int, tuple[NDArray[Any], ...], bytes | None]
"""Index of the version, that of the reason, the inputs in the order of the graph, and the hash of the entity."""


class Request(Protocol):
    """What one request says, in its dialect: a row of features as JSON, or tensors."""

    @property
    def rows(self) -> int:
        """How many rows it has."""
        ...

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        ...

    @property
    def weight(self) -> int:
        """How many rows its run is worth, also where they are no rows that are answered one by one."""
        ...

    @property
    def entity_id(self) -> str | int | None:
        """Whom it is about."""
        ...

    def read(self, serving: Serving, pinned: int | None) -> Read:
        """Route it, unless a version is pinned, and make that version's inputs. Raises what is wrong with it."""
        ...

    def write(
        self,
        serving: Serving,
        position: int,
        reason: int,
        outputs: list[NDArray[Any]],
        entity: bytes | None,
        nanoseconds: int,
    ) -> bytes:
        """The body of the answer, signed and noted. Raises PredictionFailed for outputs that cannot be written."""
        ...

    def blames(self, serving: Serving, position: int, error: TurnoutError) -> TurnoutError:
        """What the caller is told where a version failed: that error, or another one where the request is to blame."""
        ...

    def refuse(self, error: TurnoutError) -> bytes:
        """The body that says what is wrong."""
        ...


class _Addressed(msgspec.Struct):
    """The part of a request that says whom it is about."""

    entity_id: str | int | None = None


class Row:
    """One row of features: `{"entity_id"?, "features"}`."""

    __slots__ = ("body",)
    rows = weight = 1

    def __init__(self, body: bytes) -> None:
        self.body = body

    @property
    def size(self) -> int:
        """The length of the body."""
        return len(self.body)

    @property
    def entity_id(self) -> str | int | None:
        """As the body has it."""
        return msgspec.json.decode(self.body, type=_Addressed).entity_id

    def read(self, serving: Serving, pinned: int | None) -> Read:
        """Read, routed and packed in one go."""
        return serving.route.prepare(self.body, pinned)

    def write(
        self,
        serving: Serving,
        position: int,
        reason: int,
        outputs: list[NDArray[Any]],
        entity: bytes | None,
        nanoseconds: int,
    ) -> bytes:
        """The JSON of a Prediction."""
        return serving.route.encode(position, reason, outputs, entity, nanoseconds)

    def blames(self, serving: Serving, position: int, error: TurnoutError) -> TurnoutError:
        """The version: what a row holds was checked against its features."""
        del serving, position
        return error

    def refuse(self, error: TurnoutError) -> bytes:
        """A problem document."""
        return msgspec.json.encode(problem(error))
