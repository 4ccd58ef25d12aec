"""A class of 200, graded: solutions, known mistakes, stubs, and hostile submissions among them.

    python benchmarks/class_run.py [--students 200] [--jobs N]

Prints the time, and whether every submission got what it deserves.
"""

import argparse
import importlib.util
import inspect
import shutil
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nbformat
from rich.console import Console
from rich.progress import Progress

from specdec_ref.teaching.checks.catalogue import EXERCISES
from specdec_ref.teaching.checks.grading import POINTS, grade_folder

ROOT = Path(__file__).parents[1]
WRONG = {
    "02_residual.ipynb": "import torch\n\ndef residual(p, q):\n    return p\n",
    "05_step.ipynb": inspect.cleandoc(
        """
        def speculative_step(p, q, drafted, chance):
            out = []
            for i, x in enumerate(drafted):
                if not chance.accept(min(1.0, float(p[i, x] / q[i, x]))):
                    return [*out, chance.draw(p[i])]
                out.append(x)
            return [*out, chance.draw(p[len(drafted)])]
        """
    ),
}


def hostile() -> dict[str, str]:
    """Those of the tests."""
    spec = importlib.util.spec_from_file_location("hostile", ROOT / "tests" / "hostile.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.HOSTILE)


def write(path: Path, source: str) -> None:
    """One notebook with one cell."""
    cell = nbformat.v4.new_code_cell(textwrap.dedent(source))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=None)
    arguments = parser.parse_args()
    console, attacks = Console(), list(hostile().items())
    with tempfile.TemporaryDirectory() as folder:
        due: dict[str, int] = {}
        for i in range(arguments.students):
            name = f"student{i:03}"
            place = Path(folder) / "class" / name
            kind = i % 8
            if kind == 7:
                place.mkdir(parents=True)
                write(place / "answer.ipynb", attacks[(i // 8) % len(attacks)][1])
                due[name] = 0
                continue
            shutil.copytree(ROOT / ("exercises" if kind == 6 else "solutions"), place)
            most = POINTS * len(EXERCISES)
            due[name] = 0 if kind == 6 else most
            if kind in (4, 5):
                for notebook, source in WRONG.items():
                    write(place / notebook, source)
                due[name] = most - POINTS * len(WRONG)
        began = time.perf_counter()
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("grading", total=arguments.students)
            graded = grade_folder(
                Path(folder) / "class",
                Path(folder) / "out",
                hidden=[ROOT / "solutions"],
                jobs=arguments.jobs,
                on_graded=lambda done, of: bar.update(task, completed=done),
            )
        seconds = time.perf_counter() - began
    unjust = [(one.submission, one.score, due[one.submission]) for one in graded if one.score != due[one.submission]]
    console.print(f"{len(graded)} submissions in {seconds:.0f} s, isolation: {Counter(g.isolation for g in graded)}")
    console.print(f"scores: {dict(sorted(Counter(one.score for one in graded).items()))}")
    console.print(f"not what they deserve: {unjust or 'none'}")


if __name__ == "__main__":
    main()
