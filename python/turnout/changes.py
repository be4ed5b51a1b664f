"""What the parts of `Turnout` that make changes have in common: who makes one, and how it is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from turnout.records import Author, Committed
from turnout.registry import Registry


class Changes(ABC):
    """Whoever inherits it has a registry, and a way to change it that workers follow."""

    registry: Registry

    @abstractmethod
    def _author(self, actor: str | None, reason: str, revision: int | None) -> Author:
        """Who makes a change, checked."""

    @abstractmethod
    def _commit(
        self,
        write: Callable[[], Committed],
        model: str | None = None,
        versions: Sequence[str] = (),
        *,
        every: bool = False,
    ) -> Any:  # noqa: ANN401
        """Make a change and wait until all workers serve it."""
