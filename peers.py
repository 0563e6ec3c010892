"""Processes that train together: they meet at process 0, compare what they run, and hear of each other's end.

Each keeps a connection to process 0 until all are through. A message is JSON on a line: what is a process's `own`, what
process 0 has `found` in those of all, `done` from a process that is through, `end` from one that fails. A connection
that closes without a word is a process that was killed. jax.distributed comes after, at an address that process 0
chooses: it aborts where another process ends, and a collective of its own blocks for ever, so both are left to us.
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

import process
from errors import UsageError

MEET_SECONDS = 300.0  # seconds for all processes to come
POLL_SECONDS = 0.2  # seconds between looks at whom is waited for
GRACE_SECONDS = 1.0  # seconds in which a process may say itself what another one has said
DIFFERENCES_SHOWN = 3  # differences in a message
Message = dict[str, Any]


class Connection:
    """The connection to another process."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):  # of a lost machine
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.done, self.closed = threading.Event(), threading.Event()
        self._connection, self._lock = connection, threading.Lock()
        self._file = connection.makefile("r", encoding="utf-8")

    def send(self, **message: Any) -> None:
        """Send a message; a process that is no more is the reader's to notice."""
        with suppress(OSError), self._lock:
            self._connection.sendall(f"{json.dumps(message)}\n".encode())

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message, None at the end of the connection or after `timeout` seconds."""
        with suppress(OSError, ValueError):
            self._connection.settimeout(timeout)
            message = json.loads(self._file.readline())
            return message if isinstance(message, dict) else None
        return None

    def close(self) -> None:
        """End the connection, for who reads from it here too."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Peers:
    """The processes of a run, `count` in all, as process `index` reaches them.

    `stop` prints a line and ends this process: another process's end is heard by a thread, and the main thread may wait
    for that process in a collective for ever.
    """

    def __init__(self, address: str, count: int, index: int, stop: Callable[[str, int], None]) -> None:
        self.address, self.count, self.index, self._stop = address, count, index, stop
        self.coordinator = ""  # HOST:PORT of jax.distributed
        self._lines: dict[int, Connection] = {}  # to all others in process 0, else to process 0 alone
        self._end_follows = False  # another process is about to say why this one ends too
        self._leaving = threading.Event()
        self._end_lock = threading.Lock()  # held once an end was heard: what ends next, ends of it

    def meet(
        self, say: Callable[[str], None], wait: float = MEET_SECONDS, signals: Callable[[], str | None] = lambda: None
    ) -> None:
        """Return when all processes are there.

        Raises RuntimeError after `wait` seconds and for a signal, UsageError for a wrong process.
        """
        until = time.monotonic() + wait

        def in_vain() -> bool:
            if name := signals():
                raise RuntimeError(f"{name} came while it waited for the other processes")
            return time.monotonic() > until

        where = parse_address(self.address)
        if self.index:
            say(f"process {self.index} of {self.count} waits for process 0 at {self.address}")
            self._lines[0] = line = Connection(self._connect(where, in_vain, wait))
            line.send(process=self.index, processes=self.count)
            self._watch(0)
            while not self.coordinator:
                try:
                    self.coordinator = line.inbox.get(timeout=POLL_SECONDS)["coordinator"]
                except (queue.Empty, KeyError):
                    if in_vain():
                        raise RuntimeError(f"no process 0 of this run answers at {self.address}") from None
            return
        say(f"process 0 waits for {self.count} processes at {self.address}")
        with open_server(where[1]) as server:
            while len(self._lines) < self.count - 1:
                server.settimeout(POLL_SECONDS)
                try:
                    self._accept(Connection(server.accept()[0]))
                except TimeoutError:
                    if not in_vain():
                        continue
                    absent = ", ".join(str(i) for i in range(1, self.count) if i not in self._lines)
                    raise RuntimeError(
                        f"waited {wait:.0f} s at {self.address} for {self.count} processes; absent: {absent}"
                    ) from None
        with open_server(0) as server:
            self.coordinator = f"{self.address.rpartition(':')[0]}:{server.getsockname()[1]}"
        self._send(coordinator=self.coordinator)

    def _connect(self, where: tuple[str, int], in_vain: Callable[[], bool], wait: float) -> socket.socket:
        while True:
            try:
                return socket.create_connection(where, timeout=5)
            except OSError as error:
                if in_vain():
                    raise RuntimeError(
                        f"waited {wait:.0f} s for process 0, which is not at {self.address} ({error})"
                    ) from None
                time.sleep(POLL_SECONDS)

    def _accept(self, line: Connection) -> None:
        """Take a process in that calls; a stranger is sent away. Raises UsageError where two calls do not agree."""
        hello = line.receive(timeout=5) or {}
        index, count = hello.get("process"), hello.get("processes")
        if not isinstance(index, int):
            line.close()
            return
        problem = None
        if count != self.count:
            problem = f"process 0 has --num_processes={self.count}, process {index} has --num_processes={count}"
        elif index in self._lines:
            problem = f"two processes have --process_id={index}"
        if problem:
            line.send(end=[0, problem, 2])
            raise UsageError(problem)
        self._lines[index] = line
        self._watch(index)

    def agree(self, facts: dict[str, Any]) -> None:
        """Return when all processes have given the same facts. Raises UsageError in all with what differs."""
        if problem := self._gather(facts, describe_difference):
            raise UsageError(problem)

    def any_process(self, flag: bool) -> bool:
        """Whether a flag is set in any process, which all ask: one that fails sets it before they would wait for it."""
        found = self._gather(flag, lambda flags: any(flags.values()))
        self._end_follows = bool(found) and not flag
        return bool(found)

    def _gather(self, own: Any, judge: Callable[[dict[int, Any]], Any]) -> Any:
        """What `judge` finds in process 0, for all, of what each process has by its number."""
        if self.count == 1:
            return judge({0: own})
        own = json.loads(json.dumps(own))  # as the others' come
        if self.index:
            self._lines[0].send(own=own)
            return self._lines[0].inbox.get()["found"]
        found = judge({0: own} | {index: line.inbox.get()["own"] for index, line in sorted(self._lines.items())})
        self._send(found=found)
        return found

    def join_jax(self) -> None:
        """Make one jax of all processes."""
        if self.count == 1:
            return
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(self.coordinator, self.count, self.index, shutdown_timeout_seconds=30)
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # jax has put its own in the place of ours

    def report_failure(self, text: str, code: int, doubtful: bool) -> None:
        """Say that this process fails. Where that is `doubtful`, another one's end may be why: that is heard first."""
        if (doubtful or self._end_follows) and self._lines:
            time.sleep(3 * GRACE_SECONDS)  # the thread that hears of it ends this process
        self._leaving.set()
        self._send(end=[self.index, text, code])
        if self.index == 0:  # with whom jax ends in all others, by a stack: they say their line before
            for line in self._lines.values():
                line.closed.wait(3 * GRACE_SECONDS)

    def finish(self) -> None:
        """Return when all processes are through."""
        self._send(done=True)
        for line in self._lines.values():
            line.done.wait()

    def close(self) -> None:
        """Close the connections; an end is not heard any more."""
        self._leaving.set()
        for line in self._lines.values():
            line.close()

    def _send(self, **message: Any) -> None:
        for line in self._lines.values():
            line.send(**message)

    def _watch(self, index: int) -> None:
        threading.Thread(target=self._listen, args=(index, self._lines[index]), daemon=True).start()

    def _listen(self, index: int, line: Connection) -> None:
        said = False
        while message := line.receive():
            if "end" in message:
                said = True
                threading.Thread(target=self._on_end, args=message["end"], daemon=True).start()
            elif "done" in message:
                line.done.set()
            else:
                line.inbox.put(message)
        if not said and not line.done.is_set():
            self._on_end(index, None, process.FAILED)
        line.closed.set()

    def _on_end(self, index: int, text: str | None, code: int) -> None:
        if not self._end_lock.acquire(blocking=False):
            return
        if self.index == 0:
            for other, line in self._lines.items():
                if other != index:
                    line.send(end=[index, text, code])
        if text is not None and self._leaving.wait(GRACE_SECONDS):
            return  # this process fails too, of the same mostly, and its own line is the better one
        if not self._leaving.is_set():
            how = f"has failed: {text}" if text else "does not answer any more: it was killed, or its machine is lost"
            self._stop(f"process {index} of {self.count} {how}", code)


@contextmanager
def connect(
    address: str | None, count: int, index: int, workdir: str, signals: Callable[[], str | None]
) -> Iterator[Peers]:
    """Meet the other processes of a run, and say to them how this one ends. A count of 1 meets none.

    `signals` names a signal that has come, which ends the waiting. Raises UsageError for flags that do not go together.
    """
    if count <= 1 and (address or index):
        raise UsageError("--coordinator and --process_id go with --num_processes=N, how many processes train together")
    if count > 1 and not address:
        raise UsageError("--num_processes needs --coordinator=HOST:PORT, the same for all processes")
    if index >= count:
        raise UsageError(f"--process_id={index} must be below --num_processes={count}")

    def stop(text: str, code: int) -> None:
        again = "" if code == process.USAGE else f". What was saved is in {workdir}; start all processes again to go on"
        process.exit_now(f"launch.py train: {text}{again}", code)

    peers = Peers(address or "", count, index, stop)
    try:
        if count > 1:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what jax says of a process that ended, we say
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
    """Whether an error comes from inside jax, as that of a collective which another process has left."""
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
    """A server at a port of all this machine's addresses, 0 for a free one. Raises UsageError where it is taken."""
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=six)
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"--coordinator: process 0 cannot listen at port {port} ({why}); take another") from None
    with server:
        yield server


def describe_difference(found: dict[int, dict[str, Any]]) -> str | None:
    """What differs between the facts of processes, in words; None where nothing does."""
    parts = []
    for key in dict.fromkeys(key for facts in found.values() for key in facts):
        values = {i: json.dumps(facts.get(key), sort_keys=True) for i, facts in found.items()}
        other = next((i for i, value in values.items() if value != values[0]), None)
        if other is not None:
            mine, theirs = (_cut(repr(found[i].get(key))) for i in (0, other))
            parts.append(f"process 0 has {key}={mine}, process {other} has {theirs}")
    if not parts:
        return None
    more = f"; and {len(parts) - DIFFERENCES_SHOWN} more" if len(parts) > DIFFERENCES_SHOWN else ""
    return f"processes of one run must be started alike: {'; '.join(parts[:DIFFERENCES_SHOWN])}{more}"


def _cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"
