"""A vLLM server on this machine, for the duration of a `with` block; it stops with all its child processes.

vLLM lives in an environment of its own (`make vllm-env`), since it pins its own versions of nearly everything.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import specdec_ref
from specdec_lab.serving.configuration import serve_command
from specdec_lab.web import answered, request
from specdec_ref.errors import SpecdecError

ENVIRONMENT = ".venv-vllm"
"""Where `make vllm-env` installs vLLM, next to the package."""
SMALL = ("--dtype", "float32", "--max-model-len", "512", "--generation-config", "vllm")
"""Options for a small pair on a CPU. With 'vllm', the model's generation_config cannot add a top-k of its own."""
WATCHDOG = """
import os, signal, sys, time
sys.stdin.read()
for number in signal.SIGTERM, signal.SIGKILL:
    try:
        os.killpg(int(sys.argv[1]), number)
    except ProcessLookupError:
        break
    time.sleep(10)
"""
"""A process that waits until this one ends, for any reason, and then stops the server, which would otherwise run on."""


def find_vllm() -> Path | None:
    """The `vllm` command: $SPECDEC_VLLM, or this environment's, or that of `make vllm-env`, or one on the PATH."""
    named = os.environ.get("SPECDEC_VLLM")
    if named:
        return Path(named) if Path(named).is_file() else None
    separate = Path(specdec_ref.__file__).parent.parent / ENVIRONMENT / "bin" / "vllm"
    for candidate in (Path(sys.executable).with_name("vllm"), separate):
        if candidate.is_file():
            return candidate
    on_path = shutil.which("vllm")
    return Path(on_path) if on_path else None


class VLLMServer:
    """A server on loopback: `with VLLMServer(target, config) as server:`, then use `server.url`.

    Args:
        target: a folder or hub name.
        config: vLLM's `speculative_config`; None for no speculation.
        options: further words for `vllm serve`.
        patience: seconds until the server has to answer. The first start compiles, which takes one to three minutes.
        cache_gib: memory for the KV cache on a CPU.
        environment: more environment variables.
        vllm: the `vllm` command; default what `find_vllm` returns.
        log: a file for the server's output; default a temporary file, which is deleted unless the start fails.

    Raises:
        SpecdecError: the server did not start, with the line of the log that explains it.
    """

    def __init__(
        self,
        target: str,
        config: Mapping[str, Any] | None = None,
        *,
        options: Sequence[str] = SMALL,
        patience: float = 600.0,
        cache_gib: int = 1,
        environment: Mapping[str, str] | None = None,
        vllm: str | os.PathLike[str] | None = None,
        log: str | os.PathLike[str] | None = None,
    ):
        command = find_vllm() if vllm is None else Path(vllm)
        if command is None or not command.is_file():
            raise SpecdecError(f"vllm: {command or 'not found'}; `make vllm-env` builds an environment with it")
        self.vllm, self.patience, self.cache_gib = command, patience, cache_gib
        self.environment = dict(environment or {})
        self.target, self.config, self.options = target, config, tuple(options)
        self.log = Path(log) if log is not None else None
        self._passing = False  # whether the log is one of our own
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "VLLMServer":
        self.launch()
        self.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def launch(self) -> None:
        """Start the process and return at once, so that several servers can start at the same time.

        `wait` and `stop` have to follow; a `with` block does all three.
        """
        port = _free_port()
        words = shlex.split(serve_command(self.target, self.config, port=port))
        words = [*_serve(self.vllm, words[2]), *words[3:], "--host", "127.0.0.1", *self.options]
        names = [self.target, str((self.config or {}).get("model") or self.target)]
        local = "1" if all(Path(name).is_dir() for name in names) else "0"
        surroundings = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": str(self.cache_gib),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", local),
            "PATH": f"{self.vllm.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        surroundings["LD_PRELOAD"] = preloaded(fast_libraries(self.vllm), os.environ.get("LD_PRELOAD", ""))
        surroundings |= self.environment
        if self.log is None:
            handle, name = tempfile.mkstemp(prefix="vllm-", suffix=".log")
            os.close(handle)
            self.log, self._passing = Path(name), True
        with open(self.log, "ab") as output:
            try:
                self._process = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=surroundings,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise SpecdecError(f"vllm: {self.vllm}: {error.strerror or error}") from error
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-c", WATCHDOG, str(self._process.pid)], stdin=subprocess.PIPE, start_new_session=True
            )
        except BaseException:
            self.stop()
            raise

    def wait(self) -> None:
        """Wait until the server answers. Raises SpecdecError if it ends first or takes longer than `patience`."""
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        if self._passing and self.log is not None:
            self.log.unlink(missing_ok=True)  # still open in the server; gone from the folder
            self.log = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop the server and every process that it started. A second call does nothing."""
        if self._process is None:
            return
        for number, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            if _ended(self._process, seconds):
                break
        self._process.wait()
        self._process = None
        if self._watchdog is not None:
            self._watchdog.kill()  # it has nothing left to do
            self._watchdog.communicate()
            self._watchdog = None

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise SpecdecError(
                    f"vllm: ended with status {self._process.returncode}: {self._error_in_log()} (log: {self.log})"
                )
            try:
                with answered(request(f"{self.url}/health"), timeout=5):
                    return
            except SpecdecError:
                time.sleep(0.5)
        raise SpecdecError(f"vllm: no answer within {self.patience:g} s (log: {self.log})")

    def _error_in_log(self) -> str:
        """The first line of the log that names an error, else the last line.

        After a validation error, the next two lines name the argument and the reason.
        """
        assert self.log is not None
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()] or ["its log is empty"]
        for i, line in enumerate(lines):
            if ("Error:" in line or " error:" in line) and "WARNING" not in line:
                return " ".join(lines[i : i + 3] if " validation error" in line else [line])[:400]
        return lines[-1][-400:]


def fast_libraries(vllm: Path) -> list[str]:
    """The libraries that vLLM's guide recommends to preload on a CPU, if present: Intel's OpenMP and tcmalloc."""
    libraries = sorted(vllm.parent.parent.glob("lib/libiomp5.so"))[:1]
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/aarch64-linux-gnu"):
        libraries += sorted(Path(folder).glob("libtcmalloc_minimal.so.4"))[:1]
    return [str(path) for path in libraries]


def preloaded(libraries: list[str], inherited: str) -> str:
    """LD_PRELOAD for a server: these libraries before the inherited ones, with a single OpenMP.

    vLLM refuses to start with two. Where vLLM ran in this process before, it has added PyTorch's libgomp.
    """
    openmp = any("iomp" in path for path in libraries)
    return ":".join([*libraries, *(p for p in inherited.split(":") if p and not (openmp and "libgomp" in p))])


def _serve(vllm: Path, target: str) -> list[str]:
    """The command `vllm serve TARGET`, as a Python module where its environment's Python is known.

    The `vllm` command of vllm-cpu 0.32 does not start, because it looks up the version of a package named 'vllm'.
    """
    python = vllm.with_name("python")
    if python.is_file():
        return [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", target]
    return [str(vllm), "serve", target]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether the whole process group ends within the given seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
