"""Run notebooks and write them back: `python -m specdec_lab.teaching.lessons notebooks/*.ipynb`, or `make notebooks`.

A committed notebook is one clean run: cells numbered 1…n, no errors, outputs that belong to their sources
(the notebook stores their hash and the run's seconds), pictures with their caption as alternative text, no widget
state, and nothing specific to the machine.
"""

import hashlib
import os
import re
import sys
import time
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

from specdec_ref.errors import SpecdecError

HASH = "source_sha256"
"""Key in the notebook's metadata: of the code cells' sources that its outputs belong to."""

SECONDS = "seconds"
"""Key in the notebook's metadata: how long its committed run took, to a tenth."""

LONGEST_LINE = 200
"""Characters of a table's plain text in one line; a longer one is what Python prints of an object, and no reading."""

SECONDS_PER_CELL = 300
SECONDS_PER_LESSON, SECONDS_IN_ALL = 90, 600
"""What a reader is promised: a lesson runs in about a minute, and all of them in ten."""


def source_hash(notebook: Any) -> str:
    """Hash of all code cells' sources, in order."""
    sources = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()


def caption(notebook: Any, i: int) -> str:
    """The description of the picture of cell i: the italic text at the beginning of the next cell, or ''."""
    following = notebook.cells[i + 1] if i + 1 < len(notebook.cells) else None
    if following is None or following.cell_type != "markdown" or not following.source.startswith("*"):
        return ""
    return " ".join(following.source[1:].split("*")[0].split())


def words_of(table: str) -> str:
    """An HTML table as plain text, one line per row, for front ends without HTML."""
    lines = re.sub(r"</(?:tr|caption|p|div)>|<br>", "\n", table)
    text = unescape(re.sub(r"<[^>]*>", "", re.sub(r"</t[dh]>", "  ", lines)))
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def run(path: Path) -> float:
    """Execute a notebook in its own folder and write it back. Returns seconds. Raises where a cell fails.

    No vLLM server is started: stored outputs show the recorded run, also on a machine that has vLLM.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    began = time.perf_counter()
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources=resources,
        store_widget_state=False,
        coalesce_streams=True,
    ).execute(env=os.environ | {"SPECDEC_LIVE": "0"})
    seconds = time.perf_counter() - began
    _tidy(notebook, seconds)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds


def _tidy(notebook: Any, seconds: float) -> None:
    """Remove outputs and metadata that differ from run to run without meaning: times of cells, versions, widgets."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        HASH: source_hash(notebook),
        SECONDS: round(seconds, 1),
    }
    for i, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        outputs = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue  # progress bars
            if "data" in output:
                output.data.pop("application/vnd.jupyter.widget-view+json", None)
            plain = output.get("data", {}).get("text/plain", "")
            if "text/html" in output.get("data", {}) and max(map(len, plain.splitlines()), default=0) > LONGEST_LINE:
                output.data["text/plain"] = words_of(output.data["text/html"])
            if "image/png" in output.get("data", {}) and (words := caption(notebook, i)):
                output.metadata.setdefault("image/png", {})["alt"] = words
            if output.get("data") != {}:
                outputs.append(output)
        cell.outputs = outputs


def too_slow(seconds: Mapping[str, float]) -> list[str]:
    """A message for every lesson that exceeds its limit, and for all together. seconds: by lesson."""
    complaints = [
        f"{name} took {took:.0f} s, and a lesson may take {SECONDS_PER_LESSON}"
        for name, took in seconds.items()
        if took > SECONDS_PER_LESSON
    ]
    if (total := sum(seconds.values())) > SECONDS_IN_ALL:
        complaints.append(f"all took {total:.0f} s, and may take {SECONDS_IN_ALL}")
    return complaints


def main() -> None:
    """Run the notebooks of the command line in turn. Fails if they take too long."""
    paths = [Path(name) for name in sys.argv[1:]]
    if not paths or not all(p.suffix == ".ipynb" and p.is_file() for p in paths):
        raise SpecdecError(f"takes notebooks, got {sys.argv[1:]}")
    seconds = {}
    for path in paths:
        print(f"{path} ...", end=" ", flush=True)
        seconds[path.name] = run(path)
        print(f"{seconds[path.name]:.0f} s")
    print(f"all of them: {sum(seconds.values()):.0f} s")
    if complaints := too_slow(seconds):
        raise SpecdecError("; ".join(complaints))


if __name__ == "__main__":
    main()
