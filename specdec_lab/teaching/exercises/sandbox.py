"""Functions of submissions, called in a bubblewrap sandbox: a call gives a value, an error, or no answer in time.

Each submission gets a sandbox of its own, started while the one before it is graded, and each of its exercises runs in
a fork of the process there: importing PyTorch takes 1.3 s of CPU time, a fork 0.02 s. A sandbox for each exercise would
import it 16 times per submission, and in a sandbox shared by submissions one of them could end the process of the next.
"""

import itertools
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from specdec_lab.teaching.exercises import bubblewrap
from specdec_lab.teaching.exercises.exercise import (
    ChangedArguments,
    OpaqueValue,
    ProcessEnded,
    SubmissionFailed,
    TooSlow,
    clean,
)
from specdec_lab.teaching.exercises.outcomes import Chance
from specdec_ref.errors import SpecdecError

MEMORY, CPU_SECONDS = 1 << 30, 120
"""Bytes and seconds of one process, which cannot start a second one."""
START_SECONDS, LOAD_SECONDS, END_SECONDS = 180.0, 30.0, 10.0
MOST_WAITING = 6
"""Times as long that we wait for a process that has something to compute while other programs have the machine."""
MOST_BYTES, MOST_BYTES_IN_ALL = 1_000_000, 32_000_000
"""Of one answer, and of all that one process sends."""
MOST_NODES, MOST_KEYS, MOST_DEPTH = 100_000, 256, 40
"""Of one answer: values in it, keys of one dict (keys can be chosen so that each collides with all others), nesting."""
CHILD = Path(__file__).with_name("sandbox_child.py")
FIRST_USER = 200_000
_numbers = itertools.count()
"""Of sandboxes: where the grader runs as root, their user IDs are made of them."""


class Sandbox:
    """Runs submissions one after the other, each in a bubblewrap of its own. Linux only. To be used in a `with`.

    Args:
        hidden: Folders that no submission may see, besides those of the course.

    Raises:
        SpecdecError: bubblewrap is missing, does not start, or does not isolate as it should.
    """

    def __init__(self, hidden: Sequence[Path] = ()):
        if sys.platform != "linux":
            raise SpecdecError("grading others' work needs Linux; for your own, on any system: specdec grade --trusted")
        self._hidden = list(hidden)
        self._running = self._start()
        self._spare: _Process | None = None
        self._used = False
        try:
            self._running.wait_until_ready()
        except BaseException:
            self._running.kill()
            raise

    def _start(self) -> "_Process":
        return _Process(self._hidden)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self._running.kill()
        if self._spare is not None:
            self._spare.kill()

    def next_submission(self) -> None:
        """End everything of the submission before. Raises SpecdecError where no new sandbox starts."""
        if self._used:
            self._replace()

    def _replace(self) -> None:
        self._running.kill()
        self._running, self._spare = self._spare or self._start(), None
        self._used = False
        self._running.wait_until_ready()

    def open(self, sources: Sequence[str]) -> "RunningNotebook":
        """Run these cells in a new process. Raises SubmissionFailed, and TooSlow."""
        for _ in range(2):
            if not self._running.alive():
                self._replace()
            self._used = True
            if self._spare is None:
                self._spare = self._start()
            try:
                sock = self._running.connect()
            except OSError:  # it ended just now: once more, with a new one
                self._running.kill()
            else:
                return RunningNotebook(self, sock, list(sources))
        raise SpecdecError("grading: the process for submissions ends again and again")

    def computing(self) -> tuple[float, bool]:
        """CPU seconds that the processes in it have taken, and whether one of them is computing now."""
        return self._running.computing()

    def address_space(self) -> int:
        """Bytes of address space of the process that is forked for each notebook."""
        return self._running.address_space()

    def end(self) -> None:
        """End the process that runs the notebook, and the sandbox if it does not answer or holds files."""
        self._running.end()


class _Process:
    """One bubblewrap with the program for submissions in it."""

    def __init__(self, hidden: Sequence[Path]):
        user = FIRST_USER + os.getpid() % 10_000 * 100 + next(_numbers) % 100 if os.getuid() == 0 else 0
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptor = theirs.fileno()
            command = bubblewrap.command(CHILD, [str(descriptor), str(user)], hidden)
            self.bwrap = subprocess.Popen(
                command,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

    def wait_until_ready(self) -> None:
        """Raises SpecdecError where it does not start, or isolates less than it should."""
        self._control.settimeout(START_SECONDS)
        try:
            ready = self._control.recv(10_000)
        except TimeoutError:
            self.kill()
            raise SpecdecError(f"grading: the process for submissions did not start in {START_SECONDS:.0f} s") from None
        except OSError:
            ready = b""
        if not ready:
            raise SpecdecError(
                f"grading others' work needs bubblewrap, and bwrap does not start here ({self._last_words()}):"
                f" {bubblewrap.INSTALL}"
            )
        found = json.loads(ready)
        if found != {"interfaces": ["lo"], "parent": 1, "writable": [], "restricted": True}:
            self.kill()
            raise SpecdecError(
                f"grading others' work: bwrap starts here but does not isolate ({clean(found)}); grade in a container"
                " that allows it, or use --trusted for your own work"
            )
        self._control.settimeout(None)

    def _last_words(self) -> str:
        """What bubblewrap, or the program in it, printed before it ended."""
        self.bwrap.kill()
        assert self.bwrap.stderr is not None
        lines = self.bwrap.stderr.read().decode(errors="replace").strip().splitlines()
        self.kill()
        return clean(lines[-1]) if lines else f"exit status {self.bwrap.returncode}"

    def alive(self) -> bool:
        return self.bwrap.poll() is None

    def connect(self) -> socket.socket:
        """A socket to a new process in it. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"begin"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def end(self) -> None:
        """End the process that was connected to last."""
        try:
            self._control.settimeout(END_SECONDS)
            self._control.send(b"end")
            ended = self._control.recv(16) == b"ended"
        except OSError:
            ended = False
        if not ended:
            self.kill()

    def kill(self) -> None:
        """End everything in it: its first process dies with bubblewrap, and all others with their first."""
        self.bwrap.kill()
        self.bwrap.wait()
        self._control.close()
        if self.bwrap.stderr is not None:
            self.bwrap.stderr.close()

    def computing(self) -> tuple[float, bool]:
        seconds, runs = 0.0, False
        for process in self._inside():
            with suppress(psutil.Error):
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
                runs |= process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
        return seconds, runs

    def address_space(self) -> int:
        return max((process.memory_info().vms for process in self._inside()), default=0)

    def _inside(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return psutil.Process(self.bwrap.pid).children(recursive=True)
        return []


class RunningNotebook:
    """One notebook in its process. `function(name)` gives a function that calls the one that its cells defined."""

    limited = False
    """Its functions raise TooSlow by themselves."""
    reached = "bubblewrap"
    """How it is isolated."""

    def __init__(self, sandbox: Sandbox, sock: socket.socket, sources: list[str]):
        self._sandbox, self._sock = sandbox, sock
        self._left = MOST_BYTES_IN_ALL
        self._allow(LOAD_SECONDS)
        memory = sandbox.address_space() + MEMORY
        try:
            self._send({"sources": sources, "memory": memory, "cpu_seconds": CPU_SECONDS})
            self._wait_for_restrictions()
            ready = self._receive()
        except BaseException:
            self.close()
            raise
        self.names = {clean(name) for name in _list(ready.get("names"))}
        self.broken = [clean(text) for text in _list(ready.get("broken"))]

    def _wait_for_restrictions(self) -> None:
        """Sent before any of the submission's code runs. Raises SpecdecError where they could not be applied."""
        try:
            restricted = self._receive()
        except SubmissionFailed as error:
            raise SpecdecError("grading: the process for a submission could not be restricted") from error
        if restricted != {"restricted": True}:
            raise SpecdecError("grading: the process for a submission could not be restricted")

    def __enter__(self) -> "RunningNotebook":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._sock.close()
        self._sandbox.end()

    def function(self, name: str, seconds: float) -> Any:
        """Their function of that name, which may take so long in all. Our own time between calls does not count."""
        self._allow(seconds)
        paused = time.monotonic()

        def call(*arguments: Any) -> Any:
            nonlocal paused
            self.deadline += time.monotonic() - paused
            try:
                return ask(*arguments)
            finally:
                paused = time.monotonic()

        def ask(*arguments: Any) -> Any:
            chance = next((a for a in arguments if isinstance(a, Chance)), None)
            self._send({"function": name, "arguments": [encode(argument) for argument in arguments]})
            while True:
                reply = self._receive()
                if chance is None or reply.get("ask") not in ("accept", "draw"):
                    break
                argument = decode(reply.get("argument"))
                self._send({"answer": getattr(chance, reply["ask"])(argument)})
            if "error" in reply:
                if reply.get("not_attempted"):
                    raise NotImplementedError
                raise SubmissionFailed(f"{clean(reply['error'])} (line {clean(reply.get('line', 0), 8)})")
            if reply.get("changed"):
                raise ChangedArguments
            return decode(reply.get("value"))

        call.__module__ = "elsewhere"  # it is not the package's
        return call

    def _allow(self, seconds: float) -> None:
        self.deadline, self._seconds, self._waited = time.monotonic() + seconds, seconds, 1
        self._computed = self._sandbox.computing()[0]

    def _go_on_if_starved(self) -> None:
        """Time is up. Raises TooSlow, unless the process got less than half of that time to compute, and wants more or
        has answered while we looked."""
        seconds, runs = self._sandbox.computing()
        answers = runs or bool(select.select([self._sock], [], [], 0)[0])
        if self._waited >= MOST_WAITING or not answers or seconds - self._computed > self._seconds / 2:
            raise TooSlow
        self._waited += 1
        self.deadline = time.monotonic() + self._seconds

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        try:
            self._sock.settimeout(max(0.1, self.deadline - time.monotonic()))
            self._sock.sendall(struct.pack("!I", len(data)) + data)
        except TimeoutError as error:
            raise TooSlow from error
        except OSError as error:
            raise ProcessEnded("the process ended (exit, kill, or out of memory)") from error

    def _receive(self) -> dict[str, Any]:
        size = struct.unpack("!I", self._read(4))[0]
        self._left -= size
        if size > MOST_BYTES or self._left < 0:
            raise SubmissionFailed("the answers are too large")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise SubmissionFailed("the answer is not one") from error
        if not isinstance(message, dict):
            raise SubmissionFailed("the answer is not one")
        return message

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            left = self.deadline - time.monotonic()
            if left <= 0 or not select.select([self._sock], [], [], left)[0]:
                self._go_on_if_starved()
                continue
            try:
                part = self._sock.recv(min(65536, size - len(data)))
            except OSError as error:
                raise ProcessEnded("the process ended") from error
            if not part:
                raise ProcessEnded("the process ended (exit, kill, or out of memory)")
            data += part
        return data


def encode(value: Any) -> Any:
    """For JSON: numbers, texts, lists, dicts, tensors, and a mark for chance."""
    if isinstance(value, Chance):
        return {"chance": True}
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    return value


def decode(value: Any) -> Any:
    """What came back, trusted to be nothing but data. Takes time in proportion to its size. Raises SubmissionFailed."""
    if not _within_limits(value):
        raise SubmissionFailed("the answer is too large")
    return _decoded(value)


def _within_limits(value: Any) -> bool:
    """Whether a message is small enough to be decoded and compared: see MOST_NODES, MOST_KEYS and MOST_DEPTH."""
    todo, nodes = [(value, 0)], 0
    while todo:
        item, depth = todo.pop()
        nodes += 1
        if nodes > MOST_NODES or depth > MOST_DEPTH:
            return False
        if isinstance(item, dict):
            entries = item.get("dict")
            if isinstance(entries, list) and len(entries) > MOST_KEYS:
                return False
            todo += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            todo += [(inner, depth + 1) for inner in item]
    return True


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        if "tensor" in value:
            dtype = getattr(torch, str(value.get("dtype")), None)
            return torch.tensor(value["tensor"], dtype=dtype if isinstance(dtype, torch.dtype) else None)
        if "dict" in value:
            return {_key(_decoded(k)): _decoded(v) for k, v in value["dict"]}
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return OpaqueValue("broken value")
    return OpaqueValue(clean(value.get("odd", "object"), 40))


def _key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
