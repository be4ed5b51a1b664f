"""The Open Inference Protocol (V2) beside the servers that speak it: rows and images, in JSON and in binary.

    python benches/inference.py --environments DIR [--install] [--rounds 5] [--seconds 2] [--only NAME ...]
    python benches/inference.py --environments DIR --quick
    python benches/inference.py --copies

One worker a server, one thread a session. Needs `wrk` on the PATH: one thread of it asks, on the cores that the servers
have too. In each round all servers are up, on loopback, and each line asks one after the other; what is printed are
medians, and ratios taken within a round. Every answer is compared with the session's before it is measured.

Each rival lives in a virtual environment of its own under DIR, which `--install` makes; without DIR only Turnout runs.
tritonserver comes from the wheel of PyTriton and runs the rival's code in its Python backend, which needs Debian's
libpython of this Python's version. MLServer knows no binary tensors. Afterwards, or alone with `--copies`: how fast a
large tensor leaves a body and enters an answer, beside one copy of as many bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from endpoint import START_SECONDS, cpu_seconds, end, free_port
from onnx import TensorProto, helper
from rivals.protocol import CONTENDERS, HERE, OURS, home, install
from trained import FEATURES, VERSIONS, graphs

import turnout
from turnout import _core

IMAGE = (3, 224, 224)
BODIES = 100
"""Distinct bodies of a single row."""
LONGEST = 10
"""Seconds that a line takes at most, however slow a server is."""
DTYPES = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}
FIELDS = {"cpu_us": "CPU us", "rps": "requests a second", "p50_us": "p50 us", "p99_us": "p99 us"}
BATCH, PAIRS = 2**28, {600_000: 400, 6_000_000: 100, 60_000_000: 25}
"""Bytes of tensors that take turns, so that none is in a cache; and pairs of copies for each size."""


class Line(NamedTuple):
    """What is asked."""

    model: str
    shape: tuple[int, ...]
    binary: bool


LINES = {
    "1 row, JSON": Line("logistic", (1, FEATURES), binary=False),
    "1 row, binary": Line("logistic", (1, FEATURES), binary=True),
    "1,000 rows, JSON": Line("logistic", (1000, FEATURES), binary=False),
    "1,000 rows, binary": Line("logistic", (1000, FEATURES), binary=True),
    "image, binary, its mean back": Line("mean", (1, *IMAGE), binary=True),
    "image, binary, itself back": Line("same", (1, *IMAGE), binary=True),
}


class Taken(NamedTuple):
    """What one run of wrk found; `client` is the share of a core that it took itself."""

    cpu_us: float
    rps: float
    p50_us: float
    p99_us: float
    client: float


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def save_models(folder: Path) -> None:
    """A logistic regression on rows, and two graphs that take an image and do next to nothing."""
    (folder / "logistic.onnx").write_bytes(graphs()["logistic"][VERSIONS[0]])
    value = helper.make_tensor_value_info
    for name, operation, shape in (
        ("mean", "GlobalAveragePool", (3, 1, 1)),
        ("same", "Identity", IMAGE),
    ):
        graph = helper.make_graph(
            [helper.make_node(operation, ["image"], [name])],
            name,
            [value("image", TensorProto.FLOAT, ["rows", *IMAGE])],
            [value(name, TensorProto.FLOAT, ["rows", *shape])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"{name}.onnx")
    with turnout.open(folder / "data") as hub:
        for path in folder.glob("*.onnx"):
            hub.register_version(path.stem, "v1", path)
            hub.activate_version(path.stem, "v1")


class Question(NamedTuple):
    """A body, its headers, and the outputs that it must be answered with."""

    body: bytes
    headers: dict[str, str]
    expected: dict[str, np.ndarray[Any, Any]]


def questions(line: Line, inner: ort.InferenceSession) -> list[Question]:
    numbers = np.random.default_rng(1)
    return [
        question(line, inner, np.round(numbers.normal(size=line.shape) * 100, 3))
        for _ in range(BODIES if line.shape[0] == 1 and len(line.shape) == 2 else 1)
    ]


def question(line: Line, inner: ort.InferenceSession, values: np.ndarray[Any, Any]) -> Question:
    single, name = values.astype(np.float32), inner.get_inputs()[0].name
    tensor: dict[str, Any] = {"name": name, "shape": line.shape, "datatype": "FP32"}
    outputs = [output.name for output in inner.get_outputs()]
    expected = dict(zip(outputs, inner.run(outputs, {name: single}), strict=True))
    if not line.binary:
        tensor["data"] = values.ravel().tolist()
        return Question(
            json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"}, expected
        )
    tensor["parameters"] = {"binary_data_size": single.nbytes}
    words = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [tensor]}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(words)),
    }
    return Question(words + single.tobytes(), headers, expected)


def check(url: str, asked: Question) -> float:
    """Ask once, and compare the answer with the session's; seconds that it took."""
    request = urllib.request.Request(url, asked.body, asked.headers)
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=20) as answer:
        content, head = answer.read(), answer.headers.get("Inference-Header-Content-Length")
    seconds = time.perf_counter() - started
    at = int(head or len(content))
    assert (head is not None) == ("Inference-Header-Content-Length" in asked.headers), "not as it was asked"
    for output in json.loads(content[:at])["outputs"]:
        if head is None:
            values = np.array(output["data"])
        else:
            size = output["parameters"]["binary_data_size"]
            values = np.frombuffer(content[at : at + size], DTYPES[output["datatype"]])
            at += size
        expected = asked.expected[output["name"]]
        assert np.allclose(values.ravel(), expected.ravel(), atol=1e-5), "other answers than the session's"
    return seconds


def write_script(folder: Path, asked: list[Question]) -> Path:
    """What wrk is to send: bodies in turn, made before it starts."""
    script = folder / "bodies.lua"
    for number, each in enumerate(asked):
        (folder / f"{number}.body").write_bytes(each.body)
    lines = ["wrk.method = 'POST'"]
    lines += [f"wrk.headers['{name}'] = '{value}'" for name, value in asked[0].headers.items()]
    lines += [
        "local function body(number)",
        f"  local file = io.open('{folder}/' .. number .. '.body', 'rb')",
        "  local content = file:read('*a')",
        "  file:close()",
        "  return content",
        "end",
    ]
    if len(asked) == 1:
        lines.append("wrk.body = body(0)")
    else:
        lines += [
            "local requests, last = {}, 0",
            "init = function()",
            f"  for i = 1, {len(asked)} do requests[i] = wrk.format(nil, nil, nil, body(i - 1)) end",
            "end",
            "request = function() last = last % #requests + 1; return requests[last] end",
        ]
    script.write_text("\n".join(lines))
    return script


def microseconds(text: str) -> float:
    """A time as wrk prints it; not a number where it has lost count, as it does now and then."""
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    return float(found[1]) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[found[2]] if found else math.nan


def load(process: subprocess.Popen[bytes], url: str, script: Path, connections: int, seconds: int) -> Taken:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    used, before, started = (
        resource.getrusage(resource.RUSAGE_CHILDREN),
        cpu_seconds(process),
        time.monotonic(),
    )
    said = subprocess.run(
        [*command, "-s", script, url], capture_output=True, check=True, text=True, timeout=seconds + 60
    ).stdout
    wall, cpu = time.monotonic() - started, cpu_seconds(process) - before
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    count = int(re.search(r"(\d+) requests in", said)[1])
    assert count, f"no answer in {seconds} seconds"
    return Taken(
        cpu / count * 1e6,
        float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]),
        microseconds(re.search(r"50%\s+(\S+)", said)[1]),
        microseconds(re.search(r"99%\s+(\S+)", said)[1]),
        (after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime) / wall,
    )


@contextmanager
def running(name: str, place: Path, folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server that has been started, and its address; it ends with the block."""
    port = free_port()
    command, variables = CONTENDERS[name].start(place, folder, port)
    process = subprocess.Popen(
        command,
        cwd=HERE,
        env={**os.environ, "MODELS": str(folder), "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
        | {"PYTHONDONTWRITEBYTECODE": "1"}
        | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}/v2/models", process
    finally:
        end(process)


def ready(process: subprocess.Popen[bytes], url: str, asked: Question, deadline: float) -> None:
    """Wait until it answers, rightly."""
    while True:
        try:
            check(url, asked)
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.2)
        else:
            return


Found = dict[tuple[str, int, str], dict[int, Taken]]
"""By line, connections and server: what was found in each round."""


def run_round(number: int, names: list[str], options: argparse.Namespace, folder: Path, found: Found) -> None:
    names = names[number % len(names) :] + names[: number % len(names)]
    with ExitStack() as stack:
        up = {
            name: stack.enter_context(running(name, home(options.environments or folder, name), folder))
            for name in names
        }
        deadline = time.monotonic() + START_SECONDS
        for title in options.lines:
            line = LINES[title]
            asked = questions(line, session(folder / f"{line.model}.onnx"))
            script = write_script(folder, asked)
            alone: dict[str, float] = {}
            for name, (url, process) in up.items():
                contender = CONTENDERS[name]
                if line.binary > contender.binary or line.model not in (contender.models or [line.model]):
                    continue
                route = f"{url}/{line.model}/infer"
                try:
                    ready(process, route, asked[0], deadline)
                    for each in asked[:20]:
                        check(route, each)
                    load(process, route, script, 1, 1)
                    alone[name] = statistics.median(check(route, asked[0]) for _ in range(3))
                except (OSError, AssertionError, subprocess.SubprocessError) as error:
                    print(f"{name}, {title}: {error!r}", file=sys.stderr, flush=True)
            for connections in options.connections:
                for name, needed in alone.items():
                    url, process = up[name]
                    seconds = min(LONGEST, max(options.seconds, math.ceil(2 * connections * needed)))
                    try:
                        taken = load(process, f"{url}/{line.model}/infer", script, connections, seconds)
                    except (AssertionError, subprocess.SubprocessError) as error:
                        print(f"{name}, {title}, {connections}: {error}", file=sys.stderr, flush=True)
                        continue
                    found.setdefault((title, connections, name), {})[number] = taken
    print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)


def show(found: Found, names: list[str]) -> None:
    """Medians of all servers, and Turnout's against the best of the others, as tables of Markdown."""
    places = list(dict.fromkeys((title, connections) for title, connections, _ in found))
    print(f"\nEach cell: {' / '.join(FIELDS.values())}.\n\n| asked | connections | {' | '.join(names)} |")
    print(f"|---|---|{'---|' * len(names)}")
    for title, connections in places:
        cells = [found.get((title, connections, name)) for name in names]
        shown = [
            " / ".join(f"{middle(rounds, field):,.0f}" for field in FIELDS) if rounds else ""
            for rounds in cells
        ]
        print(f"| {title} | {connections} | {' | '.join(shown)} |")
    print(f"\nThe most that wrk took: {max_client(found)}.")
    if OURS not in names or len(names) == 1:
        return
    print(f"\nTurnout / the best rival in each.\n\n| asked | connections | {' | '.join(FIELDS.values())} |")
    print(f"|---|---|{'---|' * len(FIELDS)}")
    for title, connections in places:
        ratios = [against_best(found, title, connections, field) for field in FIELDS]
        print(f"| {title} | {connections} | {' | '.join(ratios)} |")


def middle(rounds: dict[int, Taken], field: str) -> float:
    return median(getattr(taken, field) for taken in rounds.values())


def median(values: Iterable[float]) -> float:
    """The median of what is a number."""
    numbers = [value for value in values if not math.isnan(value)]
    return statistics.median(numbers) if numbers else math.nan


def max_client(found: Found) -> str:
    share, place = max((taken.client, place) for place, rounds in found.items() for taken in rounds.values())
    return f"{share:.0%} of a core ({place[2]}, {place[0]}, {place[1]} connections)"


def against_best(found: Found, title: str, connections: int, field: str) -> str:
    ours = found.get((title, connections, OURS), {})
    rivals = {
        name: rounds
        for (of, at, name), rounds in found.items()
        if (of, at) == (title, connections) and name != OURS and rounds.keys() & ours.keys()
    }
    if not rivals:
        return ""
    name = (max if field == "rps" else min)(rivals, key=lambda each: middle(rivals[each], field))
    ratios = [
        getattr(ours[number], field) / getattr(taken, field)
        for number, taken in rivals[name].items()
        if number in ours
    ]
    return "" if math.isnan(median(ratios)) else f"{median(ratios):.2f} x ({name})"


def copies() -> None:
    """How fast a binary tensor leaves the body of a request, and enters that of an answer."""
    plan = _core.VersionPlan("v1", "matrix", ["float32"], [("", "float", [], None, False)], ["y"])
    route = _core.Route("m", [plan], ["v1"], 0, None, [], {}, [])
    print(
        "\n| bytes | what | GB a second | against a copy | against a copy into new memory |\n|---|---|---|---|---|"
    )
    for size, pairs in PAIRS.items():
        aligned, crooked, tensors = [], [], []
        for seed in range(max(2, BATCH // size)):
            tensors.append(np.full(size // 4, seed, np.float32).reshape(1, -1))
            asked = {"name": "x", "shape": tensors[-1].shape, "datatype": "FP32"}
            asked["parameters"] = {"binary_data_size": tensors[-1].nbytes}
            words = json.dumps({"inputs": [asked]}).encode()
            for spaces, bodies in enumerate((aligned, crooked)):
                head = words + b" " * (-len(words) % 4 + spaces)
                bodies.append((head + tensors[-1].tobytes(), len(head)))
        target = np.empty_like(tensors[0])
        ways: dict[str, Callable[[int], Any]] = {
            "body to input": lambda at, bodies=crooked: _core.InferRequest.read(*bodies[at]).arrays[0],
            "body to input, at a multiple of 4": lambda at, bodies=aligned: _core.InferRequest.read(
                *bodies[at]
            ).arrays[0],
            "output to body": lambda at, tensors=tensors: route.write_tensors(
                0, 0, [tensors[at]], None, 0, 1, None, [(0, True)]
            ),
        }
        plain = lambda at, tensors=tensors, target=target: np.copyto(target, tensors[at])  # noqa: E731
        fresh = lambda at, tensors=tensors: tensors[at].tobytes()  # noqa: E731
        for name, way in ways.items():
            times: list[tuple[float, ...]] = [
                tuple(
                    timed(each, (3 * number + turn) % len(tensors))
                    for turn, each in enumerate((way, plain, fresh))
                )
                for number in range(pairs)
            ]
            speed = size / statistics.median(time[0] for time in times) / 1e9
            ratios = [statistics.median(time[other] / time[0] for time in times) for other in (1, 2)]
            print(f"| {size:,} | {name} | {speed:.1f} | {ratios[0]:.2f} x | {ratios[1]:.2f} x |", flush=True)


def timed(way: Callable[[int], Any], at: int) -> float:
    """Seconds of one call, without giving back what it made."""
    started = time.perf_counter()
    kept = way(at)
    seconds = time.perf_counter() - started
    del kept
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--install", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--lines", nargs="+", choices=list(LINES), default=list(LINES))
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="one round of a second each")
    parser.add_argument("--copies", action="store_true", help="nothing but the copies of large tensors")
    options = parser.parse_args()
    if options.copies:
        copies()
        return
    if shutil.which("wrk") is None:
        sys.exit("this bench needs wrk (Debian: apt-get install wrk)")
    if options.quick:
        options.rounds = options.seconds = 1
    names = [name for name in options.only if CONTENDERS[name].needs is None or options.environments]
    for name in names if options.install else []:
        install(options.environments, name)
    found: Found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_models(folder)
        for number in range(options.rounds):
            run_round(number, names, options, folder, found)
    if not found:
        sys.exit("nothing was measured")
    show(found, names)
    if OURS in names:
        copies()


if __name__ == "__main__":
    main()
