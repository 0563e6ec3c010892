"""The processes of a distributed run: they meet at process 0, check that they run the same, and report failures.

Each process keeps a connection to process 0 until all have finished. A message is one line of JSON: `own` is a value
of a process, `found` is process 0's result from the values of all, `done` comes from a process that has finished, `end`
from one that fails. A connection that closes without `done` or `end` is a killed process. jax.distributed starts
afterwards, at an address that process 0 chooses. It aborts when another process ends, and a collective without that
process blocks forever, so failures are handled here.
"""

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cli import process
from errors import UsageError

MEET_SECONDS = 300.0  # until all processes must have connected
POLL_SECONDS = 0.2  # between two polls while waiting
GRACE_SECONDS = 1.0  # in which a process may report the failure of another one as its own
DIFFERENCES_SHOWN = 3  # in a message, at most
Message = dict[str, Any]


class Connection:
    """A connection to another process."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):  # detect a lost machine
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.done, self.closed = threading.Event(), threading.Event()
        self._connection, self._lock = connection, threading.Lock()
        self._file = connection.makefile("r", encoding="utf-8")

    def send(self, **message: Any) -> None:
        """Send a message. Errors are ignored: the reading thread notices if the other process has ended."""
        with suppress(OSError), self._lock:
            self._connection.sendall(f"{json.dumps(message)}\n".encode())

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message, or None if the connection ends or after `timeout` seconds."""
        with suppress(OSError, ValueError):
            self._connection.settimeout(timeout)
            message = json.loads(self._file.readline())
            return message if isinstance(message, dict) else None
        return None

    def close(self) -> None:
        """End the connection, also for the reading thread."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Peers:
    """The connections of process `index` to the other processes of a run, `count` in all.

    `stop` prints a line and ends this process. It is called from a thread when another process fails, as the main
    thread may wait for that process in a collective forever.
    """

    def __init__(self, address: str, count: int, index: int, stop: Callable[[str, int], None]) -> None:
        self.address, self.count, self.index, self._stop = address, count, index, stop
        self.coordinator = ""  # HOST:PORT of jax.distributed
        self._connections: dict[int, Connection] = {}  # process 0: to all others; others: to process 0
        self._end_follows = False  # another process has failed and will report why
        self._leaving = threading.Event()
        self._end_lock = threading.Lock()  # held after the first failure, which causes later ones

    def meet(
        self, say: Callable[[str], None], wait: float = MEET_SECONDS, signals: Callable[[], str | None] = lambda: None
    ) -> None:
        """Return when all processes are connected.

        Raises RuntimeError after `wait` seconds and for a signal, UsageError if flags of processes disagree.
        """
        deadline = time.monotonic() + wait

        def timed_out() -> bool:
            if name := signals():
                raise RuntimeError(f"{name} while waiting for the other processes")
            return time.monotonic() > deadline

        host_port = parse_address(self.address)
        if self.index:
            say(f"process {self.index} of {self.count} waits for process 0 at {self.address}")
            self._connections[0] = connection = Connection(self._connect(host_port, timed_out, wait))
            connection.send(process=self.index, processes=self.count)
            self._watch(0)
            while not self.coordinator:
                try:
                    self.coordinator = connection.inbox.get(timeout=POLL_SECONDS)["coordinator"]
                except (queue.Empty, KeyError):
                    if timed_out():
                        raise RuntimeError(f"no process 0 of this run answers at {self.address}") from None
            return
        say(f"process 0 waits for {self.count} processes at {self.address}")
        with open_server(host_port[1]) as server:
            while len(self._connections) < self.count - 1:
                server.settimeout(POLL_SECONDS)
                try:
                    self._accept(Connection(server.accept()[0]))
                except TimeoutError:
                    if not timed_out():
                        continue
                    absent = ", ".join(str(i) for i in range(1, self.count) if i not in self._connections)
                    raise RuntimeError(
                        f"waited {wait:.0f} s at {self.address} for {self.count} processes; absent: {absent}"
                    ) from None
        with open_server(0) as server:
            self.coordinator = f"{self.address.rpartition(':')[0]}:{server.getsockname()[1]}"
        self._send(coordinator=self.coordinator)

    def _connect(self, host_port: tuple[str, int], timed_out: Callable[[], bool], wait: float) -> socket.socket:
        while True:
            try:
                return socket.create_connection(host_port, timeout=5)
            except OSError as error:
                if timed_out():
                    raise RuntimeError(
                        f"waited {wait:.0f} s for process 0, which is not at {self.address} ({error})"
                    ) from None
                time.sleep(POLL_SECONDS)

    def _accept(self, connection: Connection) -> None:
        """Accept a process; disconnect clients that are none. Raises UsageError if flags of processes disagree."""
        hello = connection.receive(timeout=5) or {}
        index, count = hello.get("process"), hello.get("processes")
        if not isinstance(index, int):
            connection.close()
            return
        problem = None
        if count != self.count:
            problem = f"process 0 has --num_processes={self.count}, process {index} has --num_processes={count}"
        elif index in self._connections:
            problem = f"two processes have --process_id={index}"
        if problem:
            connection.send(end=[0, problem, 2])
            raise UsageError(problem)
        self._connections[index] = connection
        self._watch(index)

    def agree(self, facts: dict[str, Any]) -> None:
        """Return when all processes have sent equal facts. Raises UsageError in all processes if they differ."""
        if problem := self._gather(facts, describe_difference):
            raise UsageError(problem)

    def any_process(self, flag: bool) -> bool:
        """Whether `flag` is set in any process. All processes must call this; one that fails sets its flag."""
        found = self._gather(flag, lambda flags: any(flags.values()))
        self._end_follows = bool(found) and not flag
        return bool(found)

    def _gather(self, own: Any, decide: Callable[[dict[int, Any]], Any]) -> Any:
        """The result of `decide` on the values of all processes by index, computed in process 0, in all processes."""
        if self.count == 1:
            return decide({0: own})
        own = json.loads(json.dumps(own))  # as the others' values, which were sent
        if self.index:
            self._connections[0].send(own=own)
            return self._connections[0].inbox.get()["found"]
        others = {index: other.inbox.get()["own"] for index, other in sorted(self._connections.items())}
        found = decide({0: own} | others)
        self._send(found=found)
        return found

    def join_jax(self) -> None:
        """Initialise jax.distributed."""
        if self.count == 1:
            return
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(self.coordinator, self.count, self.index, shutdown_timeout_seconds=30)
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # jax has replaced our handler

    def report_failure(self, text: str, code: int, doubtful: bool) -> None:
        """Report that this process fails. If `doubtful`, first wait for another process's failure, the likely cause."""
        if (doubtful or self._end_follows) and self._connections:
            time.sleep(3 * GRACE_SECONDS)  # if another process failed, the listening thread ends this one now
        self._leaving.set()
        self._send(end=[self.index, text, code])
        if self.index == 0:  # its end makes jax abort the others with a stack trace: let them print their line first
            for connection in self._connections.values():
                connection.closed.wait(3 * GRACE_SECONDS)

    def finish(self) -> None:
        """Return when all processes have finished."""
        self._send(done=True)
        for connection in self._connections.values():
            connection.done.wait()

    def close(self) -> None:
        """Close the connections; later failures of other processes are ignored."""
        self._leaving.set()
        for connection in self._connections.values():
            connection.close()

    def _send(self, **message: Any) -> None:
        for connection in self._connections.values():
            connection.send(**message)

    def _watch(self, index: int) -> None:
        threading.Thread(target=self._listen, args=(index, self._connections[index]), daemon=True).start()

    def _listen(self, index: int, connection: Connection) -> None:
        reported = False
        while message := connection.receive():
            if "end" in message:
                reported = True
                threading.Thread(target=self._on_end, args=message["end"], daemon=True).start()
            elif "done" in message:
                connection.done.set()
            else:
                connection.inbox.put(message)
        if not reported and not connection.done.is_set():
            self._on_end(index, None, process.FAILED)
        connection.closed.set()

    def _on_end(self, index: int, text: str | None, code: int) -> None:
        if not self._end_lock.acquire(blocking=False):
            return
        if self.index == 0:
            for other, connection in self._connections.items():
                if other != index:
                    connection.send(end=[index, text, code])
        if text is not None and self._leaving.wait(GRACE_SECONDS):
            return  # this process fails too, mostly for the same reason, and its own message is better
        if not self._leaving.is_set():
            lost = "does not answer any more: it was killed, or its machine is lost"
            reason = f"has failed: {text}" if text else lost
            self._stop(f"process {index} of {self.count} {reason}", code)


@contextmanager
def connect(
    address: str | None, count: int, index: int, workdir: str, signals: Callable[[], str | None]
) -> Iterator[Peers]:
    """Connect to the other processes of a run, if there are any, and report to them how this one ends.

    `signals` returns the name of a received signal, which ends the waiting. Raises UsageError for invalid flags.
    """
    if count <= 1 and (address or index):
        raise UsageError("--coordinator and --process_id need --num_processes=N, the number of processes of the run")
    if count > 1 and not address:
        raise UsageError("--num_processes needs --coordinator=HOST:PORT, equal in all processes")
    if index >= count:
        raise UsageError(f"--process_id={index} must be below --num_processes={count}")

    def stop(text: str, code: int) -> None:
        hint = "" if code == process.USAGE else f". Checkpoints are in {workdir}; start all processes again to continue"
        process.exit_now(f"launch.py train: {text}{hint}", code)

    peers = Peers(address or "", count, index, stop)
    try:
        if count > 1:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # we report ended processes ourselves
            process.reserve_stdout()
            say = lambda line: print(line, file=process.Terminal(sys.stdout, optional=True), flush=True)  # noqa: E731
            peers.meet(say, signals=signals)
        yield peers
        peers.finish()
    except BaseException as error:
        peers.report_failure(*process.error_line(error), doubtful=_is_jax_error(error))
        raise
    finally:
        peers.close()


def _is_jax_error(error: BaseException | None) -> bool:
    """Whether an error comes from inside jax, as from a collective after another process has ended."""
    while error and not isinstance(error, UsageError):
        if type(error).__module__.startswith("jax"):
            return True
        error = error.__cause__ or error.__context__
    return False


def parse_address(address: str) -> tuple[str, int]:
    """HOST:PORT -> host, port. Raises UsageError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator={address} must be HOST:PORT, a port from 1 to 65535, as localhost:9000")
    return host.strip("[]"), int(port)


@contextmanager
def open_server(port: int) -> Iterator[socket.socket]:
    """A server on a port (0: any free one) of all addresses of this machine. Raises UsageError if it is taken."""
    dual_stack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual_stack else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual_stack)
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"--coordinator: process 0 cannot listen at port {port} ({why}); use another") from None
    with server:
        yield server


def describe_difference(found: dict[int, dict[str, Any]]) -> str | None:
    """A message on the differences between the facts of processes; None if there are none."""
    parts = []
    for key in dict.fromkeys(key for facts in found.values() for key in facts):
        values = {i: json.dumps(facts.get(key), sort_keys=True) for i, facts in found.items()}
        other = next((i for i, value in values.items() if value != values[0]), None)
        if other is not None:
            first, second = (_cut(repr(found[i].get(key))) for i in (0, other))
            parts.append(f"process 0 has {key}={first}, process {other} has {second}")
    if not parts:
        return None
    more = f"; and {len(parts) - DIFFERENCES_SHOWN} more" if len(parts) > DIFFERENCES_SHOWN else ""
    return f"the processes of a run need equal flags, config and code: {'; '.join(parts[:DIFFERENCES_SHOWN])}{more}"


def _cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"
