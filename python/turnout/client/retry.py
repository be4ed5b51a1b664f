"""What may be sent again, how often and when. Knows no I/O: it is told what has happened and says how long to wait.

| request | is sent again after |
|---|---|
| `READ`: a GET, and outcomes that all have an `id` | a connection that failed or was closed; 429, 502, 503, 504 |
| `PREDICTION`: a prediction or a batch | the same failures; 429; 503 with `Retry-After` |
| `WRITE`: everything that changes something | a connection that could not be made: nothing was sent |
| `ONCE`: a question about this moment | nothing |

A prediction changes nothing: the exposure of an entity is noted once however often it is served, and a request without
one is only counted once more. A write whose answer was lost may have been made, and a `revision` would then refuse the
person who made it: who asks has to look. No other 4xx is repeated, since it would be the same again; neither is 504 for
a prediction, whose time is over, nor anything after a timeout, since a busy server would then have to do it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import random
from time import monotonic
from typing import NamedTuple

import httpx

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 5.0
LEAST_SECONDS = 0.001
"""httpx wants some time for each try, also for one that begins just before the end."""

Failures = tuple[type[httpx.HTTPError], ...]
UNSENT: Failures = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
LOST: Failures = (*UNSENT, httpx.NetworkError, httpx.RemoteProtocolError)


class Rule(NamedTuple):
    """When a request may be sent again: after which failures, and after answers of which statuses.

    After those that are `told` it is only where the server says when (`Retry-After`).
    """

    failures: Failures = ()
    statuses: frozenset[int] = frozenset()
    told: frozenset[int] = frozenset()


READ = Rule(LOST, frozenset({429, 502, 503, 504}))
PREDICTION = Rule(LOST, frozenset({429}), frozenset({503}))
WRITE = Rule(UNSENT)
ONCE = Rule()


class Attempts:
    """One request and its repetitions, all of which begin within a time.

    Between them is exponential backoff with full jitter: up to 0.1 s, 0.2 s, 0.4 s ... 5 s, on top of what
    `Retry-After` asks for. Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Args:
        rule: after what it may be repeated.
        retries: how often.
        timeout: seconds from now.
    """

    def __init__(self, rule: Rule, retries: int, timeout: float) -> None:
        self.number = 1
        self._rule = rule
        self._most = retries + 1
        self._deadline = monotonic() + timeout

    @property
    def seconds_left(self) -> float:
        """Of the time that there is for all of them."""
        return max(self._deadline - monotonic(), LEAST_SECONDS)

    def after_failure(self, error: httpx.HTTPError) -> float | None:
        """Seconds to wait before it is sent again, None where it must not be."""
        return self._wait(0.0) if isinstance(error, self._rule.failures) else None

    def after_answer(self, status: int, headers: Mapping[str, str]) -> float | None:
        """The same after an answer that is an error."""
        told = retry_after(headers)
        again = status in self._rule.statuses or (status in self._rule.told and told is not None)
        return self._wait(told or 0.0) if again else None

    def _wait(self, least: float) -> float | None:
        if self.number >= self._most:
            return None
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** (self.number - 1))
        seconds = least + longest * random()  # noqa: S311 - it spreads requests, and keeps no secret
        if monotonic() + seconds >= self._deadline:
            return None
        self.number += 1
        return seconds


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks for, None where it does not. Source: RFC 9110, section 10.2.3."""
    told = headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        moment = parsedate_to_datetime(told)
        # A date without a zone means UTC there (RFC 9110, section 5.6.7).
        moment = moment.replace(tzinfo=moment.tzinfo or UTC)
        return max((moment - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, OverflowError):
        return None
