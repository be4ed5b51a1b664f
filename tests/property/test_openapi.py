"""schemathesis sends every operation of the OpenAPI document what it allows and what it does not: no 5xx, no dead worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from models import linear_matrix
from servers import Server

FUZZED, STEADY = "fuzzed", "steady"
EXAMPLES = 25
SENT: list[str] = []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # A hostile file is examined for two seconds at most, or the probes would take all of the time.
    with Server(tmp_path_factory.mktemp("openapi") / "data", workers=2, probe_seconds=2) as running:
        for model in (FUZZED, STEADY):
            running.release(model, "v1", linear_matrix([1.0, 2.0]), features=["a", "b"])
            running.put(model, "v2", linear_matrix([1.0, 3.0]), features=["a", "b"]).raise_for_status()
        workers = {worker.pid for worker in running.family()}
        yield running
        assert len(SENT) > 100, "schemathesis has sent next to nothing"
        assert {worker.pid for worker in running.family()} == workers
        assert running.client.get("/livez").status_code == 200
        assert running.client.get("/readyz").status_code == 200
        answer = running.predict(STEADY, {"a": 1, "b": 2})
        assert (answer.status_code, answer.json()["outputs"]) == (200, {"score": [5.0]})


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("model", [None, FUZZED], ids=["any model", "a model that is there"])
@pytest.mark.parametrize(
    "mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "not allowed"]
)
def test_operations(
    server: Server, model: str | None, mode: GenerationMode, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a model that is there the rest of a request is looked at; most generated names are of none."""
    operations = [
        result.ok()
        for result in schemathesis.openapi.from_url(f"{server.url}/schema/openapi.json").get_all_operations()
    ]
    assert len(operations) > 20
    chosen = [o for o in operations if model is None or o.path_parameters.get("model")]
    sent = [operation.label for operation in chosen if send(operation, mode, model)]
    with capsys.disabled():
        print(f"\n{len(sent)} of {len(chosen)} operations, {len(SENT)} requests so far")
    assert len(sent) == len(chosen) if mode is GenerationMode.POSITIVE else len(sent) > 8


def send(operation: schemathesis.APIOperation, mode: GenerationMode, model: str | None) -> bool:
    """Send one operation EXAMPLES times; False where nothing can be wrong with it, or so seldom that none is found."""

    @seed(1)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: schemathesis.Case) -> None:
        if model is not None:
            case.path_parameters["model"] = model
        SENT.append(operation.label)
        case.call_and_validate(checks=[not_a_server_error])

    try:
        one()
    except Unsatisfiable:
        return False
    return True
