from __future__ import annotations

from collections.abc import Iterator

import pytest

from servers import Server


@pytest.fixture(scope="module", params=["rsgi", "asgi"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two workers that the tests of a module share, by either interface; each test uses models of its own."""
    data = tmp_path_factory.mktemp("server") / "data"
    with Server(data, workers=2, interface=request.param) as running:
        yield running
