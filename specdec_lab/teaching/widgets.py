"""Explorers for notebooks. A saved notebook, or a front end without widgets, shows a picture instead."""

from typing import TYPE_CHECKING, Any

import torch

from specdec_lab.teaching.figures import acceptance_figure, as_png, round_figure
from specdec_lab.teaching.replay import PlayedRound
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


EXPLORER = "an explorer: run this cell in JupyterLab to move its controls"
"""The text of an explorer where neither widgets nor pictures are shown."""


def show(widget: Any, picture: "Figure | None" = None) -> None:
    """Display a widget; front ends that cannot, and readers of the saved notebook, see `picture`."""
    from IPython.display import display

    data = {"text/plain": EXPLORER}
    metadata = {}
    if picture is not None:
        import base64

        data["image/png"] = base64.b64encode(as_png(picture)).decode()
        metadata["image/png"] = {"width": int(picture.get_figwidth() * 100)}
    bundle = widget._repr_mimebundle_() or {}
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    display({**data, **{k: v for k, v in bundle.items() if "widget-view" in k}}, metadata=metadata, raw=True)


def acceptance_explorer(tokens: int = 6) -> None:
    """Two distributions and two sliders: how confident the target is, and how far the draft is from it."""
    import ipywidgets as w

    scores = torch.linspace(1.5, -1.5, tokens, dtype=torch.float64)
    rolled_scores = scores.roll(2)

    def distributions(sure: float, apart: float) -> tuple[list[float], list[float]]:
        p = (scores * sure).softmax(-1)
        q = (scores * sure * (1 - apart) + rolled_scores * apart).softmax(-1)
        return p.tolist(), q.tolist()

    sure = w.FloatSlider(value=1.0, min=0, max=3, step=0.1, description="confidence", continuous_update=False)
    apart = w.FloatSlider(value=0.4, min=0, max=1, step=0.05, description="distance", continuous_update=False)
    start = acceptance_figure(*distributions(sure.value, apart.value))
    image = w.Image(value=as_png(start), format="png", width=860)

    def redraw(_: Any) -> None:
        image.value = as_png(acceptance_figure(*distributions(sure.value, apart.value)))

    for slider in (sure, apart):
        slider.observe(redraw, names="value")
    show(w.VBox([w.HBox([sure, apart]), image]), start)


def round_player(rounds: list[PlayedRound], tokenizer: Any) -> None:
    """Buttons that step through `replay`'s rounds: drafted tokens, u against min(1, p/q), decision, residual."""
    if not rounds:
        raise SpecdecError("rounds: is empty; takes the rounds that replay() returns")
    import ipywidgets as w

    def decode(token: int) -> str:
        return str(tokenizer.decode([token]))

    def text_until(n: int) -> str:
        ids = [t for r in rounds[:n] for t in (*r.drafted[: r.accepted], r.next_token)]
        return str(tokenizer.decode(ids))

    def picture(at: int) -> "Figure":
        return round_figure(rounds[at], decode)

    at = 0
    back = w.Button(description="previous round", icon="arrow-left")
    forth = w.Button(description="next round", icon="arrow-right")
    first = picture(0)
    image = w.Image(value=as_png(first), format="png", width=860)
    text = w.HTML()

    def redraw() -> None:
        import html

        image.value = as_png(picture(at))
        text.value = (
            f"<b>Round {at + 1} of {len(rounds)}.</b> So far: <pre style='white-space:pre-wrap;margin:4px 0'>"
            f"{html.escape(text_until(at + 1))}</pre>"
        )
        back.disabled, forth.disabled = at == 0, at == len(rounds) - 1

    def move(by: int) -> None:
        nonlocal at
        at = min(max(at + by, 0), len(rounds) - 1)
        redraw()

    back.on_click(lambda _: move(-1))
    forth.on_click(lambda _: move(1))
    redraw()
    show(w.VBox([w.HBox([back, forth]), text, image]), first)
