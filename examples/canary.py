"""A canary over HTTP: ramp a new version up step by step, and roll back by itself when it fails or is too slow.

python examples/canary.py http://127.0.0.1:8000 churn v2.0

It sends no predictions: run it beside your own traffic. Each step waits until the new version has answered enough
requests of that step, then looks at how both have answered since the canary began.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

SHARES = (0.05, 0.25, 0.5, 1.0)
HEADERS = {"X-Actor": "examples/canary.py"}


class Limits(NamedTuple):
    """What the new version may do, and how long a step may take."""

    requests: int
    error_rate: float
    slower: float
    seconds: float


class Model:
    """The routes of one model."""

    def __init__(self, url: str, model: str) -> None:
        self._client = httpx.Client(base_url=url, headers=HEADERS, timeout=120)
        self._path = f"/v1/models/{quote(model, safe='')}"

    def call(self, method: str, route: str = "", **arguments: Any) -> Any:  # noqa: ANN401
        """Call a route of the model; a problem document becomes an error that says what it says."""
        response = self._client.request(method, self._path + route, **arguments)
        if response.is_error:
            raise SystemExit(f"{response.status_code}: {response.json()['detail']}")
        if pending := response.headers.get("Turnout-Pending"):
            print(f"made, but these workers do not serve it yet: {pending}", file=sys.stderr)
        return response.json()

    def live(self, old: str, new: str) -> dict[str, dict[str, Any]]:
        """What both versions have answered so far."""
        return self.call("GET", "/compare", params={"a": old, "b": new})["live"]


def main() -> None:
    """Ramp up, and promote or roll back."""
    arguments = parse()
    model = Model(arguments.url, arguments.model)
    old, new = model.call("GET")["active"], arguments.version
    if old in {None, new}:
        sys.exit(f"expected another active version than {new}, found {old}")
    limits = Limits(arguments.requests, arguments.error_rate, arguments.slower, arguments.seconds)
    try:
        fault = ramp(model, old, new, limits)
    except BaseException as error:  # whatever it is: a canary that nobody watches must not go on
        roll_back(model, old, f"the canary was broken off: {error or type(error).__name__}")
        raise
    if fault:
        roll_back(model, old, fault)
        sys.exit(f"rolled back to {old}: {fault}")
    model.call("POST", "/test/promote", json={"version": new, "reason": "the canary went well"})
    print(f"{new} is active")


def ramp(model: Model, old: str, new: str, limits: Limits) -> str | None:
    """Give the new version more and more of the traffic; why it must go, None if it may stay."""
    before = model.live(old, new)[new]
    for share in SHARES:
        splits = {old: 1 - share, new: share}
        model.call("PUT", "/test", json={"splits": splits, "reason": f"canary at {share:.0%}"})
        print(f"{new} has {share:.0%} of the traffic")
        fault = watch(model, old, new, before, limits)
        if fault:
            return fault
    return None


def roll_back(model: Model, old: str, reason: str) -> None:
    """Give all traffic back to the old version."""
    model.call("POST", "/rollback", json={"version": old, "reason": reason})


def watch(model: Model, old: str, new: str, before: dict[str, Any], limits: Limits) -> str | None:
    """Wait until the new version has answered enough requests of this step; why it must go, None if it may stay."""
    wanted = model.live(old, new)[new]["requests"] + limits.requests
    deadline = time.monotonic() + limits.seconds
    while True:
        live = model.live(old, new)
        fault = judge(live[old], live[new], before, limits)
        if fault or live[new]["requests"] >= wanted:
            return fault
        if time.monotonic() > deadline:
            return f"fewer than {limits.requests} requests within {limits.seconds:g} s"
        time.sleep(0.5)


def judge(old: dict[str, Any], new: dict[str, Any], before: dict[str, Any], limits: Limits) -> str | None:
    """What is wrong with the new version, None if nothing is."""
    requests, errors = new["requests"] - before["requests"], new["errors"] - before["errors"]
    if requests and errors / requests > limits.error_rate:
        return f"{errors} of {requests} requests failed"
    if requests < limits.requests or not old["p99"]:
        return None
    if new["p99"] > limits.slower * old["p99"]:
        return f"p99 is {new['p99'] * 1e3:.2f} ms, that of the active version {old['p99'] * 1e3:.2f} ms"
    return None


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description="Ramp a version up, and roll back when it fails.")
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("model")
    parser.add_argument("version", help="the new one; the active one is what it is compared with")
    parser.add_argument("--requests", type=int, default=200, help="requests of the new version in each step")
    parser.add_argument("--error-rate", type=float, default=0.01, help="share of its requests that may fail")
    parser.add_argument(
        "--slower", type=float, default=3.0, help="how many times the p99 of the old one it may have"
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long a step may take")
    return parser.parse_args()


if __name__ == "__main__":
    main()
