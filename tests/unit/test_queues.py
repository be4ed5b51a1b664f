"""Requests that wait for their turn and run together: over a real service, with models whose runs a test can hold up."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import linear_matrix
from turnout.api.asgi import Gone
from turnout.api.queues import Burst, Queue, Waiting
from turnout.config import Settings
from turnout.dialects import Row
from turnout.errors import DeadlineExceeded, PredictionFailed, TooManyRequests
from turnout.prediction import Answer, Ticket
from turnout.service import Turnout

MODEL = "m"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Turnout]:
    with Turnout(Settings(data=str(tmp_path / "data")), server=True) as opened:
        (tmp_path / "v1.onnx").write_bytes(linear_matrix([1, 10]))
        (tmp_path / "v2.onnx").write_bytes(linear_matrix([2, 20]))
        for version in ("v1", "v2"):
            opened.register_version(MODEL, version, tmp_path / f"{version}.onnx", features=["a", "b"])
        opened.activate_version(MODEL, "v1")
        opened.live.refresh()
        opened.live.preload()
        yield opened


class Held:
    """A session that notes how many rows each of its runs has, fails where a row has a 13, and can be held up."""

    def __init__(self, inner: Any, most: int, **options: Any) -> None:
        self._inner = inner
        self.max_batch_rows = most
        self.max_delay_us = options.get("delay", 0)
        self.max_queue_rows = options.get("queue")
        self.inline = False
        self.runs: list[int] = []
        self.seen: list[float] = []
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()

    def run(self, inputs: Any) -> Any:
        self.begun.set()
        assert self.free.wait(10)
        self.runs.append(len(inputs[0]))
        self.seen += inputs[0][:, 0].tolist()
        if (inputs[0] == 13).any():
            raise PredictionFailed("thirteen")
        return self._inner.run(inputs)


def held(hub: Turnout, most: int, **options: Any) -> Held:
    """Put a session that can be held up in the place of that of `v1`."""
    lane = hub.live.current().serving(MODEL).lanes[0]
    session = Held(hub.live.sessions.get(lane.key), most, **options)
    hub.live.sessions._loaded[lane.key] = session  # type: ignore[assignment]
    return session


def body(a: float, b: float = 0) -> bytes:
    return json.dumps({"entity_id": f"u{a}", "features": [a, b]}).encode()


def ticket(hub: Turnout, a: float, b: float = 0) -> Ticket:
    return hub.predictor.admit(MODEL, None, Row(body(a, b)))


def score(answer: Answer) -> float:
    status, content = answer
    assert status == 200, content
    return json.loads(content)["outputs"]["score"][0]


def queued(hub: Turnout, session: Held, test: Callable[[Queue], Awaitable[None]], others: int = 1000) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(2) as pool:
            await test(Queue(session, hub.predictor, pool, slots=1, others=lambda: others))  # type: ignore[arg-type]

    asyncio.run(run())


async def busy(hub: Turnout, session: Held, queue: Queue) -> Waiting:
    """Occupy the session, so that what comes now has to wait."""
    session.free.clear()
    session.begun.clear()
    first = queue.put(ticket(hub, 1))
    await asyncio.to_thread(session.begun.wait, 5)
    return first


def test_what_waits_runs_together_up_to_the_limit_of_rows(hub: Turnout) -> None:
    session = held(hub, 4)

    async def test(queue: Queue) -> None:
        first = await busy(hub, session, queue)
        waiting = [queue.put(ticket(hub, a, 1)) for a in range(10)]
        session.free.set()
        assert [score(await one.answer) for one in waiting] == [a + 10 for a in range(10)]
        assert score(await first.answer) == 1
        assert session.runs == [1, 4, 4, 2]

    queued(hub, session, test)


def test_the_first_request_waits_for_nobody(hub: Turnout) -> None:
    session = held(hub, 64, delay=5_000_000)

    async def test(queue: Queue) -> None:
        async with asyncio.timeout(2):
            await queue.put(ticket(hub, 1)).answer
        assert session.runs == [1]

    queued(hub, session, test, others=1)


def test_a_run_that_is_not_full_waits_for_more_and_not_longer_than_it_may(hub: Turnout) -> None:
    session = held(hub, 3, delay=50_000)

    async def test(queue: Queue) -> None:
        first = queue.put(ticket(hub, 1))
        await asyncio.sleep(0.01)
        assert session.runs == []
        second = queue.put(ticket(hub, 2))
        await asyncio.gather(first.answer, second.answer)
        assert session.runs == [2]
        full = [queue.put(ticket(hub, a)) for a in range(3)]
        await asyncio.gather(*(one.answer for one in full))
        assert session.runs == [2, 3]

    queued(hub, session, test)


def test_the_most_urgent_go_first_and_equals_in_their_order(hub: Turnout) -> None:
    session = held(hub, 1)

    async def test(queue: Queue) -> None:
        await busy(hub, session, queue)
        urgencies = [3, 7, 0, 3, 0]
        waiting = [queue.put(ticket(hub, 10 + n), urgency) for n, urgency in enumerate(urgencies)]
        session.free.set()
        await asyncio.gather(*(one.answer for one in waiting))
        assert session.seen == [1, 12, 14, 10, 13, 11]

    queued(hub, session, test)


def test_a_full_queue_refuses_and_loses_nothing(hub: Turnout) -> None:
    session = held(hub, 8, queue=2)

    async def test(queue: Queue) -> None:
        await busy(hub, session, queue)
        waiting = [queue.put(ticket(hub, a)) for a in (5, 6)]
        with pytest.raises(TooManyRequests, match="2 rows wait"):
            queue.put(ticket(hub, 7))
        session.free.set()
        assert [score(await one.answer) for one in waiting] == [5, 6]

    queued(hub, session, test)


def test_who_leaves_or_is_late_is_not_run(hub: Turnout) -> None:
    session = held(hub, 8)

    async def test(queue: Queue) -> None:
        first = await busy(hub, session, queue)
        late = queue.put(ticket(hub, 100), 3, 0.01)
        gone = queue.put(ticket(hub, 101))
        stays = queue.put(ticket(hub, 102), 3, 30.0)
        assert queue.leave(gone, Gone())
        with pytest.raises(DeadlineExceeded, match="10 ms"):
            await late.answer
        with pytest.raises(Gone):
            await gone.answer
        assert not queue.leave(first, Gone()), "it runs already"
        session.free.set()
        assert score(await stays.answer) == 102
        assert session.seen == [1, 102]
        assert len(queue) == 0

    queued(hub, session, test)


def test_one_that_fails_does_not_fail_its_neighbours(hub: Turnout) -> None:
    session = held(hub, 8)

    async def test(queue: Queue) -> None:
        await busy(hub, session, queue)
        waiting = [queue.put(ticket(hub, a)) for a in (3, 13, 4)]
        session.free.set()
        first, bad, last = [await one.answer for one in waiting]
        assert (score(first), score(last)) == (3, 4)
        assert (bad[0], json.loads(bad[1])["code"]) == (500, "prediction_failed")

    queued(hub, session, test)


def test_the_time_in_the_queue_is_a_histogram_of_its_own(hub: Turnout) -> None:
    session = held(hub, 8)

    async def test(queue: Queue) -> None:
        await busy(hub, session, queue)
        waiting = [queue.put(ticket(hub, a)) for a in range(3)]
        await asyncio.sleep(0.02)
        session.free.set()
        await asyncio.gather(*(one.answer for one in waiting))

    queued(hub, session, test)
    merged = hub.statistics()
    families = {family.name: family for family in merged.families()}
    samples = families["turnout_queue_seconds"].samples
    assert {s.value for s in samples if s.name.endswith("_count")} == {4}
    assert next(s.value for s in samples if s.name.endswith("_sum")) > 0.05
    assert merged.live(MODEL, "v1").requests == 4
    assert {s.labels["reason"] for s in families["turnout_requests"].samples} == {"active"}


def test_a_burst_is_one_run_of_each_version_and_each_gets_its_own_answer(hub: Turnout) -> None:
    hub.configure_test(MODEL, {"v1": 0.5, "v2": 0.5})
    hub.live.refresh()
    serving = hub.live.current().serving(MODEL)
    expected = [serving.assign(f"u{a}").version for a in range(40)]
    sent: list[Answer] = []

    async def run() -> None:
        burst = Burst(serving, hub.predictor, 16)
        bodies = [body(a, 1) for a in range(40)]
        bodies[7] = b'{"features": [1]}'
        bodies[8] = b"not\njson"
        done = {
            burst.put(content, lambda status, answer: sent.append((status, answer))) for content in bodies
        }
        assert len(done) == 1
        await done.pop()

    asyncio.run(run())
    assert len(sent) == 40
    for a, (status, content) in enumerate(sent):
        said = json.loads(content)
        if a in {7, 8}:
            assert status == 400
            assert "row" not in said
            continue
        factor = 1 if expected[a] == "v1" else 2
        assert (said["version"], said["outputs"]["score"]) == (expected[a], [factor * (a + 10)])
    assert len({json.loads(content).get("prediction_id") for _, content in sent}) == 39


def test_rows_together_are_what_they_are_alone(hub: Turnout) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2)).round(3)
    serving = hub.live.current().serving(MODEL)
    bodies = [body(*row) for row in rows.tolist()]
    together = hub.predictor.respond_each(serving, bodies, [0] * 50)
    for content, answer in zip(bodies, together, strict=True):
        alone = hub.predictor.predict_bytes(MODEL, None, content)
        assert score(answer) == pytest.approx(score(alone), rel=1e-6)


@pytest.mark.parametrize("most", [1, 5])
def test_only_what_pays_or_is_asked_for_runs_together(tmp_path: Path, most: int) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_matrix([1, 1]))
    with Turnout(Settings(data=str(tmp_path / "data")), server=True) as hub:
        options = {"max_batch_rows": most, "max_delay_us": 70}
        hub.register_version(MODEL, "v1", tmp_path / "m.onnx", features=["a", "b"], options=options)
        hub.activate_version(MODEL, "v1")
        hub.live.refresh()
        hub.live.preload()
        (status,) = hub.live.statuses()
        assert (status.max_batch_rows, status.max_delay_us) == (most, 70)
        assert hub.predictor.together(hub.live.current().serving(MODEL)) == 1, (
            "it waits, so the loop cannot run it"
        )
