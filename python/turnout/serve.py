"""`turnout serve`: Granian's worker processes around the application, and how they start and stop."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server.mp import MPServer

from turnout import affinity
from turnout.api.app import front
from turnout.api.front import Front
from turnout.config import Settings, environment_of, resolve
from turnout.errors import DeviceUnavailable, StorageError, TurnoutError
from turnout.log import Level, enable, log
from turnout.service import Turnout

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h
PORT_SECONDS = 5.0
WATCH_SECONDS = 1.0
CRASHES = 5
CRASH_SECONDS = 30.0
RESTART_SECONDS = 10.0
"""How long a worker that cannot start waits before it ends; so rarely, it never counts as crashing."""
ASK_DEVICE = """
import sys
from turnout.engine import resolve_device
from turnout.errors import TurnoutError
try:
    resolve_device(sys.argv[1])
except TurnoutError as error:
    sys.exit(error.detail)
"""
INDEX = "TURNOUT_WORKER_INDEX"
"""Where a worker finds its number, from 0."""
DRAIN = signal.SIGUSR1
"""Tells the workers of this server, and of no other on the same data directory, to say that they are not ready."""


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status, 0 after a signal.

    The first signal turns `readyz` to 503, waits `drain_seconds`, then lets requests in flight end, for at most
    `stop_seconds`. A second one stops at once.

    Raises:
        TurnoutError: the address cannot be listened on, the data directory not be made, or CUDA, which the settings ask
            for by name, does not work.
    """
    enable(settings.log_level)
    with Turnout(settings) as hub:  # what would fail in every worker fails here once
        _collect(hub)
    _check_device(settings.device)
    reserved = _reserve(settings)
    host, port = reserved.getsockname()[:2]
    os.environ.update(environment_of(settings))
    # Workers inherit it: a signal to drain that comes before a worker listens to it must not end the worker.
    signal.signal(DRAIN, signal.SIG_IGN)
    server = Server(settings, host, port)
    log(
        "info",
        "start",
        url=_url(host, port),
        host=host,
        port=port,
        workers=settings.workers,
        data=settings.data,
    )
    if not _is_loopback(host):
        log(
            "warning",
            "open_to_network",
            host=host,
            detail="anybody who reaches this address can change models",
        )
    try:
        server.serve()
    except SystemExit as stop:
        return 0 if server.stopping else int(stop.code or 0)
    finally:
        reserved.close()
        log("info", "stop")
    return 0


def _check_device(device: str) -> None:
    """Raise DeviceUnavailable where CUDA is asked for by name and does not work.

    Asked in a process of its own: what CUDA has begun in this one would not survive a fork of the workers.
    """
    if device.startswith("cuda"):
        asked = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-c", ASK_DEVICE, device], capture_output=True, text=True, check=False
        )
        if asked.returncode:
            raise DeviceUnavailable(asked.stderr.strip() or f"device {device} does not work")


class Server(MPServer):
    """Granian's supervisor with a drain before its stop."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        super().__init__(
            "turnout.serve:worker",
            address=host,
            port=port,
            interface=Interfaces(settings.interface),
            workers=settings.workers,
            loop=Loops.uvloop,
            websockets=False,
            factory=True,
            backlog=2048,
            # Connections, not requests: the front bounds requests, and answers 429 where Granian would let them wait.
            backpressure=max(8192, 2 * settings.max_in_flight),
            respawn_failed_workers=True,
            workers_kill_timeout=settings.stop_seconds,
            log_level=LogLevels(settings.log_level),
            log_dictconfig=LOGGING,
        )
        self.stopping = False
        self.respawned_wrks = Respawns()
        self._drain_seconds = settings.drain_seconds
        self.on_startup(self._begin_watch)

    def _spawn_worker(self, idx: int, target: Any, callback_loader: Any) -> Any:  # noqa: ANN401
        """Let a worker know which one it is."""
        return super()._spawn_worker(
            idx=idx, target=target, callback_loader=partial(_numbered, idx, callback_loader)
        )

    def _begin_watch(self) -> None:
        threading.Thread(target=self._watch_workers, name="turnout-workers", daemon=True).start()

    def _watch_workers(self) -> None:
        """Have a dead worker replaced that Granian has missed.

        It clears its list of the dead after it has read it, and forgets one that dies in between; a server with one
        worker would then listen no more, and live on.
        """
        before: list[Any] = []
        while not self.stopping:
            time.sleep(WATCH_SECONDS)
            dead = [
                child for child in list(self.wrks) if not child.is_alive() and not child.interrupt_by_parent
            ]
            for child in dead:
                if any(child is known for known in before):
                    log("warning", "worker_missed", worker=child.idx)
                    self.interrupt_children.append(child.idx)
                    self.main_loop_interrupt.set()
            before = dead

    def signal_handler_interrupt(self, *_: Any) -> None:  # noqa: ANN401
        """SIGTERM or SIGINT: drain, then stop; the second time stop at once."""
        if self.stopping:
            log("warning", "stop_at_once")
            super().signal_handler_interrupt()
            for child in list(self.wrks):
                child.kill()
            return
        self.stopping = True
        log("info", "drain", seconds=self._drain_seconds)
        for child in list(self.wrks):
            _send(child.inner.pid, DRAIN)
        timer = threading.Timer(self._drain_seconds, super().signal_handler_interrupt)
        timer.daemon = True
        timer.start()


def _numbered(index: int, load: Callable[[], Front]) -> Front:
    os.environ[INDEX] = str(index)
    return load()


class Respawns(dict[int, float]):
    """When workers were started anew, by index.

    Granian ends the whole server when a worker dies within 5.5 seconds of a restart. One that is killed twice (by the
    kernel, for memory; by a model that crashes) must not take the healthy ones along, so here it takes CRASHES deaths
    in CRASH_SECONDS: what cannot start at all still ends, for a supervisor to see.
    """

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[int, list[float]] = {}

    def __setitem__(self, index: int, when: float) -> None:
        recent = [time for time in self._times.get(index, []) if when - time < CRASH_SECONDS]
        self._times[index] = [*recent, when]
        super().__setitem__(index, when)

    def get(self, index: int, default: Any = 0) -> Any:  # noqa: ANN401
        """The last restart, where there were too many of late; else `default`, which Granian takes as long ago."""
        return super().get(index, default) if len(self._times.get(index, [])) >= CRASHES else default


class Patient(Turnout):
    """The service in a worker process: one that cannot start now, on a full disk say, waits before it ends.

    The others go on meanwhile, and it is tried again.
    """

    def start_worker(self) -> None:
        """Join the workers that serve this directory."""
        try:
            super().start_worker()
        except TurnoutError as error:
            _wait(error)
            raise


def _wait(error: TurnoutError) -> None:
    log("error", error.code, detail=error.detail)
    time.sleep(RESTART_SECONDS)


def worker() -> Front:
    """Granian's factory, called in each worker process."""
    settings = resolve().settings
    enable(settings.log_level)
    # Until Granian sets its own, a forked worker would run its parent's handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stop = Stop(settings)
    try:
        hub = Patient(settings, server=True)
    except TurnoutError as error:
        _wait(error)
        sys.exit(1)

    def started() -> None:
        stop.listen(hub)
        core = affinity.settle(int(os.environ.get(INDEX, "0")), settings.workers, settings.affinity)
        # What is here now stays: the collector need not look through it again and again, 20 ms each time.
        gc.collect()
        gc.freeze()
        log("info", "ready", pid=os.getpid(), core=core, generation=hub.registry.generation())

    def stopped() -> None:
        log("info", "worker_stopped", pid=os.getpid())

    return front(hub, started, stopped)


class Stop:
    """How a worker comes to its end: by DRAIN and then SIGTERM from its parent, or because that is no more.

    A service manager may send SIGTERM to every process at once, a terminal SIGINT to a whole group. Neither may cut
    the drain short: a worker is in a group of its own and waits out `drain_seconds` from the first it hears of a stop.
    """

    def __init__(self, settings: Settings) -> None:
        self._parent = os.getppid()
        self._drain_seconds = settings.drain_seconds
        self._stop_seconds = settings.stop_seconds
        self._since: float | None = None
        self._hub: Turnout | None = None
        os.setpgid(0, 0)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
        threading.Thread(target=self._watch_parent, name="turnout-parent", daemon=True).start()

    def listen(self, hub: Turnout) -> None:
        """Take SIGTERM over from Granian, which would stop at once; its SIGINT stays, and is what ends the worker."""
        self._hub = hub
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(DRAIN, self.drain)
        loop.add_signal_handler(signal.SIGTERM, self._terminate)

    def drain(self) -> None:
        """Say that this worker is not ready any more."""
        if self._since is None and self._hub is not None:
            self._since = time.monotonic()
            self._hub.drain()

    def _terminate(self) -> None:
        self.drain()
        since = self._since or 0.0
        left = 0.0 if self._orphaned() else since + self._drain_seconds - time.monotonic()
        asyncio.get_running_loop().call_later(max(0.0, left), os.kill, os.getpid(), signal.SIGINT)

    def _orphaned(self) -> bool:
        return os.getppid() != self._parent

    def _watch_parent(self) -> None:
        """End an orphan that is still there: where the kernel does not tell, or a request does not end."""
        while not self._orphaned():
            time.sleep(0.5)
        log("warning", "orphaned", pid=os.getpid())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._stop_seconds)
        os.kill(os.getpid(), signal.SIGKILL)


class Handler(logging.Handler):
    """Granian's own lines as events of ours. Its everyday ones are only of interest when something is looked for."""

    levels: ClassVar[dict[int, Level]] = {
        logging.WARNING: "warning",
        logging.ERROR: "error",
        logging.CRITICAL: "error",
    }

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        trace = {"trace": self.format(record)} if record.exc_info else {}
        log(self.levels.get(record.levelno, "debug"), "server", detail=record.getMessage(), **trace)


LOGGING = {
    "handlers": {"json": {"()": "turnout.serve.Handler"}},
    "formatters": {},
    "loggers": {"_granian": {"handlers": ["json"], "level": "INFO", "propagate": False}},
}


def _reserve(settings: Settings) -> socket.socket:
    """Bind the address before any worker does: workers share a port, and would share it with another server too.

    The socket never listens; it keeps the port ours, and chooses one where the setting is 0.
    """
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, socket.SOCK_STREAM) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(address)
                address = alone.getsockname()
            shared = socket.socket(family, socket.SOCK_STREAM)
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind(address)
        except OSError as error:
            # Workers of a server that was killed let go of the port within moments.
            if time.monotonic() > deadline or settings.port == 0:
                raise TurnoutError(
                    f"cannot listen on {settings.host} port {settings.port}: {error}"
                ) from error
            time.sleep(0.1)
        else:
            return shared


def _collect(hub: Turnout) -> None:
    """Remove the files of artifacts that a process has left which was killed between placing and committing them."""
    try:
        hub.registry.collect(hub.artifacts.digests(), hub.artifacts.remove)
    except StorageError as error:
        log("error", "files_left", detail=error.detail)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        log("debug", "worker_gone", pid=pid)


def _is_loopback(host: str) -> bool:
    return host == "::1" or host.startswith("127.")


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
