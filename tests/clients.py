"""Both clients as one: the asynchronous one is driven by a loop of its own, so that tests are written once for the two."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from turnout.client import AsyncClient, Client


class Driven:
    """An `AsyncClient` whose verbs are called as those of a `Client`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self._inner = AsyncClient(*args, **settings)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._runner.run(self._inner.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._inner.__aexit__(kind, error, trace))
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        found = self._runner.run(self._found(name))
        if inspect.iscoroutinefunction(found):
            return lambda *args, **words: self._runner.run(found(*args, **words))
        if inspect.isasyncgenfunction(found):
            return lambda *args, **words: self._each(found(*args, **words))
        return found

    async def _found(self, name: str) -> Any:
        return getattr(self._inner, name)  # in the context of the tasks: `last_change` is theirs

    def _each(self, answers: Any) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(answers, None)

        while (answer := self._runner.run(following())) is not None:
            yield answer


CLIENTS: list[Any] = [Client, Driven]
