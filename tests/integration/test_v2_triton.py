"""The Open Inference Protocol as the client of Triton speaks it, by both of its interfaces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from models import identity_model, linear_matrix, marked_model
from protocol import DTYPES, array_of, register
from servers import Server, path, wait_for
from turnout.contracts import DATATYPES

MODELS: dict[str, tuple[list[str], list[int | str | None]]] = {
    "one": (["bfloat16"], [None, 3]),
    "two": (["bool", "string"], [None, 3]),
    "three": (["float16", "float", "double"], ["N", "M"]),
    "four": (["int8", "int16", "int32", "int64"], [2, 3]),
    "unsigned": (["uint8", "uint16", "uint32", "uint64"], [None, 3]),
}
"""Element types and shape of the inputs, which come back as outputs."""
CODINGS = [None, "gzip", "deflate"]
X = np.array([[12.5, 90.0], [1.0, 2.0], [0.0, 0.0]], np.float32)
SCORES: Any = X @ np.array([[2.0], [-0.5]], np.float32) + 1


class Awaited:
    """The asynchronous client, each of whose calls is awaited at once."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self._inner = self._runner.run(self._opened(url))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._inner, name)
        return lambda *given, **named: self._runner.run(call(*given, **named))

    def close(self) -> None:
        with self._runner:
            self._runner.run(self._inner.close())

    @staticmethod
    async def _opened(url: str) -> Any:
        return tritonclient.http.aio.InferenceServerClient(url)


@pytest.fixture(scope="module")
def server(server: Server) -> Server:
    graphs = {(name, "v1"): identity_model(*taken) for name, taken in MODELS.items()}
    graphs |= {
        ("churn", "v1.0"): linear_matrix([2.0, -0.5], bias=1.0),
        ("churn", "v2.0"): linear_matrix([0.0, 0.0], bias=7.0),
        ("split", "v1"): linear_matrix([0.0, 0.0], bias=1.0),
        ("split", "v2"): linear_matrix([0.0, 0.0], bias=2.0),
        ("text", "v1"): marked_model("!"),
    }
    register(server.data, graphs)
    begun = server.client.put(path("split", "test"), json={"splits": {"v1": 0.5, "v2": 0.5}})
    assert begun.status_code == 200, begun.text
    return server


@pytest.fixture(scope="module")
def clients(server: Server) -> Iterator[dict[str, Any]]:
    url = f"127.0.0.1:{server.port}"
    opened = {"sync": tritonclient.http.InferenceServerClient(url), "aio": Awaited(url)}
    yield opened
    for client in opened.values():
        client.close()


@pytest.fixture(params=["sync", "aio"])
def client(clients: dict[str, Any], request: pytest.FixtureRequest) -> Any:
    return clients[request.param]


def given(name: str, values: np.ndarray, datatype: str, *, binary: bool = True) -> Any:
    tensor = tritonclient.http.InferInput(name, list(values.shape), datatype)
    return tensor.set_data_from_numpy(values, binary_data=binary)


def wanted(name: str, *, binary: bool = True) -> Any:
    return tritonclient.http.InferRequestedOutput(name, binary_data=binary)


def churn(*, binary: bool = True, rows: np.ndarray = X) -> list[Any]:
    return [given("x", rows, "FP32", binary=binary)]


def comes_back(client: Any, model: str, shape: tuple[int, ...], *, binary_in: bool, binary_out: bool) -> None:
    """Inputs of a model of MODELS, in this shape, are what its outputs are."""
    datatypes = [DATATYPES[dtype] for dtype in MODELS[model][0]]
    arrays = [array_of(datatype, *shape) for datatype in datatypes]
    pairs = list(enumerate(zip(arrays, datatypes, strict=True)))
    inputs = [
        given(f"input{place}", values, datatype, binary=binary_in) for place, (values, datatype) in pairs
    ]
    outputs = [wanted(f"output{place}", binary=binary_out) for place, _ in pairs]
    answer = client.infer(model, inputs, outputs=outputs)
    for place, (values, datatype) in pairs:
        found = answer.as_numpy(f"output{place}")
        assert (found.shape, answer.get_output(f"output{place}")["datatype"]) == (values.shape, datatype)
        assert found.dtype == DTYPES[datatype]
        assert ("data" in answer.get_output(f"output{place}")) != binary_out
        assert texts(found) == texts(values)


def texts(values: np.ndarray) -> list[Any]:
    """The elements; strings come in binary as bytes."""
    return [value.decode() if isinstance(value, bytes) else value for value in values.reshape(-1).tolist()]


# --- tensors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary_out", [False, True], ids=["to json", "to binary"])
@pytest.mark.parametrize("binary_in", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("model", [name for name in MODELS if name != "one"])
def test_values_of_every_datatype_come_back(
    client: Any, model: str, binary_in: bool, binary_out: bool
) -> None:
    comes_back(client, model, (2, 3), binary_in=binary_in, binary_out=binary_out)


def test_bfloat16_goes_in_binary_only(client: Any) -> None:
    comes_back(client, "one", (2, 3), binary_in=True, binary_out=True)
    values = np.ones((1, 3), ml_dtypes.bfloat16)
    with pytest.raises(InferenceServerException, match="BF16") as refused:
        client.infer("one", [given("input0", values, "BF16")], outputs=[wanted("output0", binary=False)])
    assert refused.value.status() == "400"


@pytest.mark.parametrize("binary_out", [False, True], ids=["to json", "to binary"])
@pytest.mark.parametrize("binary_in", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("two", (0, 3)),
        ("unsigned", (0, 3)),
        ("three", (0, 4)),
        ("three", (5, 0)),
        ("three", (1, 1)),
        ("three", (7, 11)),
        ("two", (1, 3)),
        ("two", (100, 3)),
    ],
    ids=str,
)
def test_batches_of_any_size(
    client: Any, model: str, shape: tuple[int, ...], binary_in: bool, binary_out: bool
) -> None:
    comes_back(client, model, shape, binary_in=binary_in, binary_out=binary_out)


def test_all_outputs_come_in_binary_where_none_is_named(client: Any) -> None:
    answer = client.infer("churn", churn())
    assert answer.as_numpy("score").tolist() == SCORES.tolist()
    assert answer.get_response()["outputs"] == [
        {"name": "score", "datatype": "FP32", "shape": [3, 1], "parameters": {"binary_data_size": 12}}
    ]


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_strings_are_utf_8(client: Any, binary: bool) -> None:
    said = np.array(["", "ü", "日本", "🙂", "a" * 10_000], np.object_)
    answer = client.infer("text", [given("text", said, "BYTES", binary=binary)])
    assert texts(answer.as_numpy("marked")) == [f"{text}!" for text in said]
    bad = np.array([b"\xff\xfe"], np.object_)
    with pytest.raises(InferenceServerException, match="UTF-8") as refused:
        client.infer("text", [given("text", bad, "BYTES")])
    assert refused.value.status() == "400"


@pytest.mark.parametrize("back", CODINGS)
@pytest.mark.parametrize("there", CODINGS)
@pytest.mark.parametrize("rows", [1, 2000])
@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_bodies_may_be_packed(
    client: Any, there: str | None, back: str | None, rows: int, binary: bool
) -> None:
    answer = client.infer(
        "churn",
        churn(binary=binary, rows=np.tile(X[:1], (rows, 1))),
        outputs=[wanted("score", binary=binary)],
        request_compression_algorithm=there,
        response_compression_algorithm=back,
    )
    assert answer.as_numpy("score").tolist() == [SCORES[0].tolist()] * rows


# --- what goes with them --------------------------------------------------------------------------------------------


def test_an_id_comes_back(client: Any) -> None:
    assert client.infer("churn", churn(), request_id="ü-1").get_response()["id"] == "ü-1"
    assert "id" not in client.infer("churn", churn()).get_response()


def test_a_version_may_be_named(client: Any) -> None:
    pinned = client.infer("churn", churn(), model_version="v2.0")
    assert pinned.as_numpy("score").tolist() == [[7.0]] * 3
    said = pinned.get_response()
    assert (said["model_name"], said["model_version"]) == ("churn", "v2.0")
    assert said["parameters"]["reason"] == "pinned"
    assert client.infer("churn", churn()).get_response()["model_version"] == "v1.0"


def test_an_entity_is_routed_by_the_split(client: Any, server: Server) -> None:
    versions = set()
    for number in range(20):
        entity = f"user-{number}"
        answer = client.infer("split", churn(), parameters={"entity_id": entity, "tenant": "a", "n": 1})
        said = answer.get_response()
        assigned = server.client.get(path("split", "assignments", entity)).json()["version"]
        assert (said["model_version"], said["parameters"]["version"]) == (assigned, assigned)
        assert said["parameters"]["reason"] == "test"
        assert answer.as_numpy("score").tolist() == [[float(assigned[1:])]] * 3
        versions.add(assigned)
        receipt = server.client.get(path("split", "receipts", said["parameters"]["prediction_id"])).json()
        assert receipt["version"] == assigned
    assert versions == {"v1", "v2"}


@pytest.mark.parametrize("priority", [0, 1, 2, 5, 2**32 - 1])
@pytest.mark.parametrize("timeout", [None, 0, 5_000_000, 2**40])
def test_requests_have_a_priority_and_a_timeout(client: Any, priority: int, timeout: int | None) -> None:
    answer = client.infer("churn", churn(), priority=priority, timeout=timeout)
    assert answer.as_numpy("score").tolist() == SCORES.tolist()


def test_requests_may_be_many_at_once(server: Server) -> None:
    url = f"127.0.0.1:{server.port}"
    with tritonclient.http.InferenceServerClient(url, concurrency=8) as several:
        asked = [
            several.async_infer(
                "churn", churn(rows=np.full((2, 2), number, np.float32)), request_id=f"{number}"
            )
            for number in range(1, 33)
        ]
        for number, waiting in enumerate(asked, 1):
            answer: Any = waiting.get_result(timeout=20)
            assert answer.get_response()["id"] == f"{number}"
            assert answer.as_numpy("score").tolist() == [[1.5 * number + 1]] * 2
        failing = several.async_infer("nobody", churn())
        with pytest.raises(InferenceServerException, match="unknown model"):
            failing.get_result()


def test_the_asynchronous_client_has_many_at_once(server: Server) -> None:
    async def ask() -> list[Any]:
        async with tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            calls = (
                client.infer("churn", churn(rows=np.full((500, 2), number, np.float32)))
                for number in range(1, 33)
            )
            return await asyncio.gather(*calls)

    for number, answer in enumerate(asyncio.run(ask()), 1):
        assert answer.as_numpy("score").tolist() == [[1.5 * number + 1]] * 500


# --- what there is --------------------------------------------------------------------------------------------------


def test_the_server_is_live_and_ready_and_says_what_it_is(client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    said = client.get_server_metadata()
    assert said["name"] == "turnout"
    assert said["version"]
    assert set(said["extensions"]) == {
        "binary_tensor_data",
        "model_configuration",
        "model_repository",
        "parameters",
        "schedule_policy",
        "statistics",
    }


@pytest.mark.parametrize(
    ("model", "version", "ready"),
    [
        ("churn", "", True),
        ("churn", "v1.0", True),
        ("churn", "v9", False),
        ("nobody", "", False),
        ("nobody", "1", False),
    ],
)
def test_models_are_ready_or_not(client: Any, model: str, version: str, ready: bool) -> None:
    assert client.is_model_ready(model, version) is ready


def test_metadata_say_what_a_model_takes_and_gives(client: Any) -> None:
    said = client.get_model_metadata("churn", "v2.0")
    assert said == client.get_model_metadata("churn")
    assert said == {
        "name": "churn",
        "versions": ["v1.0", "v2.0"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 1]}],
    }


@pytest.mark.parametrize("model", MODELS)
def test_metadata_have_every_datatype(client: Any, model: str) -> None:
    dtypes, shape = MODELS[model]
    said = client.get_model_metadata(model)
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    for role in ("input", "output"):
        assert said[f"{role}s"] == [
            {"name": f"{role}{place}", "datatype": DATATYPES[dtype], "shape": sizes}
            for place, dtype in enumerate(dtypes)
        ]


@pytest.mark.parametrize("model", MODELS)
def test_a_configuration_is_what_a_load_generator_needs(client: Any, model: str) -> None:
    dtypes, shape = MODELS[model]
    said = client.get_model_config(model)
    assert (said["name"], said["platform"], said["backend"]) == (model, "onnxruntime_onnx", "onnxruntime")
    batched = shape[0] != 2
    assert (said["max_batch_size"] > 0) == batched
    sizes = [size if isinstance(size, int) else -1 for size in shape][batched:]
    kinds = ["TYPE_" + {"BYTES": "STRING"}.get(DATATYPES[dtype], DATATYPES[dtype]) for dtype in dtypes]
    for role in ("input", "output"):
        assert [(each["data_type"], each["dims"]) for each in said[role]] == [(kind, sizes) for kind in kinds]
    assert client.get_model_config(model, "v1") == said


def test_what_is_loaded_is_listed_and_changed(client: Any, server: Server) -> None:
    index = client.get_model_repository_index()
    assert {(each["name"], each["version"]) for each in index} >= {("churn", "v1.0"), ("churn", "v2.0")}
    state = {(each["name"], each["version"]): each["state"] for each in index}
    assert state["churn", "v1.0"] == "READY"
    kept = f"kept-{type(client).__name__}"
    register(server.data, {(kept, "v1"): linear_matrix([1.0, 2.0]), (kept, "v2"): linear_matrix([1.0, 3.0])})
    assert client.is_model_ready(kept, "v2") is False
    assert client.load_model(kept) is None
    assert client.is_model_ready(kept, "v2") is True
    assert client.unload_model(kept) is None
    wait_for(lambda: not client.is_model_ready(kept, "v2"), 5, "workers that have let go of v2")
    assert client.is_model_ready(kept) is True
    assert client.infer(kept, churn()).as_numpy("score").tolist() == (X @ [[1], [2]]).tolist()


def test_what_can_not_be_loaded(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="failed to load") as unknown:
        client.load_model("nobody")
    assert unknown.value.status() == "400"
    assert client.unload_model("nobody") is None
    with pytest.raises(InferenceServerException, match="failed to load") as overridden:
        client.load_model("churn", config=json.dumps({"max_batch_size": 1}))
    assert overridden.value.status() == "400"


def test_statistics_count_rows_and_runs(client: Any, server: Server) -> None:
    model = f"counted-{type(client).__name__}"
    register(
        server.data, {(model, "v1"): linear_matrix([1.0, 2.0]), (model, "v2"): linear_matrix([1.0, 3.0])}
    )

    def counts(version: str) -> tuple[int, int, int]:
        (found,) = client.get_inference_statistics(model, version)["model_stats"]
        assert (found["name"], found["version"]) == (model, version)
        return (
            found["inference_count"],
            found["execution_count"],
            found["inference_stats"]["success"]["count"],
        )

    assert counts("v1") == counts("v2") == (0, 0, 0)
    for _ in range(4):
        client.infer(model, churn())
    client.infer(model, churn(), model_version="v2")
    wait_for(lambda: counts("v1") == (12, 4, 4), 5, lambda: f"the counts of v1, found {counts('v1')}")
    wait_for(lambda: counts("v2") == (3, 1, 1), 5, lambda: f"the counts of v2, found {counts('v2')}")
    both = client.get_inference_statistics(model)["model_stats"]
    assert [each["version"] for each in both] == ["v1", "v2"]
    stats = both[0]["inference_stats"]
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] > 0
    assert stats["fail"] == {"count": 0, "ns": 0}
    assert both[0]["last_inference"] > 1_700_000_000_000
    everything = client.get_inference_statistics()["model_stats"]
    assert {model, "churn", "text"} <= {each["name"] for each in everything}


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("get_trace_settings", {}),
        ("get_trace_settings", {"model_name": "churn"}),
        ("update_trace_settings", {"settings": {"trace_level": ["OFF"]}}),
        ("update_trace_settings", {"model_name": "churn", "settings": {}}),
        ("get_log_settings", {}),
        ("update_log_settings", {"settings": {"log_info": True}}),
        ("get_system_shared_memory_status", {}),
        ("get_system_shared_memory_status", {"region_name": "a"}),
        ("register_system_shared_memory", {"name": "a", "key": "/a", "byte_size": 8}),
        ("unregister_system_shared_memory", {}),
        ("get_cuda_shared_memory_status", {}),
        ("register_cuda_shared_memory", {"name": "a", "raw_handle": b"x", "device_id": 0, "byte_size": 8}),
        ("unregister_cuda_shared_memory", {"name": "a"}),
    ],
    ids=str,
)
def test_what_is_not_served_is_said(client: Any, call: str, arguments: dict[str, Any]) -> None:
    """Over RSGI, which decodes paths, one that goes on behind a model is that of a model of a longer name."""
    said = "there is no /v2/|unknown model: 'churn/|is not possible here"
    with pytest.raises(InferenceServerException, match=said) as refused:
        getattr(client, call)(**arguments)
    assert refused.value.status() in {"404", "405"}
    assert client.is_server_live()


# --- refusals -------------------------------------------------------------------------------------------------------


def in_shared_memory(name: str) -> Any:
    return tritonclient.http.InferInput(name, [1, 2], "FP32").set_shared_memory("region", 8)


REFUSED: dict[str, tuple[str, Callable[[], dict[str, Any]], str, list[str]]] = {
    "unknown model": (
        "nobody",
        lambda: {"inputs": churn()},
        "404",
        ["Request for unknown model: 'nobody' is not found"],
    ),
    "unknown version": (
        "churn",
        lambda: {"inputs": churn(), "model_version": "v9"},
        "404",
        ["v9", "churn"],
    ),
    "unknown input": (
        "churn",
        lambda: {"inputs": [given("y", X, "FP32")]},
        "400",
        ['unknown input "y"', '"x"'],
    ),
    "an input too many": (
        "churn",
        lambda: {"inputs": [*churn(), given("y", X, "FP32")]},
        "400",
        ['unknown input "y"'],
    ),
    "an input too few": (
        "two",
        lambda: {"inputs": [given("input0", np.ones((1, 3), bool), "BOOL")]},
        "400",
        ['missing input "input1"'],
    ),
    "wrong datatype": (
        "churn",
        lambda: {"inputs": [given("x", X.astype(np.float64), "FP64")]},
        "400",
        ['"x"', "FP32", "FP64"],
    ),
    "wrong shape": (
        "churn",
        lambda: {"inputs": churn(rows=np.ones((1, 3), np.float32))},
        "400",
        ['"x"', "[-1, 2]", "[1, 3]"],
    ),
    "wrong rank": (
        "churn",
        lambda: {"inputs": churn(rows=np.ones(2, np.float32))},
        "400",
        ['"x"', "[-1, 2]", "[2]"],
    ),
    "not as many rows in each": (
        "unsigned",
        lambda: {
            "inputs": [
                given(f"input{place}", np.ones((1 + place, 3), f"uint{bits}"), f"UINT{bits}")
                for place, bits in enumerate((8, 16, 32, 64))
            ]
        },
        "400",
        ["as many rows in each input"],
    ),
    "unknown output": (
        "churn",
        lambda: {"inputs": churn(), "outputs": [wanted("label")]},
        "400",
        ['unknown output "label"', '"score"'],
    ),
    "an output twice": (
        "churn",
        lambda: {"inputs": churn(), "outputs": [wanted("score"), wanted("score", binary=False)]},
        "400",
        ["score"],
    ),
    "classification": (
        "churn",
        lambda: {
            "inputs": churn(),
            "outputs": [tritonclient.http.InferRequestedOutput("score", class_count=2)],
        },
        "400",
        ["classification"],
    ),
    "shared memory": (
        "churn",
        lambda: {"inputs": [in_shared_memory("x")]},
        "400",
        ["shared memory"],
    ),
}


@pytest.mark.parametrize(("model", "request_of", "status", "said"), REFUSED.values(), ids=REFUSED)
def test_refusals_say_what_is_wrong(
    client: Any, model: str, request_of: Callable[[], dict[str, Any]], status: str, said: list[str]
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer(model, **request_of())
    assert refused.value.status() == status
    for part in said:
        assert part in refused.value.message()
