"""Generated text with a mark for each token: the token strip for notebooks, and the same marks for the terminal."""

import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdec_lab import plotting
from specdec_ref.api import Generation, stream_speculative
from specdec_ref.decoding import Round
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair

if TYPE_CHECKING:
    from rich.text import Text

_BOX = (
    "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;line-height:1.75;white-space:pre-wrap;"
    "border:1px solid #8884;border-radius:6px;padding:10px 12px;max-width:900px"
)
# The plots' colors, darkened for text: contrast 4.5 : 1 with white, and at least 4 : 1 with a dark theme.
_STYLES = {
    "accepted": "color:#008562;text-decoration:underline;text-underline-offset:3px",
    "rejected": "color:#C25500;text-decoration:line-through;font-size:11.5px;margin:0 2px",
    "residual": "font-weight:600",
    "bonus": "color:#B8538A;font-weight:600",
}
_TERMINAL_STYLES = {
    "accepted": f"underline {plotting.ACCEPTED}",
    "rejected": f"strike {plotting.REJECTED}",
    "bonus": f"bold {plotting.BONUS}",
}


@dataclass(frozen=True)
class Token:
    """One token of a strip.

    Attributes:
        text: the decoded token.
        kind: 'accepted', 'rejected', 'residual' or 'bonus'; 'plain' in a round without a draft.
    """

    text: str
    kind: str


def tokens_of(played: Round, tokenizer: Any) -> list[Token]:
    """The tokens that a round examined or emitted, in order. Drafted tokens after a rejection are left out."""

    def text(token: int) -> str:
        return str(tokenizer.decode([token]))

    accepted = min(played.accepted, len(played.emitted))
    tokens = [Token(text(token), "accepted") for token in played.emitted[:accepted]]
    if len(played.emitted) > accepted:
        rejected = rejected_tokens(played)
        tokens += [Token(text(token), "rejected") for token in rejected]
        kind = "residual" if rejected else "bonus" if played.drafted else "plain"
        tokens.append(Token(text(played.emitted[accepted]), kind))
    return tokens


def rejected_tokens(played: Round) -> list[int]:
    """The rejected drafted token, if any. In a tree, all siblings that were tried after the accepted path."""
    if played.parents is None:
        return list(played.drafted[played.accepted : played.accepted + 1])
    nodes = list(enumerate(zip(played.parents, played.drafted, strict=True)))
    last = -1
    for token in played.emitted[: played.accepted]:
        last = next((node for node, edge in nodes if edge == (last, token)), len(nodes))
    return [token for _, (parent, token) in nodes if parent == last]


def round_text(played: Round, tokenizer: Any) -> "Text":
    """One round for the terminal: accepted tokens underlined, the rejected one struck out with ✗, the bonus with ★."""
    return strip_text([tokens_of(played, tokenizer)])


def strip_text(rounds: Sequence[Sequence[Token]]) -> "Text":
    """Rounds for the terminal, marked as `round_text` marks them."""
    from rich.text import Text

    text = Text()
    for token in (token for tokens in rounds for token in tokens):
        style = _TERMINAL_STYLES.get(token.kind, "")
        if token.kind == "rejected":
            text.append(plotting.REJECTED_MARK, style=plotting.REJECTED)
            text.append(_visible(token.text), style=style)
        else:
            blank, rest = _marked(token)
            text.append(blank)
            text.append(rest, style=style)
    return text


def legend_text() -> "Text":
    """A legend for the marks of `round_text`, in one line."""
    from rich.text import Text

    legend = Text()
    legend.append("accepted", style=_TERMINAL_STYLES["accepted"]).append("   ")
    legend.append(plotting.REJECTED_MARK, style=plotting.REJECTED)
    legend.append("rejected", style=_TERMINAL_STYLES["rejected"])
    legend.append(" → the target's token instead   ")
    legend.append(f"{plotting.BONUS_MARK}bonus", style=_TERMINAL_STYLES["bonus"])
    legend.append(" (all accepted: one more token, free)")
    return legend


@dataclass(frozen=True)
class Strip:
    """Rounds as marked text: HTML in a notebook, plain marks elsewhere. `prompt` comes first, dimmed."""

    rounds: tuple[tuple[Token, ...], ...]
    prompt: str = ""

    def _repr_html_(self) -> str:
        parts = [f'<span style="opacity:.55">{html.escape(self.prompt)}</span>'] if self.prompt else []
        for number, tokens in enumerate(self.rounds, 1):
            inner = "".join(map(_span, tokens))
            parts.append(f'<span title="round {number}">{inner}</span>')
        marks = (
            ("accepted", f"{plotting.ACCEPTED_MARK} accepted"),
            ("rejected", f"{plotting.REJECTED_MARK}rejected"),
            ("residual", "sampled from the residual instead"),
            ("bonus", f"{plotting.BONUS_MARK}bonus token"),
        )
        legend = " &nbsp; ".join(f'<span style="{_STYLES[kind]}">{html.escape(words)}</span>' for kind, words in marks)
        return (
            f'<div style="{_BOX}">{"".join(parts)}</div>'
            f'<div style="font-size:12px;margin-top:4px;max-width:900px">{legend}</div>'
        )

    def __str__(self) -> str:
        marks = {"accepted": plotting.ACCEPTED_MARK, "bonus": plotting.BONUS_MARK}
        lines = []
        for tokens in self.rounds:
            words = [
                f"{plotting.REJECTED_MARK}{_visible(t.text)} →" if t.kind == "rejected" else
                f"{_visible(t.text)}{marks.get(t.kind, '')}"
                for t in tokens
            ]  # fmt: skip
            lines.append(" ".join(words))
        return "\n".join(lines)

    __repr__ = __str__


def token_strip(rounds: Sequence[Round], tokenizer: Any, prompt: str = "") -> Strip:
    """The strip of a generation's rounds. prompt: text shown before, for instance its last lines."""
    if not all(isinstance(r, Round) for r in rounds):
        raise SpecdecError("rounds: takes the rounds of a generation, for instance generation.rounds")
    return Strip(tuple(tuple(tokens_of(r, tokenizer)) for r in rounds), prompt)


def recorded_rounds(rounds: Sequence[Round], tokenizer: Any) -> list[list[tuple[str, str]]]:
    """The data of a strip, for a JSON file: for each round, the text and the kind of every token."""
    return [[(token.text, token.kind) for token in tokens_of(r, tokenizer)] for r in rounds]


def recorded_strip(rounds: Sequence[Sequence[Sequence[str]]], prompt: str = "") -> Strip:
    """The strip of rounds that `recorded_rounds` wrote, without control tokens such as <|im_end|>.

    Args:
        rounds: for each round, the text and the kind of each token.
        prompt: text shown before.
    """
    shown = ([Token(text, kind) for text, kind in tokens if not text.startswith("<|")] for tokens in rounds)
    return Strip(tuple(map(tuple, shown)), prompt)


def stream_strip(pair: Pair, prompt: str, *, prompt_lines: int = 4, **arguments: Any) -> Generation:
    """Decode as `stream_speculative(pair, prompt, …)` does, and show the strip after every round.

    Outside a notebook, the strip is printed at the end.

    Args:
        prompt_lines: how many of the prompt's last lines are shown before the generated text.
        **arguments: those of `stream_speculative`.

    Returns:
        The generation.
    """
    generations: list[Generation] = []
    before = "\n".join(prompt.splitlines()[-prompt_lines:]) + "\n" * prompt.endswith("\n") if prompt_lines else ""
    stream = stream_speculative(pair, prompt, on_end=generations.append, **arguments)
    rounds: list[Round] = []
    handle = _display_handle(token_strip(rounds, pair.tokenizer, before))
    for chunk in stream:
        rounds.append(chunk.round)
        if handle is not None:
            handle.update(token_strip(rounds, pair.tokenizer, before))
    if handle is None:
        print(token_strip(rounds, pair.tokenizer, before))
    return generations[0]


def _display_handle(strip: Strip) -> Any:
    """A notebook output that can be updated; None outside a notebook."""
    ipython = sys.modules.get("IPython")
    if ipython is None or not hasattr(ipython.get_ipython(), "kernel"):
        return None
    return ipython.display.display(strip, display_id=True)


def _span(token: Token) -> str:
    if token.kind == "rejected":
        body = plotting.REJECTED_MARK + html.escape(_visible(token.text))
        return f'<span style="{_STYLES["rejected"]}" title="rejected">{body}</span>'
    blank, rest = map(html.escape, _marked(token))
    if not rest:
        return blank
    return f'{blank}<span style="{_STYLES.get(token.kind, "")}" title="{token.kind}">{rest}</span>'


def _marked(token: Token) -> tuple[str, str]:
    """Leading blanks and line ends, which stay without a style, and the rest with its mark."""
    rest = token.text.lstrip()
    blank = token.text[: len(token.text) - len(rest)]
    mark = plotting.BONUS_MARK if token.kind == "bonus" else ""
    return blank, mark + rest


def _visible(text: str) -> str:
    return text.strip(" ").replace("\n", "⏎").replace("\t", "⇥") or "␣"
