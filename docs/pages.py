"""The pages of the site that are made from other files: README, lessons, exercises, the API reference.

MkDocs calls the functions named `on_…` while it builds the site (`make docs`). Notebooks are not executed: their stored
outputs are shown. A link to a file of the repository leads to its page, or else to a copy of the file.
"""

import base64
import html
import posixpath
import re
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SOURCES = {
    "index.md": "README.md",
    "pretrained.md": "specdec_ref/pretrained/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    **{f"lessons/{path.stem}.md": f"notebooks/{path.name}" for path in sorted(ROOT.glob("notebooks/*.ipynb"))},
    **{f"exercises/{path.stem}.md": f"exercises/{path.name}" for path in sorted(ROOT.glob("exercises/*.ipynb"))},
}
"""Pages of the site, and the file of the repository that each is made from."""
PAGES = {source: page for page, source in SOURCES.items()} | {"exercises": "exercises.md", "notebooks": "index.md"}
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)]*)?\)")
FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)
RUN_IT = '!!! tip ""\n    To run this page, type `make lab` in the repository, and open `{}`.'
CAPTION = re.compile(r"\*([^*]+)\*")
PUBLIC_NAME = re.compile(r"^from (specdec_\S+) import (\w+) as \2$", re.MULTILINE)
EQUIVALENCE = {
    "specdec_lab.equivalence.exact": ["Proof", "exact"],
    "specdec_lab.equivalence.tables": ["TableModel"],
    "specdec_lab.equivalence.empirical": ["empirical"],
    "specdec_lab.equivalence.mutants": ["Mutant", "mutant"],
}
"""The public names of `specdec_lab.equivalence`, which is a package."""


def on_config(config: MkDocsConfig) -> None:
    """List the lessons, the exercises and the modules in the navigation."""
    for entry in config.nav or []:
        ((title, pages),) = entry.items()
        if title == "Lessons":
            pages += [page for page in SOURCES if page.startswith("lessons/")]
        elif title == "Exercises":
            pages += [page for page in SOURCES if page.startswith("exercises/")]
        elif title == "API reference":
            for package in ("specdec_ref", "specdec_lab"):
                names = public_names(package)
                pages.append({package: [{module.split(".", 1)[1]: reference_page(module)} for module in names]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are made from files outside docs/."""
    for page, source in SOURCES.items():
        if source.endswith(".ipynb"):
            text, figures = notebook_page(ROOT / source, page)
            for name, content in figures.items():
                files.append(File.generated(config, name, content=content))
        else:
            text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for package in ("specdec_ref", "specdec_lab"):
        for module, names in public_names(package).items():
            files.append(File.generated(config, reference_page(module), content=reference(module, names)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page: to pages of the site, or to copies of files of the repository."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")
    folder = posixpath.dirname(here)

    def lead(link: re.Match[str]) -> str:
        if files.get_file_from_path(posixpath.normpath(posixpath.join(folder, link["path"]))):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["path"]))
        target = PAGES.get(path, path.removeprefix("docs/"))
        if path not in PAGES and (ROOT / path).is_dir():
            return link["text"]
        if path not in PAGES and (ROOT / path).is_file() and not files.get_file_from_path(target):
            files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
        if not files.get_file_from_path(target):
            return link[0]
        return f"[{link['text']}]({posixpath.relpath(target, folder or '.')}{link['anchor'] or ''})"

    return LINK.sub(lead, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn the formulas into MathML."""
    return FORMULA.sub(lambda match: mathml(html.unescape(match["tex"]), block=match["tag"] == "div"), content)


def mathml(tex: str, *, block: bool) -> str:
    return str(convert(tex, display="block" if block else "inline"))


def notebook_page(path: Path, page: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its figures by their address on the site."""
    parts: list[str] = []
    figures: dict[str, bytes] = {}
    cells = nbformat.read(path, as_version=4).cells
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type != "code":
            parts.append(lists_set_apart(cell.source))
            if len(parts) == 1:
                parts.append(RUN_IT.format(path.relative_to(ROOT).as_posix()))
            continue
        parts.append(fenced(cell.source, "python"))
        for number, output in enumerate(cell.outputs):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{path.stem}-{cell.id}-{number}.png"
                figures[f"{posixpath.dirname(page)}/{name}"] = base64.b64decode(data["image/png"])
                parts.append(f"![{description(data, after)}]({name})")
            elif "text/html" in data:
                parts.append(f'<div class="output">\n{data["text/html"].strip()}\n</div>')
            else:
                parts.append(fenced(data["text/plain"].rstrip(), "{ .text .output }"))
    return "\n\n".join(parts), figures


def description(data: Any, after: Any) -> str:
    """The text for readers who do not see a figure: its own, or the italic caption in the cell after it."""
    text = str(data.get("text/plain", ""))
    caption = CAPTION.match(after.source) if after is not None else None
    if text.startswith("<") and caption:
        text = caption[1]
    return re.sub(r"[\[\]*`]", "", " ".join(text.split()))


def fenced(text: str, language: str) -> str:
    return f"````{language}\n{text}\n````"


def lists_set_apart(markdown: str) -> str:
    """Put an empty line before each list, which Python-Markdown asks for and Jupyter does not."""
    return re.sub(r"^(?!\s|[-*] |\d+\. )(.+)\n(?=[-*] |\d+\. )", r"\1\n\n", markdown, flags=re.MULTILINE)


def public_names(package: str) -> dict[str, list[str]]:
    """The public names of each module of a package, as `__init__.pyi` lists them."""
    names: dict[str, list[str]] = {}
    for module, name in PUBLIC_NAME.findall((ROOT / package / "__init__.pyi").read_text(encoding="utf-8")):
        if module != package:
            names.setdefault(module, []).append(name)
    return names | (EQUIVALENCE if package == "specdec_lab" else {})


def reference_page(module: str) -> str:
    return f"api/{module}.md"


def reference(module: str, names: list[str]) -> str:
    """The page of a module: what the file says of itself, then its public names."""
    return f"# {module}\n\n::: {module}\n    options:\n      members: {names}\n"
