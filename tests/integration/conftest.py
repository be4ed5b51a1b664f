from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two workers that the tests of a module share; each test uses models of its own."""
    with Server(tmp_path_factory.mktemp("server") / "data", workers=2) as running:
        yield running
