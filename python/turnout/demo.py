"""`turnout demo`: two real models on a real data set, served, split, judged, promoted and rolled back, before your eyes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from turnout.client import Client
from turnout.domain import History
from turnout.errors import TurnoutError, VersionExists
from turnout.experiment.outcomes import Outcome
from turnout.experiment.results import Results
from turnout.plans import Metric

MODEL = "breast-cancer"
LOGISTIC, BOOSTING = "v1-logistic", "v2-boosting"
SPLIT = {LOGISTIC: 0.8, BOOSTING: 0.2}
REQUESTS = 2000
DIAGNOSIS = "diagnosis"
WINDOW_SECONDS = 2.0
START_SECONDS = 60.0
STOP_SECONDS = 30.0


class Trained(msgspec.Struct, frozen=True):
    """A model file and what was measured on rows that it had not seen."""

    version: str
    path: str
    algorithm: str
    accuracy: float
    metrics: dict[str, float]


class Data(msgspec.Struct, frozen=True):
    """The names of the features, the held-out rows and their true labels."""

    names: list[str]
    rows: list[list[float]]
    labels: list[int]


class Sent(msgspec.Struct, frozen=True):
    """One answer as the sender saw it: version, seconds, and whether the label was the true one."""

    version: str
    seconds: float
    agrees: bool


def run(folder: Path, *, port: int, once: bool) -> int:
    """Tell the whole story in `folder`; the exit status.

    Unless `once` is set, the server goes on until it is ended with Ctrl-C.
    """
    console = Console(highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        trained, data = train(folder, console)
        with serve(folder / "data", port, console) as url, Client(url, actor="demo") as client:
            story(client, url, trained, data, folder, console)
            if once:
                return 0
            try_next(url, data, console)
            wait(console)
    except KeyboardInterrupt:
        console.print("\nended")
    return 0


def story(
    client: Client, url: str, trained: list[Trained], data: Data, folder: Path, console: Console
) -> None:
    """Register, activate, test, judge, promote and roll back."""
    release(client, trained, data, console)
    client.declare_metrics(
        MODEL,
        [Metric(DIAGNOSIS, "label", role="primary", margin=0.05, window_seconds=WINDOW_SECONDS)],
        reason="what the biopsy said",
    )
    client.activate_version(MODEL, LOGISTIC, reason="first release")
    console.rule("80/20 between the two")
    client.configure_test(MODEL, SPLIT, reason="does boosting do better?")
    send(url, data, folder, console)
    time.sleep(WINDOW_SECONDS + 1)  # until the last patient was observed for the whole window
    console.print(verdict(client.results(MODEL)))
    console.rule("promote the second")
    client.promote_winner(MODEL, BOOSTING, reason="to see a promotion")
    send(url, data, folder, console, requests=REQUESTS // 10)
    console.rule("and roll it back")
    started = time.perf_counter()
    client.rollback(MODEL, reason="practice for three in the morning")
    console.print(
        f"every worker serves {LOGISTIC} again after {(time.perf_counter() - started) * 1e3:.1f} ms"
    )
    client.configure_test(MODEL, SPLIT, reason="once more, for you to try")
    console.print(events(client.version_history(MODEL)))


# --- the parts of the story -----------------------------------------------------------------------------------------


def train(folder: Path, console: Console) -> tuple[list[Trained], Data]:
    """Fit both models on breast cancer, hold 30 % of the rows out, measure, export to ONNX."""
    from skl2onnx import to_onnx  # noqa: PLC0415 - heavy, and only the demo needs it
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415
    from sklearn.ensemble import GradientBoostingClassifier  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    # Neither library is typed to the end.
    found: Any = load_breast_cancer()
    convert: Any = to_onnx
    split: Any = train_test_split
    rows, held_out, labels, true = split(
        found.data.astype("float32"), found.target, test_size=0.3, random_state=7, stratify=found.target
    )
    estimators: dict[str, Any] = {
        LOGISTIC: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        BOOSTING: GradientBoostingClassifier(random_state=7),
    }
    console.rule(f"train on {len(rows)} rows of scikit-learn's breast cancer data, hold {len(held_out)} out")
    trained = []
    for version, estimator in estimators.items():
        estimator.fit(rows, labels)
        graph = convert(estimator, rows[:1], options={"zipmap": False})
        path = folder / f"{version}.onnx"
        path.write_bytes(graph.SerializeToString())
        trained.append(measure(version, path, estimator, held_out, true))
    names = [str(name).replace(" ", "_") for name in found.feature_names]
    console.print(offline(trained))
    return trained, Data(names, held_out.tolist(), true.tolist())


def measure(version: str, path: Path, estimator: Any, rows: Any, true: Any) -> Trained:  # noqa: ANN401
    """The offline metrics of a model on rows that it has not seen."""
    from sklearn import metrics  # noqa: PLC0415

    predicted, scores = estimator.predict(rows), estimator.predict_proba(rows)[:, 1]
    return Trained(
        version=version,
        path=str(path),
        algorithm=type(estimator[-1] if hasattr(estimator, "steps") else estimator).__name__,
        accuracy=float(metrics.accuracy_score(true, predicted)),
        metrics={
            "precision": float(metrics.precision_score(true, predicted)),
            "recall": float(metrics.recall_score(true, predicted)),
            "auc": float(metrics.roc_auc_score(true, scores)),
        },
    )


def release(client: Client, trained: list[Trained], data: Data, console: Console) -> None:
    """Register both versions; what an earlier run of the demo left is used again."""
    for model in trained:
        try:
            client.register_version(
                MODEL,
                model.version,
                model.path,
                features=data.names,
                accuracy=model.accuracy,
                metrics=model.metrics,
                metadata={"algorithm": model.algorithm},
                reason="demo",
            )
        except VersionExists:
            console.print(f"{model.version} is registered already, from an earlier run, with another file")
    if client.get_test(MODEL) is not None:
        client.stop_test(MODEL, reason="the demo begins anew")


@contextlib.contextmanager
def serve(data: Path, port: int, console: Console) -> Generator[str]:
    """A server with two workers, in a process of its own; its URL. Ended with the block."""
    wanted, port = port, free_port(port)
    if wanted not in {0, port}:
        console.print(f"port {wanted} is in use, so this is port {port}")
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "turnout",
        "--data",
        str(data),
        "serve",
        "--port",
        str(port),
        "--workers",
        "2",
    ]
    log = data.parent / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*command, "--drain-seconds", "0"], stdout=output, stderr=output, start_new_session=True
        )
    try:
        await_ready(process, url, log)
        console.print(f"two workers serve {url}, their log is {log}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def await_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until the server is ready. Raises TurnoutError if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):  # noqa: S310 - our own server
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise TurnoutError(f"the server did not start; see {log}") from None
            time.sleep(0.1)


def free_port(wanted: int) -> int:
    """The port that is wanted if it is free, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise TurnoutError("no port is free")


def send(url: str, data: Data, folder: Path, console: Console, requests: int = REQUESTS) -> None:
    """Send held-out rows from a separate process and show what comes back, as it comes."""
    rows = folder / "rows.json"
    rows.write_bytes(msgspec.json.encode(data))
    command = [sys.executable, "-m", "turnout.demo", url, str(rows), str(requests)]
    sent: list[Sent] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sender:  # noqa: S603 - our own interpreter and module
        if sender.stdout is None:
            raise TurnoutError("the sender has no output")
        lines = (msgspec.json.decode(line, type=Sent) for line in sender.stdout)
        if console.is_terminal:
            with Live(console=console, refresh_per_second=8) as live:
                for answer in lines:
                    sent.append(answer)
                    if len(sent) % 50 == 0 or len(sent) == requests:
                        live.update(seen(sent, requests))
        else:
            sent.extend(lines)
            console.print(seen(sent, requests))
    if sender.returncode != 0:
        raise TurnoutError(f"the sender failed with status {sender.returncode} after {len(sent)} answers")


def sender(url: str, path: Path, requests: int) -> None:
    """The separate process: one prediction after the other on one connection, one line of JSON for each.

    Now and then it tells the server what was true.
    """
    data = msgspec.json.decode(path.read_bytes(), type=Data)
    encoder = msgspec.json.Encoder()
    truths: list[Outcome] = []
    with Client(url) as client:
        for number in range(requests):
            row = number % len(data.rows)
            features = dict(zip(data.names, data.rows[row], strict=True))
            started = time.perf_counter()
            answer = client.predict(MODEL, features, entity_id=f"patient-{number}")
            taken = time.perf_counter() - started
            agrees = answer.outputs["label"] == data.labels[row]
            truths.append(Outcome(MODEL, DIAGNOSIS, data.labels[row], prediction_id=answer.prediction_id))
            if len(truths) == 50 or number == requests - 1:
                client.record_outcomes(truths)
                truths = []
            sys.stdout.buffer.write(encoder.encode(Sent(answer.version, taken, agrees)) + b"\n")
            if number % 50 == 0:
                sys.stdout.buffer.flush()


# --- what people see ------------------------------------------------------------------------------------------------


def offline(trained: list[Trained]) -> Table:
    """The offline metrics."""
    table = Table(title="on the held-out rows", title_justify="left")
    for column in ("version", "algorithm", "accuracy", *trained[0].metrics):
        table.add_column(column)
    for model in trained:
        numbers = [f"{value:.3f}" for value in (model.accuracy, *model.metrics.values())]
        table.add_row(model.version, model.algorithm, *numbers)
    return table


def seen(sent: list[Sent], requests: int) -> Group:
    """Requests, share, latency and agreement with the true labels, by version."""
    groups: dict[str, list[Sent]] = defaultdict(list)
    for answer in sent:
        groups[answer.version].append(answer)
    table = Table(title=f"{len(sent)} of {requests} requests", title_justify="left")
    for column in ("version", "requests", "share", "p50", "p95", "p99", "agrees with the true label"):
        table.add_column(column, justify="right" if column != "version" else "left")
    for version, answers in sorted(groups.items()):
        times = sorted(answer.seconds for answer in answers)
        table.add_row(
            version,
            str(len(answers)),
            f"{len(answers) / len(sent):.1%}",
            *(f"{times[min(len(times) - 1, int(q * len(times)))] * 1e3:.2f} ms" for q in (0.5, 0.95, 0.99)),
            f"{sum(answer.agrees for answer in answers) / len(answers):.1%}",
        )
    return Group(table)


def verdict(results: Results) -> Group:
    """What the true labels say of both versions, and what is recommended."""
    table = Table(title=f"test {results.test_id}, judged by the true labels", title_justify="left")
    for column in ("version", "labels", "live accuracy", "offline", "gap", "AUC", "Brier"):
        table.add_column(column, justify="right" if column != "version" else "left")
    for found in sorted(results.quality, key=lambda found: found.version):
        live, offline, gap = (
            found.live.get("accuracy"),
            found.offline.get("accuracy"),
            found.gap.get("accuracy"),
        )
        numbers = [live, offline, gap, found.live.get("auc"), found.live.get("brier")]
        table.add_row(
            found.version,
            str(found.labels),
            *("" if number is None else f"{number:.3f}" for number in numbers),
        )
    return Group(table, f"recommendation: {results.recommendation}. {results.reason}")


def events(history: History) -> Table:
    """The last changes of the model, and why."""
    table = Table(title="what happened", title_justify="left")
    for column in ("#", "time", "actor", "action", "version", "reason"):
        table.add_column(column)
    for event in history.events[-10:]:
        at = event.time.astimezone().strftime("%H:%M:%S")
        table.add_row(str(event.sequence), at, event.actor, event.action, event.version or "", event.reason)
    return table


def try_next(url: str, data: Data, console: Console) -> None:
    """Lines that work when they are pasted."""
    base = f"{url}/v1/models/{MODEL}"
    body = json.dumps(
        {"entity_id": "patient-1", "features": dict(zip(data.names, data.rows[0], strict=True))}
    )
    lines = [
        f"curl -s {base}/predict -H 'Content-Type: application/json' -d '{body}'",
        f"curl -s {base}/assignments/patient-1",
        f"curl -s {base}/distribution",
        f"curl -s '{base}/compare?a={LOGISTIC}&b={BOOSTING}'",
        f'curl -s -X PUT {base}/test -H \'Content-Type: application/json\' -d \'{{"splits": {{"{LOGISTIC}": 0.5, "{BOOSTING}": 0.5}}}}\'',
        f'curl -s -X POST {base}/rollback -H \'Content-Type: application/json\' -d \'{{"version": "{LOGISTIC}", "reason": "try"}}\'',
        f"curl -s {base}/test/results",
        f"{sys.executable} -m turnout --url {url} results {MODEL}",
        f"curl -s {url}/metrics",
        f"{sys.executable} -m turnout --url {url} history {MODEL}",
    ]
    console.rule("try next")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def wait(console: Console) -> None:
    """Until Ctrl-C or SIGTERM."""
    console.print(f"\nthe server runs until you press Ctrl-C (process {os.getpid()})")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.pause()


if __name__ == "__main__":
    sender(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
