"""Functions of strangers, called in a process of their own: what comes back is a value, an error, or silence.

Nothing is unpickled, and no verdict is made where their code runs. What the system allows of walls is used (`walls`:
namespaces, Landlock, seccomp), with limits on time, memory, files and processes in any case; `reached` says which.
"""

import contextlib
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
from pathlib import Path
from typing import Any

import psutil
import torch

from specdec_ref.errors import SpecdecError
from specdec_ref.teaching.checks.exercise import ChangedArguments, Odd, StrangerFailed, TooSlow, clean
from specdec_ref.teaching.checks.outcomes import Chance

MEMORY, CPU_SECONDS = 1 << 30, 120
"""Bytes and seconds of one process, and a submission is one where seccomp keeps it from starting others."""
START_SECONDS, LOAD_SECONDS = 180.0, 30.0
MOST_WAITING = 6
"""Times as long that we wait for a process that has something to compute while other programs have the machine."""
MOST, MOST_IN_ALL = 4_000_000, 32_000_000
"""Bytes of one answer, and of all that one process says."""
PACKAGE, CHILD = Path(__file__).parents[2], Path(__file__).with_name("sandbox_child.py")
_numbers = itertools.count(1)
"""Of submissions, over all sandboxes: their user ids are made of them."""


class Sandbox:
    """A process that has PyTorch loaded and forks for each submission. Linux only: needs fork and sockets' files.

    hidden: folders that no submission may see, besides this package. Use it in a `with`.
    """

    def __init__(self, hidden: Sequence[Path] = ()):
        if sys.platform != "linux":
            raise SpecdecError("grading others' work needs Linux; for your own, on any system: specdec grade --trusted")
        self._hidden = [str(path.resolve()) for path in (PACKAGE, *_beside(PACKAGE), *hidden)]
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ.get("PATH", "")}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(CHILD), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self._control = ours
        ours.settimeout(START_SECONDS)
        try:
            ready = ours.recv(16)
        except OSError:
            ready = b""
        if ready != b"ready":
            self._process.kill()
            raise SpecdecError("grading: the process for submissions does not start; is PyTorch installed?")
        ours.settimeout(None)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self._control.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def open(self, sources: Sequence[str]) -> "Stranger":
        """Run these cells in a new process. Raises StrangerFailed, and TooSlow."""
        number = next(_numbers)
        for attempt in (1, 2):
            if self._process.poll() is not None:
                self._start()
            ours, theirs = socket.socketpair()
            try:
                socket.send_fds(self._control, [f"begin {number}".encode()], [theirs.fileno()])
                break
            except OSError:  # it ended just now: once more, with a new one
                ours.close()
                self._process.kill()
                self._process.wait()
                if attempt == 2:
                    raise SpecdecError("grading: the process for submissions ends again and again") from None
            finally:
                theirs.close()
        return Stranger(self, ours, number, list(sources), self._hidden)

    def computing(self) -> tuple[float, bool]:
        """CPU seconds that the submissions in it have taken, and whether one of them is computing now."""
        seconds, runs = 0.0, False
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    seconds += times.user + times.system + times.children_user + times.children_system
                    runs |= process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
        return seconds, runs

    def end(self, number: int) -> None:
        """Kill that process and everything that it started."""
        try:
            self._control.settimeout(10)
            self._control.send(f"kill {number}".encode())
            self._control.recv(16)
        except OSError:
            self._process.kill()
            self._process.wait()


class Stranger:
    """One submission in its process. `function(name)` gives a function that calls theirs."""

    limited = False
    """Its functions raise TooSlow by themselves."""

    def __init__(self, sandbox: Sandbox, sock: socket.socket, number: int, sources: list[str], hidden: list[str]):
        self._sandbox, self._sock, self._number = sandbox, sock, number
        self._left = MOST_IN_ALL
        self._allow(LOAD_SECONDS)
        begin = {"sources": sources, "hidden": hidden, "memory": MEMORY, "cpu_seconds": CPU_SECONDS}
        try:
            self._send(begin | {"uid": 200_000 + number % 1_000_000})
            self.reached = str(self._receive().get("walls", ""))  # said before any of their code runs
            ready = self._receive()
        except BaseException:
            self.close()
            raise
        self.names = {clean(name) for name in _list(ready.get("names"))}
        self.broken = [clean(text) for text in _list(ready.get("broken"))]

    def __enter__(self) -> "Stranger":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._sock.close()
        self._sandbox.end(self._number)

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
                raise StrangerFailed(f"{clean(reply['error'])} (line {clean(reply.get('line', 0), 8)})")
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
            raise StrangerFailed("the process ended (exit, kill, or out of memory)") from error

    def _receive(self) -> dict[str, Any]:
        size = struct.unpack("!I", self._read(4))[0]
        self._left -= size
        if size > MOST or self._left < 0:
            raise StrangerFailed("the answers are too large")
        try:
            message = json.loads(self._read(size))
        except (ValueError, RecursionError) as error:
            raise StrangerFailed("the answer is not one") from error
        if not isinstance(message, dict):
            raise StrangerFailed("the answer is not one")
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
                raise StrangerFailed("the process ended") from error
            if not part:
                raise StrangerFailed("the process ended (exit, kill, or out of memory)")
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
    """What came back, trusted to be nothing but data."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        if "tensor" in value:
            dtype = getattr(torch, str(value.get("dtype")), None)
            return torch.tensor(value["tensor"], dtype=dtype if isinstance(dtype, torch.dtype) else None)
        if "dict" in value:
            return {_key(decode(k)): decode(v) for k, v in value["dict"]}
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return Odd("broken value")
    return Odd(clean(value.get("odd", "object"), 40))


def _beside(package: Path) -> list[Path]:
    """The folders around a package that stands in its repository: tests, lessons and history hold answers, too."""
    if not (package.parent / "pyproject.toml").is_file():
        return []
    prefixes = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]
    folders = [path for path in package.parent.iterdir() if path.is_dir()]
    return [path for path in folders if not any(prefix.is_relative_to(path.resolve()) for prefix in prefixes)]


def _key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
