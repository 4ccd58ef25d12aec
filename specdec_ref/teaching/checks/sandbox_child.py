"""The process that runs strangers' code. It stands alone: it imports nothing of the package, which is hidden from it.

It loads PyTorch once, then forks for each submission that it is handed over its control socket, with a socket of its
own for each. A fork builds walls around itself, says which, runs the cells, and then answers calls. Nothing that it
says after that is believed to be more than a value.
"""

import array
import builtins
import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import io
import json
import numbers
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
import types

import numpy
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cells
import walls

sys.path.pop(0)

PDEATHSIG, SUBREAPER = 1, 36
MOST = 4_000_000
ABSENT = "is not there while you are graded from outside: write that part yourself"
STUBS = (), ("your code here",)
"""What the NotImplementedError of an answer that is still to be written says; PyTorch has some of its own."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""SciPy starts a thread for each core as soon as it is imported, and on large machines that is more than is allowed."""


def receive(sock):
    head = sock.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        os._exit(0)
    return json.loads(sock.recv(struct.unpack("!I", head)[0], socket.MSG_WAITALL))


def send(sock, message):
    data = json.dumps(message).encode()
    if len(data) > MOST:
        data = json.dumps({"error": "ValueError", "message": "the result is too large"}).encode()
    sock.sendall(struct.pack("!I", len(data)) + data)


def encode(value):
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"odd": "complex tensor"} if value.is_complex() else {"tensor": value.detach().tolist(), "dtype": dtype}
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return encode(torch.as_tensor(value))
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    return {"odd": type(value).__name__}


def decode(value, sock):
    if isinstance(value, list):
        return [decode(item, sock) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
        if "chance" in value:
            return Chance(sock)
        return {decode(k, sock): decode(v, sock) for k, v in value["dict"]}
    return value


class Chance:
    """Asks the other side, which plays every outcome."""

    def __init__(self, sock):
        self._sock = sock

    def accept(self, probability):
        return self._ask("accept", probability)

    def draw(self, probabilities):
        return self._ask("draw", probabilities)

    def _ask(self, verb, argument):
        send(self._sock, {"ask": verb, "argument": encode(argument)})
        return receive(self._sock)["answer"]


class Nothing:
    """Stands for what is not there: while cells run, it can be called and asked for anything, and does nothing. An
    answer that needs it is told so."""

    graded = False

    def __init__(self, name):
        self.__dict__["name"] = name

    def __call__(self, *args, **kwargs):
        if Nothing.graded:
            raise ImportError(f"{self.name} {ABSENT}")
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if Nothing.graded:
            raise ImportError(f"{self.name} {ABSENT}")
        return self

    def __getitem__(self, key):
        return self()

    def __setitem__(self, key, value):
        self()

    def __enter__(self):
        return self()

    def __exit__(self, *error):
        pass

    def __iter__(self):
        return iter((self(), self()))  # figure, axes = plt.subplots()


class Hidden(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for every name of the package, and of what only draws."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("specdec_ref", "IPython", "matplotlib", "ipywidgets"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        package = spec.name.split(".")[0]

        def get(name):
            if name.startswith("__") or Nothing.graded:
                raise (AttributeError(name) if name.startswith("__") else ImportError(f"{package} {ABSENT}"))
            return Nothing(package)

        module.__getattr__ = get
        return module

    def exec_module(self, module):
        pass


def keep(pid, scratch):
    """Wait until that process has ended or this one is told to end it; then nothing that it started lives on."""
    signal.sigwait((signal.SIGTERM, signal.SIGCHLD))
    while True:
        children = {pid}
        with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
            children |= {int(child) for child in file.read().split()}
        for child in children:
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


def run(sock):
    """Run the cells, then answer calls until the other side hangs up."""
    begin = receive(sock)
    prctl = ctypes.CDLL(None).prctl
    with open("/proc/self/statm") as pages:
        present = int(pages.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    prctl(PDEATHSIG, signal.SIGTERM)
    prctl(SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD))
    reached = ["namespaces"] if walls.leave() else []
    scratch = None if reached else tempfile.mkdtemp(prefix="submission-")
    pid = os.fork()  # in a new namespace the first process: when it dies, all in it do
    if pid:
        sock.close()
        keep(pid, scratch)
    prctl(PDEATHSIG, signal.SIGKILL)
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGCHLD))
    if reached:
        try:
            walls.move_house(begin["hidden"])
        except OSError as error:
            reached = [f"namespaces without files of their own ({error.strerror})"]
    else:
        os.chown(scratch, *([begin["uid"]] * 2 if os.getuid() == 0 else (-1, -1)))
        os.chdir(scratch)
    reached += ["Landlock"] if walls.restrict_files(begin["hidden"], scratch or "/tmp") else []
    walls.give_up_rights(begin["uid"])
    reached += ["seccomp"] if walls.refuse_calls() else []
    walls.limit(begin["memory"], begin["cpu_seconds"], present)
    sys.meta_path.insert(0, Hidden())
    os.environ.clear()
    os.environ.update(ONE_THREAD)
    send(sock, {"walls": ", ".join([*reached, "limits"])})  # before any of their code runs: this can be believed
    names = {"__name__": "__main__", "__builtins__": builtins, "display": lambda *what: None}
    broken = cells.run(begin["sources"], names)
    Nothing.graded = True
    send(sock, {"names": sorted(n for n, v in names.items() if callable(v)), "broken": broken[:5]})
    while True:
        call = receive(sock)
        try:
            arguments = [decode(argument, sock) for argument in call["arguments"]]
            value = encode(names[call["function"]](*arguments))
            after = [{"chance": True} if isinstance(a, Chance) else encode(a) for a in arguments]
            send(sock, {"value": value, "changed": json.dumps(after) != json.dumps(call["arguments"])})
        except BaseException as error:
            line = error.__traceback__
            while line is not None and line.tb_next is not None:
                line = line.tb_next
            send(
                sock,
                {
                    "error": cells.told(error),
                    "line": line.tb_lineno if line else 0,
                    "not_attempted": type(error) is NotImplementedError and error.args in STUBS,
                },
            )


def main():
    torch.set_num_threads(1)
    control = socket.socket(fileno=int(sys.argv[1]))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    running = {}

    def end(number):
        with contextlib.suppress(OSError, KeyError):
            os.kill(running[number], signal.SIGTERM)
            os.waitpid(running.pop(number), 0)

    control.send(b"ready")
    while True:
        message, files, _, _ = control.recvmsg(64, socket.CMSG_SPACE(4))
        if not message:
            for number in list(running):
                end(number)
            os._exit(0)
        if message.startswith(b"kill "):
            end(int(message[5:]))
            control.send(b"done")
            continue
        descriptor = array.array("i")
        descriptor.frombytes(files[0][2][:4])
        pid = os.fork()
        if pid == 0:
            control.close()
            try:
                run(socket.socket(fileno=descriptor[0]))
            finally:
                os._exit(1)
        os.close(descriptor[0])
        running[int(message[6:])] = pid


if __name__ == "__main__":
    main()
