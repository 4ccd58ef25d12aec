"""Walls around strangers' code on Linux, built by the process that is about to run it. Imports nothing of the package.

Three of them, each used where the system has it: a file system of its own that holds Python and nothing else, with no
network and no other process in it (namespaces); a rule of which files may be opened (Landlock); system calls that are
refused (seccomp). Below them, in any case, limits on time, memory, files and processes.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
import sysconfig
import tempfile

NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH, RECURSIVE, AT_FDCWD = 2, 0x8000, -100
CAPBSET_DROP, NO_NEW_PRIVS, SET_SECCOMP, FILTER = 24, 38, 22, 2
SPACE = b"size=16m,mode=755"
PROCESSES = 8
"""Threads among them; where seccomp refuses other processes, threads alone."""
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# Refused: network, other processes, memory that is nobody's, mounts, keys, and what makes kernels fall. By machine;
# those from 424 on are alike.
NEWER = (424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 438, 442)
REFUSED = {
    "x86_64": (0xC000003E, 155, (29, 41, 42, 57, 58, 62, 68, 101, 129, 155, 161, 165, 166, 200, 234, 248,
                                 249, 250, 272, 297, 298, 308, 310, 311, 321, 323)),
    "aarch64": (0xC00000B7, 41, (39, 40, 41, 51, 97, 117, 129, 130, 131, 138, 186, 194, 198, 203, 217, 218, 219, 240,
                                 241, 268, 270, 271, 280, 282)),
}  # fmt: skip
CLONE3, THREAD = 435, 0x10000


def libc():
    return ctypes.CDLL(None, use_errno=True)


def must(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def needed():
    """Where Python and its libraries are, and the system's: all that a submission needs to read."""
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    own |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    every = {p for path in (*SYSTEM, *own) for p in (path, os.path.realpath(path)) if os.path.exists(p) and p != "/"}
    links = {p for p in SYSTEM if os.path.islink(p)}
    return sorted(p for p in every if not any(p != q and inside(p, q) for q in every - links)), links


def inside(path, folder):
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def leave():
    """Namespaces of one's own. Returns whether the system allowed it. The next fork is the first process in them."""
    flags, uid, gid = NEWNS | NEWIPC | NEWPID | NEWNET, os.getuid(), os.getgid()
    if uid == 0 and libc().unshare(flags) == 0:
        return True
    if libc().unshare(flags | NEWUSER) != 0:
        return False
    for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{file}", "w") as written:
            written.write(text)
    return True


def move_house(hidden):
    """Into a file system of 16 MB with Python in it, read only, and none of the hidden folders. Raises OSError."""
    c, root = libc(), os.path.realpath(tempfile.gettempdir())
    if platform.machine() not in REFUSED:
        raise OSError(errno.ENOSYS, "no number for pivot_root")
    pivot = REFUSED[platform.machine()][1]
    places, links = needed()
    handles = {place: os.open(place, os.O_PATH) for place in (*places, *DEVICES) if place not in links}
    must(c.mount(None, b"/", None, REC | PRIVATE, None))
    must(c.mount(b"none", os.fsencode(root), b"tmpfs", NOSUID | NODEV, SPACE))
    for place, handle in handles.items():
        inner = root + place
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            os.makedirs(inner, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(inner), exist_ok=True)
            os.close(os.open(inner, os.O_CREAT | os.O_WRONLY))
        must(c.mount(b"/proc/self/fd/%d" % handle, os.fsencode(inner), None, BIND | REC, None))
        seal(inner)
        os.close(handle)
    for link in links:
        os.symlink(os.readlink(link), root + link)
    for path in hidden:
        if os.path.isdir(root + path):
            must(c.mount(b"none", os.fsencode(root + path), b"tmpfs", 1, b"size=4k"))
    for folder in ("/tmp", "/dev/shm", "/proc"):
        os.makedirs(root + folder, exist_ok=True)
        os.chmod(root + folder, 0o1777)
    c.mount(b"proc", os.fsencode(root + "/proc"), b"proc", NOSUID | NODEV, None)  # not everywhere allowed; not needed
    os.chdir(root)
    must(c.syscall(pivot, b".", b"."))
    must(c.umount2(b".", DETACH))
    os.chdir("/tmp")


def seal(path):
    """What is mounted there can be read only, and gives nobody's rights."""
    attributes = struct.pack("QQQQ", RDONLY | NOSUID, 0, 0, 0)
    if libc().syscall(442, AT_FDCWD, os.fsencode(path), RECURSIVE, attributes, len(attributes)) != 0:  # before 5.12
        now = os.statvfs(path).f_flag
        kept = now & (2 | 4 | 8 | 1024 | 2048) | (1 << 21 if now & 4096 else 0)
        must(libc().mount(None, os.fsencode(path), None, REMOUNT | BIND | RDONLY | NOSUID | kept, None))


def give_up_rights(uid):
    """Be nobody, for good. As root: a user whom no other submission is, since limits on processes count by user."""
    c = libc()
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    for capability in range(64):
        c.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    c.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))


def limit(memory, cpu_seconds, present):
    """present: bytes of address space in use already."""
    for what, most in (
        (resource.RLIMIT_AS, present + memory),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 1_000_000),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, PROCESSES),
    ):
        resource.setrlimit(what, (most, most))


def restrict_files(hidden, writable):
    """Landlock: Python's files may be read and run, one folder written. Returns whether the system has it."""
    c = libc()
    must(c.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
    version = c.syscall(444, None, 0, 1)
    if version < 1:
        return False
    every = (1 << {1: 13, 2: 14}.get(version, 15)) - 1
    read, scope = 1 | 4 | 8, struct.pack("QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    ruleset = must(c.syscall(444, scope, 8 if version < 4 else 16 if version < 6 else 24, 0))

    def allow(path, access):
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        if not os.path.isdir(path):
            access &= 1 | 2 | 4 | 1 << 14
        must(c.syscall(445, ruleset, 1, struct.pack("=Qi", access & every, handle), 0))
        os.close(handle)

    def allow_around(path):
        """All that is in it but hidden folders. Its names may be listed, else Python finds no module in it."""
        secret = [h for h in hidden if inside(h, path)]
        if not secret:
            allow(path, read)
        elif path not in secret and os.path.isdir(path):
            allow(path, 8)
            for name in os.listdir(path):
                allow_around(os.path.join(path, name))

    for place in needed()[0]:
        allow_around(place)
    for place in (*DEVICES, "/proc/self"):
        allow(place, read | 2)
    allow(writable, every)
    done = c.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return done


def refuse_calls():
    """seccomp: EPERM for system calls that no exercise needs, among them those that start another process, so that the
    limit on memory is one for all; threads may be started. Returns whether the system has it."""
    machine = platform.machine()
    if machine not in REFUSED:
        return False
    arch, _, numbers = REFUSED[machine]
    clone = {"x86_64": 56, "aarch64": 220}[machine]
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    denied, missing, allowed = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x7FFF0000
    program = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, denied)]
    program += [(equal, 0, 1, CLONE3), (give, 0, 0, missing)]  # libraries then take clone, whose flags can be read
    for number in (*numbers, *NEWER):
        program += [(equal, 0, 1, number), (give, 0, 0, denied)]
    spaces = NEWNS | NEWIPC | NEWUSER | NEWPID | NEWNET
    program += [(equal, 0, 5, clone), (load, 0, 0, 16), (any_bit, 0, 1, spaces), (give, 0, 0, denied)]
    program += [(any_bit, 1, 0, THREAD), (give, 0, 0, denied)]  # a second process would have memory of its own
    program += [(give, 0, 0, allowed)]
    code = b"".join(struct.pack("HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(code)
    return libc().prctl(SET_SECCOMP, FILTER, struct.pack("HxxxxxxQ", len(program), ctypes.addressof(held)), 0, 0) == 0
