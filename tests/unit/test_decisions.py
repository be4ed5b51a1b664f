"""Advance, hold or roll back: what is decided from counts. No clock, no database."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import turnout
from models import constant_label, failing_model
from servers import wait_for
from turnout import errors
from turnout.domain import Arm, Test, utc_now
from turnout.experiment.clock import Clock
from turnout.experiment.controller import Controller, Leadership
from turnout.experiment.counts import ArmCounts, MetricCounts, SegmentCounts, ShadowCounts, TestCounts
from turnout.experiment.decisions import Decision, decide
from turnout.experiment.report import Facts, results_of
from turnout.experiment.signing import verify
from turnout.experiment.units import BAD, FAILED
from turnout.plans import Allocation, Guardrail, Metric, Plan, Step, check_metrics, check_plan

NOW = 1_000_000.0
PLAN = Plan(steps=(Step(0.1, dwell_seconds=60, min_entities=100), Step(0.5), Step(1.0)), negligible=0.01)
BOUGHT = Metric("bought", "binary", role="guardrail", margin=0.05)


def planned(plan: Plan = PLAN, **fields: Any) -> Test:
    share = plan.steps[fields.get("step", 0)].share if plan.steps else 0.5
    arms = (Arm("v1", 1 - share, round((1 - share) * 100_000)), Arm("v2", share, round(share * 100_000)))
    now = utc_now()
    given: dict[str, Any] = {"since": NOW - 100, "baseline": "v1", "candidate": "v2", "plan": plan, **fields}
    return Test("1", "m", "salt", arms, fields.pop("revision", 1), "running", now, now, **given)


def segment(
    share: float = 0.1, entities: int = 20_000, failed: tuple[int, int] = (0, 0), **metrics: tuple[int, int]
) -> SegmentCounts:
    """Counts of one segment; `failed` and `metrics` are events of (v1, v2)."""
    found = SegmentCounts(1, 0, {"v1": 1 - share, "v2": share})
    for arm, part, place in (("v1", 1 - share, 0), ("v2", share, 1)):
        n = round(entities * part)
        bad = [0] * BAD
        bad[FAILED] = failed[place]
        sums = {
            name: MetricCounts(n=n, events=events[place], y=events[place], yy=events[place])
            for name, events in metrics.items()
        }
        found.arms[arm] = ArmCounts([n, 0, failed[place], 0], assigned=n, answered=n, bad=bad, metrics=sums)
    return found


def decided(*segments: SegmentCounts, test: Test | None = None, now: float = NOW, **more: Any) -> Decision:
    return decide(test or planned(), more.pop("metrics", ()), segments, now, **more)


def test_a_step_that_has_all_it_needs_is_left() -> None:
    decision = decided(segment())
    assert decision.action == "advance"
    assert decision.reason == "step 1 is done without harm beyond the margins: v2 gets 0.5 of the traffic"
    assert decision.evidence["guardrails"][0]["entities"] == {"v1": 18_000, "v2": 2000}


@pytest.mark.parametrize(
    ("fields", "counts", "said"),
    [
        ({"since": NOW - 59}, segment(), "1 more seconds of its dwell time"),
        ({}, segment(entities=500), "50 more matured entities of v2"),
        ({}, segment(entities=0), "100 more matured entities of v1"),
        ({}, segment(entities=5000), "harm beyond the margin of guardrail errors to be excluded"),
        ({}, segment(failed=(180, 20)), "harm beyond the margin of guardrail errors to be excluded"),
    ],
)
def test_what_a_step_waits_for(fields: dict[str, Any], counts: SegmentCounts, said: str) -> None:
    decision = decided(counts, test=planned(**fields))
    assert decision.action == "hold"
    assert said in decision.waiting_for
    assert decision.reason == f"step 1 waits for {decision.waiting_for[0]}"


def test_no_traffic_means_hold() -> None:
    plan = replace(PLAN, steps=(Step(0.1), Step(0.5)))
    assert "traffic" in decided(test=planned(plan)).waiting_for
    assert "traffic" in decided(segment(entities=0), test=planned(plan)).waiting_for


def test_approval() -> None:
    plan = replace(PLAN, steps=(Step(0.1, approval=True), Step(0.5)))
    assert decided(segment(), test=planned(plan)).waiting_for == ("an approval",)
    assert decided(segment(), test=planned(plan, approved=True)).action == "advance"


def test_paused_holds_but_rolls_back_all_the_same() -> None:
    assert decided(segment(), test=planned(paused=True)).action == "hold"
    assert decided(segment(failed=(10, 60)), test=planned(paused=True)).action == "roll_back"


def test_more_failures_than_the_margin_roll_back() -> None:
    decision = decided(segment(failed=(90, 40)))
    assert decision.action == "roll_back"
    assert "guardrail errors: worse than the baseline by more than 10.0%" in decision.reason
    assert "v1: 90 of 18000, v2: 40 of 2000" in decision.reason
    assert decided(segment(failed=(90, 11))).action == "hold"


def test_the_evidence_is_shared_among_guardrails() -> None:
    """max pi E >= 1/alpha: with ten guardrails each needs ten times the evidence."""
    alone = replace(PLAN, guardrails=(Guardrail("errors", 0.1),), alpha=0.05)
    many = replace(
        alone, guardrails=(Guardrail("errors", 0.1), Guardrail("fallbacks", 0.1), Guardrail("invalid", 0.1))
    )
    found = {}
    for name, plan in (("alone", alone), ("many", many)):
        found[name] = next(
            bad
            for bad in itertools.count(1)
            if decided(segment(failed=(9 * 3, bad)), test=planned(plan)).action == "roll_back"
        )
    assert found["many"] > found["alone"]


def test_a_hard_limit_needs_no_evidence() -> None:
    plan = replace(PLAN, guardrails=(Guardrail("errors", 0.1, hard_limit=0.3, hard_requests=20),))
    few = segment(entities=100, failed=(0, 4))
    assert decided(few, test=planned(plan)).action == "hold"
    many = segment(entities=200, failed=(0, 12))
    assert "hard limit" in decided(many, test=planned(plan)).reason


def test_a_metric_that_falls_rolls_back_and_one_that_does_not_lets_go_on() -> None:
    metrics = (BOUGHT,)
    falls = decided(segment(0.5, 40_000, bought=(4000, 3200)), metrics=metrics)
    assert falls.action == "roll_back"
    assert "guardrail bought" in falls.reason
    assert decided(segment(0.5, 4000, bought=(400, 390)), metrics=metrics).action == "hold"
    fine = decided(segment(0.5, 400_000, bought=(40_000, 40_200)), metrics=metrics)
    assert fine.action == "advance"
    down = replace(BOUGHT, direction="down")
    assert decided(segment(0.5, 40_000, bought=(3200, 4000)), metrics=(down,)).action == "roll_back"


def test_a_wrong_sample_ratio_holds() -> None:
    counts = segment(0.5, 40_000)
    counts.arms["v2"].assigned -= 2000
    assert any("sample ratio" in one for one in decided(counts).waiting_for)


def test_the_end_of_a_plan() -> None:
    last = planned(step=2)
    assert decided(segment(), test=last).action == "finish"
    held = decided(segment(), test=planned(replace(PLAN, at_end="hold"), step=2))
    assert (held.action, held.waiting_for) == ("hold", ())


def test_a_shadow_step_waits_for_pairs_and_ends_with_failures() -> None:
    plan = replace(PLAN, steps=(Step(shadow=0.5, min_entities=10), Step(0.1, min_entities=10)))
    test = planned(plan)
    assert decided(segment(0.0), test=test).waiting_for == (
        "10 more requests that the shadow has run as well",
    )
    assert decided(segment(0.0), test=test, shadow=ShadowCounts(pairs=10, agreed=2)).action == "advance"
    failing = ShadowCounts(pairs=10, failed=60)
    assert decided(segment(0.0), test=test, shadow=failing).action == "roll_back"


def test_every_arm_of_an_allocation_is_guarded() -> None:
    plan = Plan(allocation=Allocation("bought"), guardrails=(Guardrail("errors", 0.1),))
    third = Arm("v3", 0.1, 10_000)
    test = replace(planned(plan), arms=(*planned(plan).arms, third))
    counts = segment(0.5)
    counts.shares["v3"], counts.arms["v3"] = 0.1, ArmCounts([2000, 0, 0, 0], assigned=2000)
    assert decided(counts, test=test).action == "hold"
    counts.arms["v3"].bad[FAILED] = 60
    decision = decided(counts, test=test)
    assert decision.action == "roll_back"
    assert decision.reason.startswith("v3: guardrail errors")


def test_one_that_has_no_plan_is_left_alone() -> None:
    assert decided(segment(failed=(0, 999)), test=replace(planned(), plan=None)).action == "hold"


# --- plans and metrics that cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"steps": []}, "1 to 50 steps"),
        ({"steps": [{"share": 0.1}, {"share": 0.1}]}, "step 2: expected a share above 0.1"),
        (
            {"steps": [{"share": 0.1, "min_entities": 9}, {"share": 0.2, "min_entities": 8}]},
            "minimums do not fall",
        ),
        ({"steps": [{"share": 1.5}]}, "share"),
        ({"steps": [{"share": 0.5, "shadow": 0.5}]}, "a shadow answers nothing"),
        ({"steps": [{}]}, "a share above 0, or a shadow"),
        ({"steps": [{"share": 0.5}], "guardrails": [{"metric": "errors"}]}, "has no margin"),
        (
            {"steps": [{"share": 0.5}], "guardrails": [{"metric": "clicks", "margin": 0.1}]},
            "errors, fallbacks, invalid",
        ),
        (
            {
                "steps": [{"share": 0.5}],
                "guardrails": [{"metric": "latency", "margin": 0.1, "hard_limit": 2}],
            },
            "hard_limit",
        ),
        ({"steps": [{"share": 0.5}], "alpha": 0}, "alpha"),
        ({"steps": [{"share": 0.5}], "allocation": {"metric": "bought"}}, "found both"),
        ({"allocation": {"metric": "none"}}, "a declared metric that is no label"),
        ({"steps": [{"share": 0.5}], "speed": 9}, "speed"),
        ("fast", "plan"),
    ],
)
def test_a_plan_that_cannot_be_followed(plan: Any, said: str) -> None:
    with pytest.raises(errors.InvalidPlan, match=said):
        check_plan(plan, (BOUGHT,))


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ({"name": "g", "kind": "binary", "role": "guardrail"}, "guardrail without margin"),
        ({"name": "errors", "kind": "binary"}, "built in"),
        ({"name": "a b", "kind": "binary"}, "name"),
        ({"name": "a", "kind": "ratio"}, "kind"),
        ({"name": "a", "kind": "binary", "window_seconds": 0}, "window_seconds"),
        ({"name": "a", "kind": "binary", "classes": [1]}, "classes"),
        (7, "metric"),
    ],
)
def test_a_metric_that_cannot_be_declared(metric: Any, said: str) -> None:
    with pytest.raises(errors.InvalidMetric, match=said):
        check_metrics([metric])
    with pytest.raises(errors.InvalidMetric, match="twice"):
        check_metrics([BOUGHT, BOUGHT])


# --- the controller -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    with turnout.open(tmp_path / "data", device="cpu") as opened:
        for label, version in enumerate(("v1", "v2")):
            (tmp_path / version).write_bytes(constant_label(label))
            opened.register_version("m", version, tmp_path / version, features=["a", "b"])
        opened.activate_version("m", "v1")
        yield opened


def controller(hub: turnout.Turnout) -> Controller:
    return Controller(hub.desk, Leadership(hub.data / "controller.lock"), 0.1)


def traffic(hub: turnout.Turnout, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        hub.predict("m", [1, 2], entity_id=number)
    hub.desk.exposures.flush()


def test_a_plan_is_followed_to_its_end(hub: turnout.Turnout) -> None:
    plan = {"steps": [{"share": 0.5}, {"share": 0.9}], "negligible": 0.2, "alpha": 0.1}
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5}, plan=plan)
    acting = controller(hub)
    acting.tick()
    assert hub.get_test("m").step == 0  # no traffic
    for number in range(3):
        traffic(hub, 300, 300 * number)
        acting.tick()
    assert hub.get_test("m") is None
    assert hub.active_version("m").version == "v2"
    told = [(event.actor, event.action) for event in hub.audit(model="m")][-2:]
    assert told == [("controller", "advance"), ("controller", "promote")]
    acting.stop()


def test_a_jump_of_the_clock_advances_nothing(hub: turnout.Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.declare_metrics(
        "m", [{"name": "bought", "kind": "binary", "role": "primary", "window_seconds": 3600}]
    )
    steps = [{"share": 0.5, "dwell_seconds": 3600, "min_entities": 50}, {"share": 0.9, "min_entities": 50}]
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5}, plan={"steps": steps, "negligible": 0.2, "alpha": 0.1})
    traffic(hub, 300)
    acting = controller(hub)
    wall = turnout.experiment.clock.time.time
    for jump in (90_000.0, -90_000.0):
        monkeypatch.setattr(turnout.experiment.clock.time, "time", lambda jump=jump: wall() + jump)
        acting.tick()
        # Another process that starts now agrees on the time.
        assert abs(Clock(hub.desk.events.anchor).now() - hub.desk.clock.now()) < 1
        waiting = hub.results("m").waiting_for
        assert hub.get_test("m").step == 0
        assert any("dwell" in one for one in waiting)
        assert any("matured" in one for one in waiting)
    acting.stop()


def test_hands_on_the_wheel(hub: turnout.Turnout) -> None:
    steps = [{"share": 0.1, "approval": True}, {"share": 0.5}, {"share": 0.9}]
    hub.configure_test("m", {"v1": 0.9, "v2": 0.1}, plan={"steps": steps, "negligible": 0.2, "alpha": 0.1})
    acting = controller(hub)
    traffic(hub, 1000)
    acting.tick()
    assert (hub.get_test("m").step, hub.results("m").waiting_for) == (0, ("an approval",))
    hub.pause_test("m", reason="lunch")
    hub.approve_step("m")
    acting.tick()
    assert hub.get_test("m").step == 0
    assert hub.results("m").paused
    hub.resume_test("m")
    acting.tick()
    assert hub.get_test("m").step == 1
    assert hub.get_test("m").weights == pytest.approx({"v1": 0.5, "v2": 0.5})
    hub.skip_step("m")
    assert hub.get_test("m").weights == pytest.approx({"v1": 0.1, "v2": 0.9})
    with pytest.raises(errors.Conflict, match="3 steps"):
        hub.skip_step("m")
    hub.configure_test("m", {"v1": 0.6, "v2": 0.4})
    assert hub.get_test("m").paused  # new weights by hand pause the plan
    hub.stop_test("m")
    with pytest.raises(errors.TestNotFound):
        hub.pause_test("m")
    hub.configure_test("m", {"v1": 0.6, "v2": 0.4})
    with pytest.raises(errors.Conflict, match="no plan"):
        hub.approve_step("m")
    acting.stop()


@pytest.mark.parametrize(
    ("weights", "said"),
    [({"v2": 1.0}, "active version"), ({"v1": 0.5, "v2": 0.3, "v3": 0.2}, "two arms")],
)
def test_the_arms_of_a_plan(
    hub: turnout.Turnout, tmp_path: Path, weights: dict[str, float], said: str
) -> None:
    (tmp_path / "v3").write_bytes(constant_label(3))
    hub.register_version("m", "v3", tmp_path / "v3", features=["a", "b"])
    with pytest.raises(errors.InvalidPlan, match=said):
        hub.configure_test("m", weights, plan={"steps": [{"share": 0.5}]})
    assert hub.get_test("m") is None


def test_a_decision_that_comes_too_late_changes_nothing(hub: turnout.Turnout) -> None:
    steps = [{"share": 0.1}, {"share": 0.5}]
    hub.configure_test("m", {"v1": 0.9, "v2": 0.1}, plan={"steps": steps, "negligible": 0.2, "alpha": 0.1})
    traffic(hub, 1000)
    revision, record = hub.desk.running_tests()[0]
    hub.pause_test("m")
    acting = controller(hub)
    with pytest.raises(errors.RevisionConflict):
        acting._look(revision, record, record.test)
    assert hub.get_test("m").step == 0
    acting.stop()


def test_decisions_are_told_to_webhooks(hub: turnout.Turnout) -> None:
    told: list[tuple[dict[str, str], bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/hook"
        steps = [{"share": 0.5}, {"share": 0.9, "dwell_seconds": 60}]
        plan = {"steps": steps, "negligible": 0.2, "alpha": 0.1, "webhooks": [url]}
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5}, plan=plan)
        traffic(hub, 300)
        acting = controller(hub)
        acting.tick()
        hub.pause_test("m", actor="Ada", reason="lunch")
        wait_for(lambda: len(told) == 2, 10, "two deliveries")
        server.shutdown()
        acting.stop()
    secret = base64.b64decode(hub.webhook_secret().removeprefix("whsec_"))
    assert all(verify(secret, headers, body) for headers, body in told)
    events = [json.loads(body) for _, body in told]
    assert [(event["type"], event["actor"], event["step"]) for event in events] == [
        ("test.advance", "controller", 0),
        ("test.pause", "Ada", 1),
    ]
    assert events[0]["evidence"]["guardrails"][0]["harm_excluded"]
    with pytest.raises(errors.InvalidRequest, match="http"):
        hub.configure_test("m", {"v1": 0.5, "v2": 0.5}, plan={**plan, "webhooks": ["ftp://x"]})


def test_a_rollback_leaves_the_baseline(hub: turnout.Turnout, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(failing_model())
    hub.register_version("m", "bad", tmp_path / "bad", features=["a", "b"])
    plan = {"steps": [{"share": 0.5, "dwell_seconds": 60}, {"share": 0.9}]}
    hub.configure_test("m", {"v1": 0.5, "bad": 0.5}, plan=plan)
    hub.activate_version("m", "bad", reason="by mistake")
    for number in range(200):
        with contextlib.suppress(errors.PredictionFailed):
            hub.predict("m", [1, 2], entity_id=number)
    hub.desk.exposures.flush()
    acting = controller(hub)
    acting.tick()
    assert hub.get_test("m") is None
    assert hub.active_version("m").version == "v1"
    assert hub.list_tests("m")[-1].status == "rolled_back"
    acting.stop()


def test_a_plan_needs_arms_from_the_beginning(hub: turnout.Turnout, tmp_path: Path) -> None:
    (tmp_path / "v3").write_bytes(constant_label(3))
    hub.register_version("m", "v3", tmp_path / "v3", features=["a", "b"])
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5})
    hub.configure_test("m", {"v1": 0.5, "v3": 0.5})
    with pytest.raises(errors.Conflict, match="began without v3"):
        hub.configure_test("m", {"v1": 0.5, "v3": 0.5}, plan={"steps": [{"share": 0.5}]})


def test_one_test_that_cannot_be_read_does_not_hold_up_the_others(
    hub: turnout.Turnout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("a", "z"):
        for version, graph in (("v1", constant_label(0)), ("bad", failing_model())):
            (tmp_path / version).write_bytes(graph)
            hub.register_version(model, version, tmp_path / version, features=["a", "b"])
        hub.activate_version(model, "v1")
        hub.configure_test(model, {"v1": 0.5, "bad": 0.5}, plan={"steps": [{"share": 0.5}, {"share": 0.9}]})
    for number in range(200):
        hub.predict("z", [1, 2], entity_id=number)
    hub.desk.exposures.flush()
    counts_of = hub.desk.counts_of

    def broken(test: Test) -> Any:
        if test.model == "a":
            raise ValueError("not what it was")
        return counts_of(test)

    monkeypatch.setattr(hub.desk, "counts_of", broken)
    acting = controller(hub)
    acting.tick()
    assert (hub.get_test("a") is not None, hub.get_test("z")) == (True, None)
    acting.stop()


def test_a_plan_does_not_go_on_over_a_worse_primary_metric() -> None:
    primary = Metric("stayed", "binary", role="primary")
    decision = decided(segment(0.5, 40_000, stayed=(10_000, 9000)), metrics=(primary,), test=planned(step=2))
    assert decision.action == "hold"
    assert any("worse in stayed" in one for one in decision.waiting_for)
    assert decided(segment(0.5, 40_000, stayed=(10_000, 10_000)), metrics=(primary,)).action == "advance"


def test_shares_follow_what_is_learnt(hub: turnout.Turnout, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.declare_metrics("m", [{"name": "bought", "kind": "binary", "window_seconds": 0.001}])
    plan = {"allocation": {"metric": "bought", "floor": 0.1, "every_seconds": 1}}
    hub.configure_test("m", {"v1": 0.5, "v2": 0.5}, plan=plan)
    acting = controller(hub)
    matured = hub.desk.clock.matured_ms
    for number in range(600):
        answer = hub.predict("m", [1, 2], entity_id=number)
        bought = number % 10 < (6 if answer.version == "v2" else 2)
        if bought:
            item = {"model": "m", "metric": "bought", "value": 1, "prediction_id": answer.prediction_id}
            hub.record_outcomes([{**item, "time": hub.read_receipt("m", answer.prediction_id).time}])
    hub.desk.exposures.flush()
    monkeypatch.setattr(hub.desk.clock, "matured_ms", lambda: matured() + 5000)
    now = hub.desk.clock.now
    monkeypatch.setattr(hub.desk.clock, "now", lambda: now() + 5)
    acting.tick()
    test = hub.get_test("m")
    assert test.weights == pytest.approx({"v1": 0.1, "v2": 0.9}, abs=0.01)
    event = hub.audit(model="m")[-1]
    assert (event.action, event.actor) == ("allocate", "controller")
    assert event.after["evidence"]["arms"]["v2"]["n"] > 200
    effect = hub.results("m").metrics[0].effects[0]
    assert math.isclose(effect.difference, 0.4, abs_tol=0.1)
    acting.stop()


# --- what results recommend -----------------------------------------------------------------------------------------------


def recommended(**metrics: tuple[int, int]) -> tuple[str, str]:
    declared = (
        Metric("stayed", "binary", role="primary"),
        Metric("spent", "binary", role="guardrail", margin=0.05),
    )
    facts = Facts(
        test=replace(planned(), plan=None),
        metrics=declared,
        versions={},
        counts=TestCounts(segments=[segment(0.5, 40_000, **metrics)]),
        errors_of=frozenset(),
        now=NOW,
        at=utc_now(),
    )
    results = results_of(facts)
    return results.recommendation, results.reason


def test_recommendations() -> None:
    same = (4000, 4000)
    assert recommended(stayed=(10_000, 11_000), spent=same)[0] == "promote"
    assert recommended(stayed=(10_000, 9000), spent=same)[0] == "roll_back"
    assert recommended(stayed=(10_000, 10_050), spent=same)[0] == "keep_running"
    harmed, why = recommended(stayed=(10_000, 11_000), spent=(4000, 3000))
    assert harmed == "roll_back"
    assert "v2 is worse by more than its margin in spent than v1" in why
    unsure, why = recommended(stayed=(10_000, 11_000), spent=(4000, 3650))
    assert unsure == "keep_running"
    assert "which its margin may not allow" in why
