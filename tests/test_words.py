"""Words that the pages for readers do not use. Words that no file may use are in .codespell-words.txt (`make lint`)."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INSTEAD = {
    "one by one": "one token at a time",
    "drawn": "sampled; shown",
    "drew": "sampled",
    "verdict": "accept/reject decision; result",
    "verdicts": "accept/reject decisions; results",
    "of old": "legacy",
    "a hair": "slightly",
    "cries wolf": "false alarm",
    "the source text": "a common mistake",
    "come to an end": "finish",
}
"""Private words and phrases, and the field's words for them. Code may use them: `Verdict` is a class."""
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "museum.md"),  # quotes code and its names
    *(path for folder in ("notebooks", "exercises") for path in sorted((ROOT / folder).glob("*.ipynb"))),
]


def prose(page: Path) -> str:
    """The text of a page; of a notebook, that of its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_uses_the_words_of_the_field(page: Path) -> None:
    private = re.findall(rf"\b(?:{'|'.join(INSTEAD)})\b", prose(page), re.IGNORECASE)
    assert {word: INSTEAD[word.lower()] for word in private} == {}


def test_private_words_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Tokens are drawn one\nby one.", encoding="utf-8")
    with pytest.raises(AssertionError, match="one token at a time"):
        test_a_page_uses_the_words_of_the_field(page)
