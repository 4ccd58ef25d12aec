"""What lesson 05 needs to distill a draft within a minute: text to learn from, and a picture of the result."""

import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdec_lab import plotting
from specdec_lab.training.corpus import HELD_OUT, Document
from specdec_lab.training.fitting import Windows
from specdec_lab.training.run import encode
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = {
    "distilled": ("learns from the target's distributions", "-", "o"),
    "text": ("learns from text alone", "--", "s"),
}
"""Label, line and mark of each curve."""

EVERY = 4
"""Of so many modules one is read: more text than a minute of training sees, and tokenized within a second."""


def library_windows(tokenizer: Any, seed: int = 0, folder: Path | None = None) -> Windows:
    """Random windows of a quarter of the standard library's top-level modules, without the held-out ones.

    Args:
        tokenizer: the pair's tokenizer.
        seed: of the choice of windows.
        folder: where the modules are; default the running interpreter's library.

    Raises:
        SpecdecError: where the folder has no such module.
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    files = [file for file in sorted(root.glob("*.py")) if file.stem not in HELD_OUT]
    if not files:
        raise SpecdecError(f"folder={str(root)!r:.200}: has no Python modules; takes a standard library's folder")
    chosen = files[::EVERY]
    documents = [Document(file.name, file.stem, file.read_text(encoding="utf-8"), is_test=False) for file in chosen]
    return Windows([encode(documents, tokenizer.backend_tokenizer)], [1.0], seed)


@plotting.styled
def distillation_figure(curves: Mapping[str, Mapping[int, float]], shipped: float) -> "Figure":
    """α on held-out text over training steps, one curve for each way of training.

    Args:
        curves: 'distilled' and 'text' → training step → α.
        shipped: α of the distilled draft that ships, a horizontal line.

    Raises:
        SpecdecError: for other names.
    """
    if set(curves) != set(STYLES):
        raise SpecdecError(f"curves={list(curves)!r:.80}: takes the names 'distilled' and 'text'")
    before = next(iter(curves["distilled"].values()))
    last = {name: list(curve.values())[-1] for name, curve in curves.items()}
    steps = max(max(curve) for curve in curves.values())
    figure, axes = plotting.new_figure(
        f"{steps} steps change α from {before:.2f} to {last['distilled']:.2f} by distillation, "
        f"and to {last['text']:.2f} on text",
        "training step",
        "acceptance rate α on held-out text",
    )
    for name, (label, line, mark) in STYLES.items():
        look: dict[str, Any] = {"linestyle": line, "marker": mark, "color": plotting.DRAFT, "markeredgecolor": "black"}
        look |= {"clip_on": False, "zorder": 3}
        axes.plot(list(curves[name]), list(curves[name].values()), label=label, **look)
    axes.axhline(shipped, color=plotting.FORMULA, linestyle=":", label="draft-small, as shipped")
    axes.set_xlim(0, steps)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
