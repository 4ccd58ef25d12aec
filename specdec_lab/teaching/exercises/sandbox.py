"""Call functions of submissions in a bubblewrap sandbox. A call returns a value, raises an error, or times out.

Each submission gets its own sandbox, which starts while the previous submission is graded. Each of its exercises runs
in a fork of the process in the sandbox, because importing PyTorch takes 1.3 s of CPU time and a fork takes 0.02 s. A
sandbox per exercise would import PyTorch 19 times for each submission. In a sandbox that several submissions share, one
of them could end the process of the next.
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
"""Memory in bytes and CPU time in seconds of one process, which cannot start a second one."""
START_SECONDS, LOAD_SECONDS, END_SECONDS = 180.0, 30.0, 10.0
MOST_WAITING = 6
"""Factor on the time limit for a process that is still computing while other programs use the CPU."""
MOST_BYTES, MOST_BYTES_IN_ALL = 1_000_000, 32_000_000
"""Limits on the bytes of one answer, and of all answers of one process."""
MOST_NODES, MOST_KEYS, MOST_DEPTH = 100_000, 256, 40
"""Limits on one answer: values, keys of one dict (whose hashes can be made to collide), and nesting."""
CHILD = Path(__file__).with_name("sandbox_child.py")
FIRST_USER = 200_000
_numbers = itertools.count()
"""Numbers of sandboxes. If the grader runs as root, their user IDs are made from these numbers."""


class Sandbox:
    """Runs submissions in sequence, each in its own bubblewrap process. Linux only. Use it as a context manager.

    Args:
        hidden: Folders that no submission may read, in addition to those of the course.

    Raises:
        SpecdecError: bubblewrap is missing, does not start, or does not isolate as it should.
    """

    def __init__(self, hidden: Sequence[Path] = ()):
        if sys.platform != "linux":
            raise SpecdecError(
                "grading the work of others needs Linux; for your own work, on any system: specdec grade --trusted"
            )
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
        """End all processes of the previous submission. Raises SpecdecError if no new sandbox starts."""
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
            except OSError:  # the process has just ended: try again with a new one
                self._running.kill()
            else:
                return RunningNotebook(self, sock, list(sources))
        raise SpecdecError("grading: the process for submissions ended twice in a row")

    def computing(self) -> tuple[float, bool]:
        """CPU seconds of all processes in the sandbox, and whether one of them is computing now."""
        return self._running.computing()

    def address_space(self) -> int:
        """Address space in bytes of the process that is forked for each notebook."""
        return self._running.address_space()

    def end(self) -> None:
        """End the process that runs the notebook. Also end the sandbox if it does not answer or contains files."""
        self._running.end()


class _Process:
    """A bubblewrap process that runs the program for submissions."""

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
        """Wait until the program is ready. Raises SpecdecError if it does not start, or is not fully isolated."""
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
                f"grading the work of others needs bubblewrap, and bwrap does not start here ({self._last_line()}):"
                f" {bubblewrap.INSTALL}"
            )
        isolation = json.loads(ready)
        if isolation != {"interfaces": ["lo"], "parent": 1, "writable": [], "restricted": True}:
            self.kill()
            raise SpecdecError(
                f"grading the work of others: bwrap starts but does not isolate ({clean(isolation)}); "
                "grade in a container"
                " that allows it, or use --trusted for your own work"
            )
        self._control.settimeout(None)

    def _last_line(self) -> str:
        """The last line that bubblewrap, or the program in it, printed before it ended."""
        self.bwrap.kill()
        assert self.bwrap.stderr is not None
        lines = self.bwrap.stderr.read().decode(errors="replace").strip().splitlines()
        self.kill()
        return clean(lines[-1]) if lines else f"exit status {self.bwrap.returncode}"

    def alive(self) -> bool:
        return self.bwrap.poll() is None

    def connect(self) -> socket.socket:
        """A socket to a new process in the sandbox. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"begin"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def end(self) -> None:
        """End the process of the latest connection."""
        try:
            self._control.settimeout(END_SECONDS)
            self._control.send(b"end")
            ended = self._control.recv(16) == b"ended"
        except OSError:
            ended = False
        if not ended:
            self.kill()

    def kill(self) -> None:
        """End all processes in the sandbox. They end when bubblewrap ends."""
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
    """A notebook in its process. `function(name)` returns a function that calls the one that the cells defined."""

    limited = False
    """Its functions raise TooSlow themselves."""
    reached = "bubblewrap"
    """The kind of isolation, for reports."""

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
        """Wait for the message that is sent before the submission's code runs. Raises SpecdecError if the process could
        not be restricted."""
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
        """End the process, whatever it is doing."""
        self._sock.close()
        self._sandbox.end()

    def function(self, name: str, seconds: float) -> Any:
        """The submission's function of this name, with a time limit in seconds for all its calls together."""
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

        call.__module__ = "elsewhere"  # so that `reaching` does not take it for a function of the package
        return call

    def _allow(self, seconds: float) -> None:
        self.deadline, self._seconds, self._waited = time.monotonic() + seconds, seconds, 1
        self._computed = self._sandbox.computing()[0]

    def _go_on_if_starved(self) -> None:
        """Extend a time limit that has passed, if the process got less than half of it as CPU time and is still
        computing or has just answered. Otherwise, raise TooSlow."""
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
            raise SubmissionFailed("the answer is malformed") from error
        if not isinstance(message, dict):
            raise SubmissionFailed("the answer is malformed")
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
    """A value as JSON data: numbers, texts, lists, dicts, tensors, and a placeholder for `Chance`."""
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
    """A value from the JSON data of a submission, in time proportional to its size. Raises SubmissionFailed."""
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
