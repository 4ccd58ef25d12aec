"""The command that starts a process in bubblewrap, and the files that this process can read.

The sandbox mounts only files that an answer needs: Python's standard library, the system's shared libraries, and the
packages in `LIBRARIES` with their dependencies. The course package, its tests and solutions, and other submissions are
not mounted, so it does not matter how or where the course is installed.
"""

import importlib.metadata
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import specdec_lab
import specdec_ref
from specdec_ref.errors import SpecdecError

LIBRARIES = ("torch", "numpy", "scipy", "pandas", "transformers")
"""Packages that a submission may import in addition to the standard library. Their dependencies are mounted too."""
SYSTEM = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
CPU_INFO = "/proc/cpuinfo"
"""PyTorch reads this file to choose its vector instructions."""
SCRATCH_FOLDERS, SCRATCH_BYTES = ("/tmp", "/var/tmp", "/scratch"), 16_000_000
"""Candidates for the only folder that a submission can write to, the first without Python files; and its size."""
PROGRAM_FOLDER = "/checks"
"""The folder in which the program for submissions and its helper module are mounted."""
INSTALL = (
    "install it (apt install bubblewrap, or dnf install bubblewrap), or grade in a container that allows it,"
    " or use --trusted for your own work"
)


def command(program: Path, arguments: Sequence[str], hidden: Iterable[Path]) -> list[str]:
    """Return the command line that runs a Python program in bubblewrap.

    Args:
        program: A Python file. It is mounted together with `cells.py` from the same folder.
        arguments: Command-line arguments of the program.
        hidden: Files and folders that must not be visible.

    Raises:
        SpecdecError: bubblewrap or one of the libraries is not installed.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SpecdecError(f"grading the work of others needs bubblewrap, which is not installed: {INSTALL}")
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    packages = _packages()
    scratch = next(f for f in SCRATCH_FOLDERS if not any(p.is_relative_to(f) for p in (Path(python), *packages)))
    return [
        bwrap,
        *_namespaces(),
        *_mounts(python, packages, {*hidden, *course_folders()}),
        *("--ro-bind", str(program), f"{PROGRAM_FOLDER}/{program.name}"),
        *("--ro-bind", str(program.with_name("cells.py")), f"{PROGRAM_FOLDER}/cells.py"),
        *("--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", scratch),
        *("--remount-ro", "/"),
        *("--chdir", scratch),
        *("--setenv", "PYTHONPATH", os.pathsep.join(dict.fromkeys(str(path.parent) for path in packages))),
        "--",
        *(python, "-s", "-B", f"{PROGRAM_FOLDER}/{program.name}", *arguments),
    ]


def course_folders() -> list[Path]:
    """The folders of the course that contain solutions: both packages, and their repository if they are in one."""
    packages = [Path(next(iter(package.__path__))).resolve() for package in (specdec_lab, specdec_ref)]
    repositories = [package.parent for package in packages if (package.parent / "pyproject.toml").is_file()]
    return [*packages, *dict.fromkeys(repositories)]


def _namespaces() -> list[str]:
    """Options for new namespaces, no capabilities and an empty environment.

    For root, no user namespace is created, because the kernel does not apply the limit on processes to root in a user
    namespace. Instead, the program in the sandbox changes to a user ID of its own before it runs a submission. To do
    this, and to end that process, it keeps three capabilities.
    """
    options = ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    options += ["--setenv", "OMP_NUM_THREADS", "1"]
    if os.getuid() == 0:
        options += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        return [*options, *(part for name in ("SETUID", "SETGID", "KILL") for part in ("--cap-add", f"CAP_{name}"))]
    return [*options, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"]


def _mounts(python: str, packages: dict[Path, Path], hidden: set[Path]) -> list[str]:
    """Options for read-only mounts. A folder that must not be visible is covered by an empty one."""
    options: list[str] = []
    folders = [Path(name) for name in SYSTEM if os.path.exists(name) and not os.path.islink(name)]
    folders += [Path(folder).resolve() for folder in _python_folders(python)]
    folders = [f for f in dict.fromkeys(folders) if not any(f != g and f.is_relative_to(g) for g in folders)]
    for link in (name for name in SYSTEM if os.path.islink(name)):
        options += ["--symlink", os.readlink(link), link]
    destinations = [*folders, Path(python), Path(CPU_INFO), *packages]
    above = {parent for path in destinations for parent in path.parents}
    for parent in sorted(p for p in above if not any(p.is_relative_to(folder) for folder in folders)):
        options += ["--perms", "0755", "--dir", str(parent)]  # otherwise only their owner could enter them
    for folder in folders:
        options += ["--ro-bind", str(folder), str(folder)]
    options += ["--ro-bind", python, python, "--ro-bind", CPU_INFO, CPU_INFO]
    package_folders = {site for folder in folders for site in folder.glob("python3*/*-packages") if site.is_dir()}
    package_folders |= {site for folder in folders for site in folder.glob("*-packages") if site.is_dir()}
    hidden = {path.resolve() for path in hidden}
    covered = _covered({*hidden, *package_folders}, folders)
    for path in covered:
        options += ["--tmpfs", str(path)]
    for mount_point, source in packages.items():
        options += ["--ro-bind", str(source), str(mount_point)]
    inside_packages = _covered(hidden, packages)
    for path in inside_packages:
        options += ["--tmpfs", str(path)]
    options += ["--dev", "/dev", "--remount-ro", "/dev"]
    for path in (*covered, *inside_packages):
        options += ["--remount-ro", str(path)]
    return options


def _python_folders(python: str) -> list[str]:
    """The folders of the standard library and of the shared libraries that are installed with Python."""
    prefix = os.path.dirname(os.path.dirname(python))
    shared = [os.path.join(prefix, name) for name in ("lib", "lib64")]
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # not those of a virtual environment
    standard = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    return [folder for folder in (*shared, *standard) if os.path.isdir(folder)]


def _covered(hidden: Iterable[Path], mounted: Iterable[Path]) -> list[Path]:
    """The hidden folders inside a mounted folder, without those inside another hidden one."""
    mounted = list(mounted)
    inside = [p for p in hidden if p.is_dir() and any(p.is_relative_to(folder) for folder in mounted)]
    return sorted(p for p in inside if not any(p != q and p.is_relative_to(q) for q in inside))


@lru_cache(maxsize=1)
def _packages() -> dict[Path, Path]:
    """Mount point → source of each file or folder of the needed packages. Raises SpecdecError."""
    mounts: dict[Path, Path] = {}
    for distribution in _with_dependencies(LIBRARIES):
        folder = Path(os.path.realpath(str(distribution.locate_file(""))))
        for name in sorted({file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}):
            if (folder / name).exists():
                mounts[folder / name] = (folder / name).resolve()
    if not any(mount_point.name == "torch" for mount_point in mounts):
        raise SpecdecError(
            "grading: this installation of PyTorch cannot be mounted in a sandbox; install PyTorch with pip"
        )
    order = {os.path.realpath(folder): i for i, folder in reversed(list(enumerate(sys.path)))}
    return dict(sorted(mounts.items(), key=lambda item: order.get(str(item[0].parent), len(order))))


def _with_dependencies(names: Sequence[str]) -> list[importlib.metadata.Distribution]:
    """The installed distributions among these and all their requirements."""
    distributions: dict[str, importlib.metadata.Distribution] = {}
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in distributions:
            continue
        try:
            distributions[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in distributions[name].requires or ():
            project = re.match(r"[\w.-]+", requirement)
            if project is not None and "extra ==" not in requirement:
                todo.append(project[0])
    return list(distributions.values())
