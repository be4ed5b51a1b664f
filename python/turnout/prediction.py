"""The way of a prediction: bytes in, bytes out. Plain synchronous functions that front ends only adapt."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from turnout import _core
from turnout.copies import Copies
from turnout.domain import REASONS
from turnout.engine import Session
from turnout.errors import InvalidFeatures, PredictionFailed, TurnoutError, problem
from turnout.live import Live
from turnout.log import log
from turnout.router import Lane, Serving
from turnout.telemetry import QUEUE, Telemetry

FALLBACK = REASONS.index("fallback")
PINNED = REASONS.index("pinned")

Answer = tuple[int, bytes]
"""The HTTP status and the JSON body, a problem document (RFC 9457) from 400 on."""


class _Addressed(msgspec.Struct):
    """The part of a request that says whom it is about."""

    entity_id: str | int | None = None


class Ticket:
    """A request that was read and routed: who answers it, and with which inputs. `session` is None until it is loaded."""

    __slots__ = ("body", "entity", "inputs", "lane", "position", "reason", "serving", "session", "started")

    def __init__(
        self,
        serving: Serving,
        position: int,
        reason: int,
        inputs: tuple[NDArray[Any], ...],
        entity: bytes | None,
        body: bytes,
        session: Session | None,
        started: int,
    ) -> None:
        self.serving = serving
        self.position = position
        self.lane = serving.lanes[position]
        self.reason = reason
        self.inputs = inputs
        self.entity = entity
        self.body = body
        self.session = session
        self.started = started


class Predictor:
    """Answers single predictions from the live snapshot."""

    def __init__(self, live: Live, telemetry: Telemetry, copies: Copies, *, fallback: bool) -> None:
        self._live = live
        self._copies = copies
        self._telemetry = telemetry
        self._fallback = fallback

    def predict_bytes(self, model: str, version: str | None, body: bytes) -> Answer:
        """Answer one request."""
        try:
            ticket = self.admit(model, version, body)
        except TurnoutError as error:
            return self.refusal(error)
        return self.respond(ticket)

    def answer(self, model: str, version: str | None, body: bytes) -> bytes:
        """Answer one request with the JSON of a Prediction; raises the errors of `turnout.errors`."""
        return self._run(self.admit(model, version, body))

    def admit(self, model: str, version: str | None, body: bytes) -> Ticket:
        """Read and route one request. Raises what is wrong with it."""
        started = perf_counter_ns()
        serving = self._live.current().serving(model)
        pinned = None if version is None else serving.position(version)
        try:
            position, reason, inputs, entity = serving.route.prepare(body, pinned)
        except InvalidFeatures:
            if pinned is None and serving.split is not None:
                self._note_refusal(serving, body)
            raise
        session = self._live.sessions.get(serving.lanes[position].key)
        return Ticket(serving, position, reason, inputs, entity, body, session, started)

    def _note_refusal(self, serving: Serving, body: bytes) -> None:
        """Where an arm of a test cannot read what the active version can, the arm has failed, and not only the caller."""
        active = serving.active_lane
        if active is None:
            return
        index = serving.index[active.label]
        try:
            _, _, _, entity = serving.route.prepare(body, index)
        except TurnoutError:
            return
        given = msgspec.json.decode(body, type=_Addressed).entity_id
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
            return self.refusal(error)

    def refusal(self, error: TurnoutError) -> Answer:
        """The answer that says what is wrong; what no version has failed at is counted as refused."""
        if error.status < 500:
            self._telemetry.reject(error.code)
        return error.status, msgspec.json.encode(problem(error))

    def respond_together(self, session: Session, tickets: Sequence[Ticket]) -> list[Answer]:
        """Answer requests that have this session in common by one run of it; if that fails, each by itself."""
        if len(tickets) == 1:
            return [self.respond(tickets[0])]
        try:
            inputs = [np.concatenate(columns) for columns in zip(*(t.inputs for t in tickets), strict=True)]
            before = perf_counter_ns()
            outputs = session.run(inputs)
            spent = perf_counter_ns() - before
        except (TurnoutError, ValueError):  # the fault of one of them, and not of the others
            return [self.respond(ticket) for ticket in tickets]
        answers: list[Answer] = []
        start = 0
        for ticket in tickets:
            end = start + len(ticket.inputs[0])
            rows = [output[start:end] for output in outputs]
            start = end
            try:
                answer = ticket.serving.route.encode(
                    ticket.position, ticket.reason, rows, ticket.entity, perf_counter_ns() - ticket.started
                )
            except TurnoutError:
                answers.append(self.respond(ticket))
                continue
            series = ticket.lane.series[ticket.reason] or self._series(
                ticket.serving, ticket.lane, ticket.reason
            )
            series.record(perf_counter_ns() - ticket.started, spent)
            if ticket.serving.copying is not None:
                self._copies.offer(
                    ticket.serving,
                    ticket.body,
                    ticket.position,
                    ticket.reason,
                    rows,
                    0,
                    ticket.entity,
                    spent,
                )
            if ticket.reason == PINNED:
                self._live.sessions.touch(ticket.lane.key)
            answers.append((200, answer))
        return answers

    def respond_each(self, serving: Serving, bodies: Sequence[bytes], started: Sequence[int]) -> list[Answer]:
        """Answer requests of one model, read at `started`, by one run of each of its versions.

        Where a body is bad, or a run fails, each request of it is answered by itself.
        """
        answers: list[Answer | None] = [None] * len(bodies)
        route, name = serving.route, serving.name
        for position, numbers, reasons, entities, inputs in route.prepare_each(bodies):
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
            if serving.copying is not None:
                for row, (number, reason, entity) in enumerate(zip(numbers, reasons, entities, strict=True)):
                    self._copies.offer(serving, bodies[number], position, reason, outputs, row, entity, spent)
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
            answer = serving.route.encode(
                ticket.position, reason, outputs, ticket.entity, after - ticket.started
            )
        except TurnoutError as error:
            return self._fall_back(ticket, error)
        series = lane.series[reason] or self._series(serving, lane, reason)
        series.record(perf_counter_ns() - ticket.started, after - before)
        if serving.copying is not None and reason != PINNED:
            self._copies.offer(
                serving, ticket.body, ticket.position, reason, outputs, 0, ticket.entity, after - before
            )
        return answer

    def _fall_back(self, ticket: Ticket, error: TurnoutError) -> bytes:
        """Let the active version answer for an arm that failed; the failure counts against the arm."""
        serving, failed, reason = ticket.serving, ticket.lane, ticket.reason
        said = type(error)(f"version {failed.label} of model {serving.name}: {error.detail}")
        series = failed.series[reason] or self._series(serving, failed, reason)
        series.record_error()
        answer = self._by_active(ticket)
        serving.route.failed(ticket.position, reason, ticket.entity, answer is not None)
        log("error", "prediction_failed", model=serving.name, version=failed.label, detail=error.detail)
        if answer is None:
            raise said from error
        return answer

    def _by_active(self, ticket: Ticket) -> bytes | None:
        """The active version's answer in place of that of an arm that failed; None where it may not, or fails too."""
        serving, active = ticket.serving, ticket.serving.active_lane
        if not self._fallback or ticket.reason == PINNED or active is None or active is ticket.lane:
            return None
        try:
            index, _, inputs, _ = serving.route.prepare(ticket.body, serving.index[active.label])
            session = self._live.session(active)
            before = perf_counter_ns()
            outputs = session.run(inputs)
            after = perf_counter_ns()
            answer = serving.route.encode(index, FALLBACK, outputs, ticket.entity, after - ticket.started)
        except TurnoutError as error:
            # The caller hears of the version that it was routed to; the second failure is in the log.
            log("error", "fallback_failed", model=serving.name, version=active.label, detail=error.detail)
            if isinstance(error, PredictionFailed):
                (active.series[FALLBACK] or self._series(serving, active, FALLBACK)).record_error()
            return None
        series = active.series[FALLBACK] or self._series(serving, active, FALLBACK)
        series.record(perf_counter_ns() - ticket.started, after - before)
        return answer

    def _series(self, serving: Serving, lane: Lane, reason: int) -> _core.Series:
        series = self._telemetry.series(serving.name, lane.label, REASONS[reason], serving.scope)
        lane.series[reason] = series
        return series
