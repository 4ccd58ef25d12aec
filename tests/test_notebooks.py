"""The lessons as committed: one clean run each, of the sources that stand there, within the rhythm's bounds."""

import itertools
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from specdec_lab.teaching.lessons import (
    HASH,
    LONGEST_LINE,
    SECONDS,
    SECONDS_IN_ALL,
    SECONDS_PER_LESSON,
    run,
    source_hash,
    too_slow,
)
from specdec_lab.teaching.widgets import EXPLORER

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"/(?:home|root|work|Users|tmp|opt|mnt)/\w|[A-Z]:\\\\")
MOST_CELLS, MOST_LINES, LONG_CELL = 60, 15, 0.25


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_lessons() -> None:
    assert NOTEBOOKS
    assert [p.stem[:2] for p in NOTEBOOKS] == [f"{i:02}" for i in range(len(NOTEBOOKS))]


@each
def test_is_one_clean_run(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert not [o for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr"]
    for cell in notebook.cells:
        kinds = [output.output_type for output in cell.get("outputs", ())]
        assert ("stream", "stream") not in itertools.pairwise(kinds), f"{cell.id}: its text is stored in parts"


@each
def test_outputs_belong_to_the_sources(path: Path) -> None:
    notebook = read(path)
    assert notebook.metadata.get(HASH) == source_hash(notebook), f"run `make notebooks`: {path.name} was edited since"


@each
def test_says_nothing_of_the_machine_it_ran_on(path: Path) -> None:
    notebook = read(path)
    texts = [str(o.get("text", "")) + "".join(map(str, o.get("data", {}).values())) for o in outputs(notebook)]
    texts = [t for t in texts if len(t) < 50_000]  # pictures
    assert not [m for t in texts for m in MACHINE_PATH.findall(t)]


@each
def test_keeps_the_rhythm(path: Path) -> None:
    """At the top minutes, what it needs and what it is for; something to predict, takeaways; short cells, checks."""
    notebook = read(path)
    assert len(notebook.cells) <= MOST_CELLS
    first = notebook.cells[0].source
    assert first.startswith("# ")
    assert re.search(r"^\*\*\d+ minutes\*\* · needs \w+", first, re.MULTILINE)
    assert re.search(r"^At the end you (?:can|will have)\n(?:- .+\n(?:  ?.+\n)*){2}- ", first, re.MULTILINE)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for needed in ("**Predict first", "## Remember", "**Next exercise", "**Further reading"):
        assert needed in prose, needed
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    lengths = [len(source.splitlines()) for source in code]
    assert sum(n > MOST_LINES for n in lengths) <= LONG_CELL * len(code), lengths
    assert sum("assert " in source for source in code) >= 3


@each
def test_links_inside_the_repository_resolve(path: Path) -> None:
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if not link.startswith(("http://", "https://")):
            assert (path.parent / link).exists(), link


@each
def test_every_figure_has_a_text_beside_it(path: Path) -> None:
    """A picture's cell is followed by prose that says what to see, in italics first, for those who cannot see it."""
    cells = read(path).cells
    for i, cell in enumerate(cells):
        shows = cell.cell_type == "code" and any("image/png" in o.get("data", {}) for o in cell.outputs)
        if shows:
            following = cells[i + 1].source if i + 1 < len(cells) else ""
            assert following.lstrip().startswith("*"), f"cell {i}: {cell.source[:60]!r}"


@each
def test_every_picture_has_an_alternative_text(path: Path) -> None:
    for output in outputs(read(path)):
        if "image/png" in output.get("data", {}):
            assert len(output.metadata.get("image/png", {}).get("alt", "")) > 20, "run `make notebooks`"


@each
def test_has_an_explorer_and_a_picture_in_its_place(path: Path) -> None:
    """Who reads the saved notebook has no widgets: each explorer shows a picture of its first state."""
    shown = [o.data for o in outputs(read(path)) if str(o.get("data", {}).get("text/plain", "")) == EXPLORER]
    assert shown
    assert all("image/png" in data for data in shown)


@each
def test_no_output_is_an_object_in_full(path: Path) -> None:
    """What a table's plain text says can be read; Python's own words for a large object cannot."""
    plain = [str(output.data["text/plain"]) for output in outputs(read(path)) if "text/html" in output.get("data", {})]
    assert not [text[:80] for text in plain if max(map(len, text.splitlines())) > 2 * LONGEST_LINE]


def test_a_lesson_that_takes_too_long_is_named_and_so_is_a_course_that_does() -> None:
    assert too_slow({"a": SECONDS_PER_LESSON, "b": 1.0}) == []
    (one,) = too_slow({"a": SECONDS_PER_LESSON + 1, "b": 1.0})
    assert one.startswith("a took ")
    many = dict.fromkeys("abcdefg", SECONDS_IN_ALL / 7 + 1)
    assert [words.split()[0] for words in too_slow(many)] == ["all"]


def test_committed_runs_took_no_longer_than_promised() -> None:
    """As recorded by `make notebooks`: at most 90 a lesson, 600 in all."""
    recorded = {path.name: read(path).metadata for path in NOTEBOOKS}
    assert not too_slow({name: data[SECONDS] for name, data in recorded.items()})


def test_running_writes_back_one_clean_run(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    cells = [
        nbformat.v4.new_markdown_cell("# x"),
        nbformat.v4.new_code_cell("import sys\nprint(1, file=sys.stderr)\n2"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    seconds = run(path)
    notebook = read(path)
    (result,) = outputs(notebook)
    assert result.data["text/plain"] == "2"
    assert notebook.cells[1].execution_count == 1
    assert notebook.metadata[HASH] == source_hash(notebook)
    assert 0 < notebook.metadata[SECONDS] == round(seconds, 1)


def test_a_run_starts_no_server_and_keeps_printed_text_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPECDEC_LIVE", raising=False)
    path = tmp_path / "lesson.ipynb"
    source = 'import os, sys, time\nprint(os.environ["SPECDEC_LIVE"])\nsys.stdout.flush()\ntime.sleep(0.5)\nprint(2)'
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    run(path)
    (printed,) = outputs(read(path))
    assert printed.text == "0\n2\n"


def test_a_table_s_plain_text_has_its_words_and_not_the_object_s(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    define = "class T:\n    def __repr__(self): return 'x' * 300\n    def _repr_html_(self): return self.table\n"
    table = "t = T()\nt.table = '<table><caption>a &lt; b</caption><tr><th>α</th><td>0.7<br>0.8</td></tr></table>'\nt"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(define + table)]), path)
    run(path)
    (shown,) = outputs(read(path))
    assert shown.data["text/plain"] == "a < b\nα  0.7\n0.8"
    assert shown.data["text/html"].startswith("<table>")


def test_a_picture_gets_its_caption_as_alternative_text(tmp_path: Path) -> None:
    path = tmp_path / "lesson.ipynb"
    draw = "from specdec_lab.plotting import new_figure\nfigure, _ = new_figure('t')\nfigure"
    cells = [nbformat.v4.new_code_cell(draw), nbformat.v4.new_markdown_cell("*An empty\nfigure.* And *more* words.")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    run(path)
    (picture,) = outputs(read(path))
    assert picture.metadata["image/png"]["alt"] == "An empty figure."


def test_a_failing_cell_stops_the_run_and_leaves_the_file_alone(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    path = tmp_path / "lesson.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert False")]), path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError):
        run(path)
    assert path.read_bytes() == before
