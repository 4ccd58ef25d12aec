"""The process that runs strangers' code. It stands alone: it imports nothing of the package, which is hidden from it.

It loads PyTorch once, then forks for each submission that it is handed over its control socket, with a socket of its
own for each. A fork cuts itself off (namespaces where the system allows it, limits in any case), runs the cells, and
then answers calls. Nothing that it says is believed to be more than a value.
"""

import array
import builtins
import contextlib
import ctypes
import importlib.abc
import importlib.machinery
import io
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import types

import numpy
import torch

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE, PR_SET_PDEATHSIG = 1, 32, 4096, 16384, 1 << 18, 1
MOST = 4_000_000


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
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, torch.Tensor):
        return {"tensor": value.detach().tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return encode(torch.as_tensor(value))
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
    """Stands for everything of the package: it can be called and asked for anything, and does nothing."""

    def __call__(self, *args, **kwargs):
        return self

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __iter__(self):
        return iter(())


class Hidden(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for every name of the package."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("specdec_ref", "IPython", "matplotlib", "ipywidgets"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: Nothing()
        return module

    def exec_module(self, module):
        pass


def cut_off(hidden):
    """Leave the rest of the machine, as far as that is allowed. Returns what was reached."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    flags = NEWNS | NEWIPC | NEWPID | NEWNET | (0 if uid == 0 else NEWUSER)
    if not hasattr(libc, "unshare") or libc.unshare(flags) != 0:
        return "limits"
    if uid != 0:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{file}", "w") as written:
                written.write(text)
    libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    for path in (*hidden, tempfile.gettempdir(), "/dev/shm"):
        if os.path.isdir(path):
            libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, b"size=16m,mode=1777")
    with open("/proc/self/mounts") as mounts:
        places = [line.split()[1] for line in mounts if line.split()[2] != "tmpfs"]
    for place in places:
        libc.mount(None, os.fsencode(place), None, MS_REMOUNT | MS_BIND | MS_RDONLY, None)
    return "namespaces"


def limit(memory, cpu_seconds):
    import resource

    with open("/proc/self/statm") as pages:
        present = int(pages.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (present + memory, present + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    if os.getuid() == 0:  # root has no limit on processes, so be nobody
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))


def run(sock):
    """Run the cells, then answer calls until the other side hangs up."""
    begin = receive(sock)
    reached = cut_off(begin["hidden"])
    if reached == "namespaces":  # the first process of the new namespace: when it dies, all in it do
        pid = os.fork()
        if pid:
            sock.close()
            os.waitpid(pid, 0)
            os._exit(0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    with contextlib.suppress(OSError):
        os.chdir(tempfile.gettempdir())
    limit(begin["memory"], begin["cpu_seconds"])
    sys.meta_path.insert(0, Hidden())
    os.environ.clear()
    names = {"__name__": "__main__", "__builtins__": builtins}
    broken = []
    for number, source in enumerate(begin["sources"], 1):
        try:
            exec(compile(source, f"<cell {number}>", "exec"), names)
        except SyntaxError as error:
            broken.append(f"SyntaxError: {error.msg} (line {error.lineno} of a cell)")
        except BaseException as error:
            broken.append(f"{type(error).__name__}: {error}"[:200])
    send(sock, {"ready": reached, "names": sorted(n for n, v in names.items() if callable(v)), "broken": broken[:5]})
    while True:
        call = receive(sock)
        arguments = [decode(argument, sock) for argument in call["arguments"]]
        before = json.dumps(call["arguments"])
        try:
            value = encode(names[call["function"]](*arguments))
            after = json.dumps([{"chance": True} if isinstance(a, Chance) else encode(a) for a in arguments])
            reply = {"value": value, "changed": after != before}
        except BaseException as error:
            line = error.__traceback__
            while line is not None and line.tb_next is not None:
                line = line.tb_next
            reply = {"error": type(error).__name__, "message": str(error)[:300], "line": line.tb_lineno if line else 0}
            reply["not_attempted"] = isinstance(error, NotImplementedError)
        send(sock, reply)


def main():
    torch.set_num_threads(1)
    control = socket.socket(fileno=int(sys.argv[1]))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    running = {}
    control.send(b"ready")
    while True:
        message, files, _, _ = control.recvmsg(64, socket.CMSG_SPACE(4))
        if not message:
            for pid in running.values():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            os._exit(0)
        if message.startswith(b"kill "):
            number = int(message[5:])
            with contextlib.suppress(OSError, KeyError):
                os.kill(running[number], signal.SIGKILL)
                os.waitpid(running.pop(number), 0)
            control.send(b"done")
            continue
        descriptor = array.array("i")
        descriptor.frombytes(files[0][2][:4])
        pid = os.fork()
        if pid == 0:
            control.close()
            run(socket.socket(fileno=descriptor[0]))
            os._exit(0)
        os.close(descriptor[0])
        running[int(message[6:])] = pid


if __name__ == "__main__":
    main()
