"""The way of a prediction: bytes in, bytes out. A plain synchronous function that front ends only adapt."""

from __future__ import annotations

from time import perf_counter_ns

import msgspec

from turnout import _core
from turnout.domain import REASONS
from turnout.errors import PredictionFailed, TurnoutError, problem
from turnout.live import Live
from turnout.log import log
from turnout.router import Lane, Serving
from turnout.telemetry import Telemetry

FALLBACK = REASONS.index("fallback")
PINNED = REASONS.index("pinned")


class Predictor:
    """Answers single predictions from the live snapshot."""

    def __init__(self, live: Live, telemetry: Telemetry, *, fallback: bool) -> None:
        self._live = live
        self._telemetry = telemetry
        self._fallback = fallback

    def predict_bytes(self, model: str, version: str | None, body: bytes) -> tuple[int, bytes]:
        """Answer one request: the HTTP status and the JSON body, a problem document (RFC 9457) from 400 on."""
        try:
            return 200, self.answer(model, version, body)
        except TurnoutError as error:
            if error.status < 500:
                self._telemetry.reject(error.code)
            return error.status, msgspec.json.encode(problem(error))

    def answer(self, model: str, version: str | None, body: bytes) -> bytes:
        """Answer one request with the JSON of a Prediction; raises the errors of `turnout.errors`."""
        started = perf_counter_ns()
        serving = self._live.current().serving(model)
        pinned = None if version is None else serving.position(version)
        index, reason, inputs = serving.route.prepare(body, pinned)
        lane = serving.lanes[index]
        try:
            session = self._live.session(lane) if pinned is None else self._live.pinned_session(lane)
            before = perf_counter_ns()
            outputs = session.run(inputs)
            after = perf_counter_ns()
            answer = serving.route.encode(index, reason, outputs)
        except TurnoutError as error:
            return self._fall_back(serving, lane, reason, body, started, error)
        series = lane.series[reason] or self._series(serving, lane, reason)
        series.record(perf_counter_ns() - started, after - before)
        return answer

    def needs_pool(self, model: str, version: str | None) -> bool:
        """Whether this prediction may take longer than an event loop should wait: a slow model, or one to be loaded."""
        serving = self._live.current().models.get(model)
        if serving is None:
            return False
        get = self._live.sessions.get
        if version is not None:
            index = serving.index.get(version)
            session = None if index is None else get(serving.lanes[index].key)
            return index is not None and (session is None or not session.inline)
        for lane in serving.routable_lanes:
            session = get(lane.key)
            if session is None or not session.inline:
                return True
        return False

    def _fall_back(
        self, serving: Serving, failed: Lane, reason: int, body: bytes, started: int, error: TurnoutError
    ) -> bytes:
        """Let the active version answer for an arm that failed; the failure counts against the arm."""
        said = type(error)(f"version {failed.label} of model {serving.name}: {error.detail}")
        series = failed.series[reason] or self._series(serving, failed, reason)
        series.record_error()
        log("error", "prediction_failed", model=serving.name, version=failed.label, detail=error.detail)
        active = serving.active_lane
        if not self._fallback or reason == PINNED or active is None or active is failed:
            raise said from error
        try:
            index, _, inputs = serving.route.prepare(body, serving.index[active.label])
            session = self._live.session(active)
            before = perf_counter_ns()
            outputs = session.run(inputs)
            after = perf_counter_ns()
            answer = serving.route.encode(index, FALLBACK, outputs)
        except TurnoutError as second:
            # The caller hears of the version that it was routed to; the second failure is in the log.
            log("error", "fallback_failed", model=serving.name, version=active.label, detail=second.detail)
            if isinstance(second, PredictionFailed):
                (active.series[FALLBACK] or self._series(serving, active, FALLBACK)).record_error()
            raise said from second
        series = active.series[FALLBACK] or self._series(serving, active, FALLBACK)
        series.record(perf_counter_ns() - started, after - before)
        return answer

    def _series(self, serving: Serving, lane: Lane, reason: int) -> _core.Series:
        series = self._telemetry.series(serving.name, lane.label, REASONS[reason], serving.scope)
        lane.series[reason] = series
        return series
