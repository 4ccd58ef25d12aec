"""The site and the distribution, made in a clean copy by the lines that the workflows run, then used as people do.

Skipped where `make docs` has not set up .venv-build. The copy gets an environment of its own, so this needs a network.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from test_browser import BROWSER, REQUIRED, playwright

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "runs", ".*_cache", "__pycache__")
EXTERNAL = {"http", "https", "mailto", "data"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".venv-build").is_dir(), reason="needs .venv-build: make docs"),
]
in_a_browser = pytest.mark.skipif(BROWSER is None and not REQUIRED, reason="needs a browser")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the repository, in which the workflows' lines `make docs` and `make dist` have run."""
    folder = tmp_path_factory.mktemp("copy") / "specdec"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    for line in ("make docs", "make dist"):
        subprocess.run(
            line, shell=True, cwd=folder, check=True, timeout=900, env=os.environ | {"PYTHON": sys.executable}
        )
    return folder


@pytest.fixture(scope="module")
def site(copy: Path) -> Iterator[str]:
    """The address of a server for the site."""
    handler = functools.partial(QuietHandler, directory=str(copy / "build" / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests print what matters."""


class Page(HTMLParser):
    """The addresses and the anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.anchors |= {str(named[name]) for name in ("id", "name") if named.get(name)}
        address = named.get("href") or named.get("src")
        if address and (tag != "link" or named.get("rel") in ("stylesheet", "icon")):
            self.links.append(address)
            if tag != "a":
                self.loaded.append(address)


def test_no_link_of_the_site_is_broken(copy: Path) -> None:
    folder = copy / "build" / "site"
    pages = {path: Page(path) for path in folder.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= 50
    broken = []
    for path, page in pages.items():
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme in EXTERNAL:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = target.is_file() and (
                not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors
            )
            if not known and not parts.fragment.startswith("__"):  # Material's own anchors
                broken.append((path.name, address))
    assert broken == []


def test_the_site_loads_nothing_from_elsewhere(copy: Path) -> None:
    pages = [Page(path) for path in (copy / "build" / "site").rglob("*.html")]
    assert [address for page in pages for address in page.loaded if urlsplit(address).scheme in ("http", "https")] == []


def test_every_lesson_and_every_public_name_has_its_place(copy: Path) -> None:
    import specdec_lab as lab
    import specdec_ref as sd

    folder = copy / "build" / "site"
    assert {p.stem for p in (folder / "lessons").glob("*.html")} == {
        p.stem for p in (ROOT / "notebooks").glob("*.ipynb")
    }
    documented = set().union(*(Page(path).anchors for path in (folder / "api").glob("*.html")))
    names = {anchor.rsplit(".", 1)[1] for anchor in documented if "." in anchor}
    assert set(sd.__all__) <= names
    assert set(lab.__all__) - {"equivalence"} <= names  # a package, whose own names are listed
    assert {"exact", "empirical", "mutant", "Proof"} <= names


@pytest.fixture
def tab(site: str) -> Iterator[Any]:
    """A tab of the browser, as narrow as a phone, in dark mode, that fails for a request to elsewhere."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark", base_url=site)
        elsewhere: list[str] = []
        page.on("request", lambda request: request.url.startswith((site, "data:")) or elsewhere.append(request.url))
        yield page
        browser.close()
        assert elsewhere == []


@in_a_browser
def test_a_reader_gets_from_the_start_to_a_lesson_by_the_menu(tab: Any) -> None:
    tab.goto("/index.html")
    tab.locator("label.md-header__button[for=__drawer]").click()
    tab.locator("nav.md-nav--primary label.md-nav__link", has_text="Lessons").first.click()
    tab.locator("nav.md-nav--primary a.md-nav__link", has_text="The rule: acceptance, proof, α").click()
    tab.wait_for_url("**/lessons/02_acceptance.html")
    assert "acceptance" in tab.locator("h1").inner_text()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@in_a_browser
def test_the_search_finds_a_function(tab: Any) -> None:
    tab.goto("/index.html")
    tab.locator("label.md-header__button[for=__search]").click()
    tab.locator("input.md-search__input").press_sequentially("break_even_alpha")
    result = tab.locator("a.md-search-result__link").first
    result.wait_for(timeout=20_000)
    assert "specdec_ref.theory" in result.get_attribute("href")


@in_a_browser
def test_a_formula_is_set_as_a_formula(tab: Any) -> None:
    """A fraction is higher than a line of its text, and its source is not shown."""
    tab.goto("/lessons/02_acceptance.html")
    fraction = tab.locator("math mfrac").first
    assert fraction.bounding_box()["height"] > 1.4 * tab.locator("math mi").first.bounding_box()["height"]
    assert r"\frac" not in tab.locator("article").inner_text()


@in_a_browser
def test_a_figure_is_shown_and_fits_on_a_phone(tab: Any) -> None:
    tab.goto("/lessons/02_acceptance.html")
    figure = tab.locator("article img").first
    figure.scroll_into_view_if_needed()
    assert figure.evaluate("image => image.complete && image.naturalWidth") > 300
    assert 200 < figure.bounding_box()["width"] <= 390
    assert len(figure.get_attribute("alt")) > 20


@in_a_browser
def test_the_page_is_dark_in_dark_mode_and_can_be_made_light(tab: Any) -> None:
    tab.goto("/index.html")
    brightness = (
        "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    )
    assert tab.evaluate(brightness) < 200
    tab.locator("label[title='Switch to light mode']").click()
    tab.wait_for_function(f"() => ({brightness})() > 600", timeout=5_000)


def test_the_wheel_holds_the_weights_and_no_tests(copy: Path) -> None:
    (wheel,) = (copy / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    weights = {
        f"specdec_ref/pretrained/{path.parent.name}/{path.name}"
        for path in (ROOT / "specdec_ref/pretrained").glob("*/*.safetensors")
    }
    assert len(weights) >= 5
    assert weights <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"specdec_ref", "specdec_lab"}
    assert "specdec_ref/py.typed" in names


def test_the_version_stands_in_one_place(copy: Path) -> None:
    version = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "specdec_ref/__init__.py").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert version
    assert {path.name for path in (copy / "dist").iterdir()} == {
        f"specdec_ref-{version[1]}-py3-none-any.whl",
        f"specdec_ref-{version[1]}.tar.gz",
    }


def test_the_wheel_runs_the_demo_in_an_empty_environment(copy: Path, tmp_path: Path) -> None:
    (wheel,) = (copy / "dist").glob("*.whl")
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    (programs,) = (folder for name in ("bin", "Scripts") if (folder := environment / name).is_dir())
    install = [programs / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{wheel}[lab]"]
    subprocess.run(install, check=True, cwd=tmp_path, timeout=900)
    demo = [programs / "specdec", "demo", "--json", "--device", "cpu"]
    done = subprocess.run(
        demo, check=True, cwd=tmp_path, capture_output=True, text=True, env=without_python_path(), timeout=300
    )
    assert {mode["name"] for mode in json.loads(done.stdout)["modes"]} == {"greedy", "T = 1"}


def without_python_path() -> dict[str, str]:
    """The environment, without the variable that would let the repository stand in for the wheel."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
