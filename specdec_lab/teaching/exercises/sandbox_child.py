"""The program that runs submissions in bubblewrap. It imports nothing from the package, which is not mounted there.

It loads PyTorch once, then forks for each notebook that arrives on its control socket. The fork gives up its remaining
privileges, runs the cells, and then answers calls. The grader treats everything that it sends as plain data.
"""

import array
import builtins
import ctypes
import errno
import importlib.abc
import importlib.machinery
import io
import json
import numbers
import os
import resource
import signal
import socket
import struct
import sys
import types
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy
import torch

if TYPE_CHECKING:
    from specdec_lab.teaching.exercises import cells
else:
    import cells

MOST_BYTES = 1_000_000
"""Limit on one answer."""
ABSENT = "is not available to the grader: write that part yourself"
NOT_MOUNTED = "specdec_ref", "specdec_lab", "IPython", "matplotlib", "ipywidgets"
STUBS = (), ("your code here",)
"""Arguments of the NotImplementedError in a stub, which tell it from those that PyTorch raises."""
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "TORCHDYNAMO_DISABLE": "1",  # torch.compile needs a compiler and other processes; disabled, it calls the function
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
}
"""SciPy starts one thread per core when it is imported. On large machines, this exceeds the limit on threads."""

FILE_BYTES, OPEN_FILES, TASKS = 1_000_000, 64, 10
"""Limits on one process. TASKS counts its threads and bubblewrap's own processes."""
BLOCKED = """
    fork vfork execveat ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd pidfd_open
    kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal setpgid setpriority ioprio_set
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler move_pages migrate_pages
    shmget semget msgget mq_open add_key request_key keyctl socket connect bind listen
    unshare setns chroot pivot_root mount umount umount2 open_tree move_mount mount_setattr fsopen fsconfig fsmount
    fspick open_by_handle_at bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
    init_module finit_module delete_module kexec_load kexec_file_load quotactl acct swapon swapoff reboot personality
""".split()
"""System calls that no answer needs. They could start a second process with its own memory, keep memory or data after
the process ends, change another process, or reach parts of the kernel that a submission should not reach."""
ALLOW, ERROR = 0x7FFF0000, 0x00050000
MASKED_EQUAL, NOT_EQUAL = 7, 1
NEW_THREAD = 0x00010000
"""CLONE_THREAD: the flag with which `clone` creates a thread instead of a process."""


class Comparison(ctypes.Structure):
    """libseccomp's scmp_arg_cmp: a condition on one argument of a system call."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


class SystemCallFilter:
    """Blocks the system calls in BLOCKED with libseccomp. Raises OSError if libseccomp is not installed."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._filter = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(ALLOW)))
        for name in BLOCKED:
            self._block(name)
        self._block("clone", Comparison(0, MASKED_EQUAL, NEW_THREAD, 0))
        self._block("prlimit64", Comparison(0, NOT_EQUAL, 0, 0))
        self._block("clone3", error=errno.ENOSYS)  # the C library then uses `clone`, whose flags a filter can read

    def load(self) -> None:
        """Apply the filter to this process permanently. Raises OSError."""
        self._check(self._library.seccomp_load(self._filter))

    def _block(self, name: str, *conditions: Comparison, error: int = errno.EPERM) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # this system does not have the call
            return
        held = (Comparison * len(conditions))(*conditions)
        action = ctypes.c_uint32(ERROR | error)
        self._check(self._library.seccomp_rule_add_array(self._filter, action, number, len(conditions), held))

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(-result, os.strerror(-result))


def receive(sock: socket.socket) -> Any:
    """The next message. Ends the process if the grader has closed the socket."""
    head = sock.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        os._exit(0)
    return json.loads(sock.recv(struct.unpack("!I", head)[0], socket.MSG_WAITALL))


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    if len(data) > MOST_BYTES:
        data = json.dumps({"error": "ValueError: the result is too large"}).encode()
    sock.sendall(struct.pack("!I", len(data)) + data)


def encode(value: Any) -> Any:
    """A value as plain data, for `sandbox.decode`."""
    value = without_libraries(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"odd": "complex tensor"} if value.is_complex() else {"tensor": value.detach().tolist(), "dtype": dtype}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    return {"odd": type(value).__name__}


def without_libraries(value: Any) -> Any:
    """Values of numpy, pandas and other libraries as a tensor, a list or a number; any other value itself."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        return torch.as_tensor(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if type(value).__module__.split(".")[0] == "pandas" and hasattr(value, "to_numpy"):  # for example a Series
        return value.to_numpy().tolist()
    return value


def decode(value: Any, sock: socket.socket) -> Any:
    """An argument, from the data of `sandbox.encode`."""
    if isinstance(value, list):
        return [decode(item, sock) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
        if "chance" in value:
            return RemoteChance(sock)
        return {decode(k, sock): decode(v, sock) for k, v in value["dict"]}
    return value


class RemoteChance:
    """Asks the grader for each random decision. The grader runs every outcome."""

    def __init__(self, sock: socket.socket):
        self._sock = sock

    def accept(self, probability: Any) -> Any:
        return self._ask("accept", probability)

    def draw(self, probabilities: Any) -> Any:
        return self._ask("draw", probabilities)

    def _ask(self, verb: str, argument: Any) -> Any:
        send(self._sock, {"ask": verb, "argument": encode(argument)})
        return receive(self._sock)["answer"]


class MissingObject:
    """Replaces an object of a module that is not mounted. While cells run, it can be called and its attributes can be
    read, without effect. If an answer uses it in a graded call, it raises an ImportError with an explanation."""

    graded = False

    def __init__(self, name: str):
        self.__dict__["name"] = name

    def __call__(self, *args: Any, **kwargs: Any) -> "MissingObject":
        if MissingObject.graded:
            raise ImportError(f"{self.__dict__['name']} {ABSENT}")
        return self

    def __getattr__(self, name: str) -> "MissingObject":
        if name.startswith("__"):
            raise AttributeError(name)
        return self()

    def __getitem__(self, key: Any) -> "MissingObject":
        return self()

    def __setitem__(self, key: Any, value: Any) -> None:
        self()

    def __enter__(self) -> "MissingObject":
        return self()

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> "Iterator[MissingObject]":
        return iter((self(), self()))  # figure, axes = plt.subplots()


class MissingModuleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Provides empty modules in place of the package and of plotting libraries."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in NOT_MOUNTED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        package = spec.name.split(".")[0]

        def get(name: str) -> MissingObject:
            if name.startswith("__"):
                raise AttributeError(name)
            if MissingObject.graded:
                raise ImportError(f"{package} {ABSENT}")
            return MissingObject(package)

        module.__dict__["__getattr__"] = get
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def restrict(user: int, blocked: SystemCallFilter, memory: int, cpu_seconds: int) -> None:
    """Permanently give up all privileges that an answer does not need.

    Args:
        user: The user ID to change to; 0 if the grader does not run as root.
        blocked: The filter for system calls.
        memory: Limit on the address space in bytes, including PyTorch's libraries.
        cpu_seconds: CPU time after which the kernel kills the process.

    Raises:
        OSError: The system does not allow one of these steps.
    """
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, TASKS),
    ):
        resource.setrlimit(what, (limit, limit))
    blocked.load()


def run(sock: socket.socket, user: int, blocked: SystemCallFilter) -> NoReturn:
    """Run the cells, then answer calls until the grader closes the socket. Never returns."""
    begin = receive(sock)
    restrict(user, blocked, begin["memory"], begin["cpu_seconds"])
    send(sock, {"restricted": True})
    sys.meta_path.insert(0, MissingModuleFinder())
    os.environ.clear()
    os.environ.update(ENVIRONMENT, HOME=os.getcwd())
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins, "display": lambda *what: None}
    broken = cells.run(begin["sources"], names)
    MissingObject.graded = True
    send(sock, {"names": sorted(n for n, v in names.items() if callable(v)), "broken": broken[:5]})
    while True:
        call = receive(sock)
        try:
            arguments = [decode(argument, sock) for argument in call["arguments"]]
            value = encode(names[call["function"]](*arguments))
            after = [{"chance": True} if isinstance(a, RemoteChance) else encode(a) for a in arguments]
            send(sock, {"value": value, "changed": json.dumps(after) != json.dumps(call["arguments"])})
        except BaseException as error:
            send(sock, failure(error))


def failure(error: BaseException) -> dict[str, Any]:
    """An exception as a message: its text, the line that raised it, and whether it comes from a stub."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return {
        "error": cells.describe_error(error),
        "line": at.tb_lineno if at else 0,
        "not_attempted": type(error) is NotImplementedError and error.args in STUBS,
    }


def surroundings(user: int, blocked: SystemCallFilter) -> dict[str, Any]:
    """Facts that the grader checks before it trusts this sandbox, observed by a process in it.

    Returns:
        interfaces: Names of the network interfaces.
        parent: The process ID of the parent, 1 for bubblewrap's own.
        writable: Folders that the process could write to, except the working directory.
        restricted: Whether `restrict` works, tested in a forked process.
    """
    pid = os.fork()
    if pid == 0:
        works = False
        try:
            restrict(user, blocked, 1 << 40, 60)
            try:
                os.fork()
            except PermissionError:
                works = True
        finally:
            os._exit(0 if works else 1)
    return {
        "interfaces": [name for _, name in socket.if_nameindex()],
        "parent": os.getppid(),
        "writable": [folder for folder in ("/", "/dev", *sys.path) if os.access(folder, os.W_OK)],
        "restricted": os.waitpid(pid, 0)[1] == 0,
    }


def serve(control: socket.socket, user: int, blocked: SystemCallFilter) -> NoReturn:
    """Fork for each socket that arrives. On b"end", end the latest fork."""
    running = 0
    while True:
        message, files, _, _ = control.recvmsg(64, socket.CMSG_SPACE(4))
        if message == b"end":
            if running:
                os.kill(running, signal.SIGKILL)
                os.waitpid(running, 0)
            running = 0
            if os.listdir("."):  # the next process must not find files of this one
                os._exit(0)
            control.send(b"ended")
            continue
        if message != b"begin" or not files:
            os._exit(0)
        descriptor = array.array("i")
        descriptor.frombytes(files[0][2][:4])
        running = os.fork()
        if running == 0:
            try:
                control.close()
                run(socket.socket(fileno=descriptor[0]), user, blocked)
            finally:
                os._exit(1)
        os.close(descriptor[0])


def main() -> None:
    descriptor, user = map(int, sys.argv[1:])
    control = socket.socket(fileno=descriptor)
    blocked = SystemCallFilter()
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_RDWR)
    isolation = surroundings(user, blocked)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    sys.stdout = sys.stderr = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    control.send(json.dumps(isolation).encode())
    serve(control, user, blocked)


if __name__ == "__main__":
    main()
