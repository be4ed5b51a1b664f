"""The way of a prediction: bytes in, bytes out. Plain synchronous functions that front ends only adapt."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns, time_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turnout import _core
from turnout.copies import Copies
from turnout.dialects import Read, Request, Row
from turnout.domain import REASONS
from turnout.engine import Session
from turnout.errors import InvalidFeatures, InvalidTensors, PredictionFailed, TurnoutError
from turnout.live import Live
from turnout.log import log
from turnout.router import Lane, Serving
from turnout.telemetry import QUEUE, Telemetry

FALLBACK = REASONS.index("fallback")
PINNED = REASONS.index("pinned")
HTTP_ERRORS = 500
"""Statuses from here on say that a version, or Turnout, has failed; those below that the request is to blame."""
MILLISECOND = 1_000_000

Answer = tuple[int, bytes]
"""The HTTP status and the body; from 400 on it says what is wrong."""


class Ticket:
    """A request that was read and routed: who answers it, and with which inputs. `session` is None until it is loaded.

    `started` and `ready` are when its reading began and ended.
    """

    __slots__ = (
        "entity",
        "inputs",
        "lane",
        "position",
        "ready",
        "reason",
        "request",
        "serving",
        "session",
        "started",
    )

    def __init__(
        self,
        request: Request,
        serving: Serving,
        read: Read,
        session: Session | None,
        started: int,
        ready: int,
    ) -> None:
        self.request = request
        self.serving = serving
        self.position, self.reason, self.inputs, self.entity = read
        self.lane = serving.lanes[self.position]
        self.session = session
        self.started = started
        self.ready = ready


class Predictor:
    """Answers single predictions from the live snapshot."""

    def __init__(self, live: Live, telemetry: Telemetry, copies: Copies, *, fallback: bool) -> None:
        self._live = live
        self._copies = copies
        self._telemetry = telemetry
        self._fallback = fallback

    def predict_bytes(self, model: str, version: str | None, body: bytes) -> Answer:
        """Answer one request."""
        return self.answer_request(model, version, Row(body))

    def answer(self, model: str, version: str | None, body: bytes) -> bytes:
        """Answer one request with the JSON of a Prediction; raises the errors of `turnout.errors`."""
        return self._run(self.admit(model, version, Row(body)))

    def answer_request(self, model: str, version: str | None, request: Request) -> Answer:
        """Answer one request, in its dialect."""
        try:
            ticket = self.admit(model, version, request)
        except TurnoutError as error:
            return self.refusal(request, error)
        return self.respond(ticket)

    def admit(self, model: str, version: str | None, request: Request) -> Ticket:
        """Read and route one request. Raises what is wrong with it."""
        started = perf_counter_ns()
        serving = self._live.current().serving(model)
        pinned = None if version is None else serving.position(version)
        try:
            read = request.read(serving, pinned)
        except (InvalidFeatures, InvalidTensors):
            if pinned is None and serving.split is not None:
                self._note_refusal(serving, request)
            raise
        session = self._live.sessions.get(serving.lanes[read[0]].key)
        return Ticket(request, serving, read, session, started, perf_counter_ns())

    def _note_refusal(self, serving: Serving, request: Request) -> None:
        """Where an arm of a test cannot read what the active version can, the arm has failed, and not only the caller."""
        active = serving.active_lane
        if active is None:
            return
        index = serving.index[active.label]
        try:
            _, _, _, entity = request.read(serving, index)
        except TurnoutError:
            return
        given = request.entity_id
        if given is None:  # a random slot: which arm it was is not known any more
            return
        failed, reason, _ = serving.route.assign(given)
        if failed != index:
            lane = serving.lanes[failed]
            (lane.series[reason] or self._series(serving, lane, reason)).record_error()
            serving.route.failed(failed, reason, entity, False)

    def respond(self, ticket: Ticket) -> Answer:
        """Answer a request by itself."""
        try:
            return 200, self._run(ticket)
        except TurnoutError as error:
            return self.refusal(ticket.request, error)

    def refusal(self, request: Request, error: TurnoutError) -> Answer:
        """The answer that says what is wrong; what no version has failed at is counted as refused."""
        if error.status < 500:
            self._telemetry.reject(error.code)
        return error.status, request.refuse(error)

    def respond_together(self, session: Session, tickets: Sequence[Ticket]) -> list[Answer]:
        """Answer requests that have this session in common by one run of it; if that fails, each by itself."""
        if len(tickets) == 1:
            return [self.respond(tickets[0])]
        rows = sum(ticket.request.rows for ticket in tickets)
        try:
            began = perf_counter_ns()
            inputs = [np.concatenate(columns) for columns in zip(*(t.inputs for t in tickets), strict=True)]
            before = perf_counter_ns()
            outputs = session.run(inputs)
            after = perf_counter_ns()
        except (TurnoutError, ValueError):  # the fault of one of them, and not of the others
            return [self.respond(ticket) for ticket in tickets]
        if any(output.ndim == 0 or len(output) != rows for output in outputs):
            return [self.respond(ticket) for ticket in tickets]
        answers: list[Answer] = []
        start = 0
        for ticket in tickets:
            end = start + ticket.request.rows
            answers.append(self._share(ticket, [output[start:end] for output in outputs], after - before))
            start = end
        reading = before - began + sum(ticket.ready - ticket.started for ticket in tickets)
        self._count_joint(tickets, rows, reading, after - before, perf_counter_ns() - after)
        return answers

    def _count_joint(
        self, tickets: Sequence[Ticket], rows: int, reading: int, running: int, writing: int
    ) -> None:
        """Count a run of versions that share a session: each has its rows, and their share of the time."""
        mine: dict[Lane, tuple[Serving, int]] = {}
        for ticket in tickets:
            serving, count = mine.get(ticket.lane, (ticket.serving, 0))
            mine[ticket.lane] = (serving, count + ticket.request.rows)
        now = time_ns() // MILLISECOND
        for lane, (serving, count) in mine.items():
            part = count / max(rows, 1)
            self._runs(serving, lane).record(
                count, int(reading * part), int(running * part), int(writing * part), now
            )

    def _share(self, ticket: Ticket, outputs: list[NDArray[Any]], spent: int) -> Answer:
        """A request's answer out of a run that it had in common with others."""
        serving, lane, reason = ticket.serving, ticket.lane, ticket.reason
        try:
            answer = ticket.request.write(
                serving, ticket.position, reason, outputs, ticket.entity, perf_counter_ns() - ticket.started
            )
        except TurnoutError:
            return self.respond(ticket)
        series = lane.series[reason] or self._series(serving, lane, reason)
        series.record(perf_counter_ns() - ticket.started, spent)
        if reason == PINNED:
            self._live.sessions.touch(lane.key)
        elif serving.copying is not None:
            self._copies.offer(
                ticket.request, serving, ticket.position, reason, outputs, 0, ticket.entity, spent
            )
        return 200, answer

    def respond_each(self, serving: Serving, bodies: Sequence[bytes], started: Sequence[int]) -> list[Answer]:
        """Answer requests of one model, read at `started`, by one run of each of its versions.

        Where a body is bad, or a run fails, each request of it is answered by itself.
        """
        answers: list[Answer | None] = [None] * len(bodies)
        route, name = serving.route, serving.name
        began = perf_counter_ns()
        groups = route.prepare_each(bodies)
        reading = (perf_counter_ns() - began) // max(1, len(groups))
        for position, numbers, reasons, entities, inputs in groups:
            lane = serving.lanes[position]
            try:
                session = self._live.session(lane)
                before = perf_counter_ns()
                outputs = session.run(inputs)
                after = perf_counter_ns()
                spent = after - before
                took = [after - started[number] for number in numbers]
                encoded = route.encode_each(position, reasons, outputs, entities, took)
            except (TurnoutError, ValueError):  # the fault of one of them, and not of the others
                continue
            now = perf_counter_ns()
            series = lane.series
            for number, reason, answer in zip(numbers, reasons, encoded, strict=True):
                (series[reason] or self._series(serving, lane, reason)).record(now - started[number], spent)
                answers[number] = (200, answer)
            self._runs(serving, lane).record(
                len(numbers), reading, spent, now - after, time_ns() // MILLISECOND
            )
            if serving.copying is not None:
                for row, (number, reason, entity) in enumerate(zip(numbers, reasons, entities, strict=True)):
                    self._copies.offer(
                        Row(bodies[number]), serving, position, reason, outputs, row, entity, spent
                    )
        return [
            self.predict_bytes(name, None, body) if answer is None else answer
            for body, answer in zip(bodies, answers, strict=True)
        ]

    def serving(self, model: str) -> Serving | None:
        """A model as it is served now."""
        return self._live.current().models.get(model)

    def together(self, serving: Serving) -> int:
        """How many requests of a model, whatever versions they reach, run together on an event loop; 1 for none."""
        sessions = [self._live.sessions.get(lane.key) for lane in serving.routable_lanes]
        rows = [
            session.max_batch_rows if session.inline and not session.max_delay_us else 1
            for session in sessions
            if session is not None
        ]
        return min(rows) if len(rows) == len(sessions) and rows else 1

    def waited(self, ticket: Ticket, nanoseconds: int) -> None:
        """Count how long a request has waited for its turn."""
        lane = ticket.lane
        if lane.queue is None:
            lane.queue = self._telemetry.series(ticket.serving.name, lane.label, QUEUE, "")
        lane.queue.record(nanoseconds, 0)

    def _run(self, ticket: Ticket) -> bytes:
        serving, lane, reason = ticket.serving, ticket.lane, ticket.reason
        try:
            session = self._live.pinned_session(lane) if reason == PINNED else self._live.session(lane)
            before = perf_counter_ns()
            outputs = session.run(ticket.inputs)
            after = perf_counter_ns()
            answer = ticket.request.write(
                serving, ticket.position, reason, outputs, ticket.entity, after - ticket.started
            )
        except TurnoutError as error:
            return self._fall_back(ticket, error)
        self._count(ticket, lane, reason, before, after)
        if serving.copying is not None and reason != PINNED:
            self._copies.offer(
                ticket.request, serving, ticket.position, reason, outputs, 0, ticket.entity, after - before
            )
        return answer

    def _count(self, ticket: Ticket, lane: Lane, reason: int, before: int, after: int) -> None:
        """Count an answer that a version gave between two times, and its run."""
        serving, now = ticket.serving, perf_counter_ns()
        (lane.series[reason] or self._series(serving, lane, reason)).record(
            now - ticket.started, after - before
        )
        (lane.runs or self._runs(serving, lane)).record(
            ticket.request.rows,
            ticket.ready - ticket.started,
            after - before,
            now - after,
            time_ns() // MILLISECOND,
        )

    def _fall_back(self, ticket: Ticket, error: TurnoutError) -> bytes:
        """Let the active version answer for an arm that failed; the failure counts against the arm."""
        serving, failed, reason = ticket.serving, ticket.lane, ticket.reason
        answer = self._by_active(ticket)
        blamed = error if answer is not None else ticket.request.blames(serving, ticket.position, error)
        said = type(blamed)(f"version {failed.label} of model {serving.name}: {blamed.detail}")
        log("error", "prediction_failed", model=serving.name, version=failed.label, detail=error.detail)
        if said.status < HTTP_ERRORS and self._active_can(ticket):
            said = type(error)(f"version {failed.label} of model {serving.name}: {error.detail}")
        (failed.runs or self._runs(serving, failed)).fail(perf_counter_ns() - ticket.started)
        if said.status < HTTP_ERRORS:
            raise said from error
        (failed.series[reason] or self._series(serving, failed, reason)).record_error()
        serving.route.failed(ticket.position, reason, ticket.entity, answer is not None)
        if answer is None:
            raise said from error
        return answer

    def _active_can(self, ticket: Ticket) -> bool:
        """Whether the active version answers what the arm of a test does not, where it may not do so in its place."""
        serving, active = ticket.serving, ticket.serving.active_lane
        if self._fallback or ticket.reason == PINNED or active is None or active is ticket.lane:
            return False
        try:
            _, _, inputs, _ = ticket.request.read(serving, serving.index[active.label])
            self._live.session(active).run(inputs)
        except TurnoutError:
            return False
        return True

    def _by_active(self, ticket: Ticket) -> bytes | None:
        """The active version's answer in place of that of an arm that failed; None where it may not, or fails too."""
        serving, active = ticket.serving, ticket.serving.active_lane
        if not self._fallback or ticket.reason == PINNED or active is None or active is ticket.lane:
            return None
        try:
            index, _, inputs, _ = ticket.request.read(serving, serving.index[active.label])
            session = self._live.session(active)
            before = perf_counter_ns()
            outputs = session.run(inputs)
            after = perf_counter_ns()
            answer = ticket.request.write(
                serving, index, FALLBACK, outputs, ticket.entity, after - ticket.started
            )
        except TurnoutError as error:
            # The caller hears of the version that it was routed to; the second failure is in the log.
            log("error", "fallback_failed", model=serving.name, version=active.label, detail=error.detail)
            asked = ticket.request.blames(serving, serving.index[active.label], error).status < HTTP_ERRORS
            if isinstance(error, PredictionFailed) and not asked:
                (active.series[FALLBACK] or self._series(serving, active, FALLBACK)).record_error()
            return None
        self._count(ticket, active, FALLBACK, before, after)
        return answer

    def _series(self, serving: Serving, lane: Lane, reason: int) -> _core.Series:
        series = self._telemetry.series(serving.name, lane.label, REASONS[reason], serving.scope)
        lane.series[reason] = series
        return series

    def _runs(self, serving: Serving, lane: Lane) -> _core.Runs:
        runs = lane.runs
        if runs is None:
            runs = lane.runs = self._telemetry.runs(serving.name, lane.label)
        return runs
