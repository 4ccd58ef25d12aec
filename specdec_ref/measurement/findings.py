"""What a diagnosis says: findings, each with what was seen, why it is so and what to do."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

Severity = Literal["problem", "warning", "note"]
MARKS: dict[str, str] = {"problem": "✗", "warning": "!", "note": "i", "healthy": "✓", "skipped": "–"}
COLOURS: dict[str, str] = {"problem": "#D55E00", "warning": "#E69F00", "note": "#0072B2", "healthy": "#009E73"}

NOT_CHECKED = "not checked"
"""How the reason begins of a check that was left out after a problem; a table says no more, the problem is in it."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    code: a stable name. severity: 'problem' (wrong, or slower than without), 'warning' (it costs something), 'note'
    (harmless, good to know). evidence: what was seen, with its numbers, which `numbers` holds by name.
    """

    code: str
    severity: Severity
    title: str
    evidence: str
    cause: str
    remedy: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        return asdict(self)

    def __rich__(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        style = f"bold {COLOURS[self.severity]}"
        table.add_row(Text(f"{MARKS[self.severity]} {self.severity}", style=style), Text(self.title, style="bold"))
        for name in ("evidence", "cause", "remedy"):
            table.add_row(Text(f"  {name}", style="dim"), Text(getattr(self, name)))
        return table

    def _repr_html_(self) -> str:
        left = 'style="text-align:left"'
        rows = "".join(
            f"<tr><td {left}>{name}</td><td {left}>{escape(getattr(self, name))}</td></tr>"
            for name in ("evidence", "cause", "remedy")
        )
        head = f"{MARKS[self.severity]} {self.severity}: {self.title}"
        return (
            f'<table><thead><tr><th colspan="2" style="text-align:left; {_edge(self.severity)}">'
            f"{escape(head)}</th></tr></thead><tbody>{rows}</tbody></table>"
        )


@dataclass(frozen=True)
class Outcome:
    """What came of one check. why: what kept it from being made, '' where it was. seconds: it took. evidence: what it
    measured, '' for those that have no figures; numbers: the same by name."""

    check: str
    question: str
    findings: tuple[Finding, ...] = ()
    why: str = ""
    seconds: float = 0.0
    evidence: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """'healthy', 'skipped', or the gravest severity of its findings."""
        if self.why:
            return "skipped"
        return next(
            (s for s in ("problem", "warning", "note") if any(f.severity == s for f in self.findings)), "healthy"
        )


@dataclass(frozen=True)
class Examination:
    """All checks, in turn. It shows itself as a table with the findings below; what is healthy shows its figures."""

    outcomes: tuple[Outcome, ...]

    @property
    def findings(self) -> list[Finding]:
        """Of all checks, in their order."""
        return [finding for outcome in self.outcomes for finding in outcome.findings]

    @property
    def healthy(self) -> bool:
        """Whether no problem was found; warnings and notes are none."""
        return all(finding.severity != "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything by name; None for numbers that are not finite, such as the α of a pair that can never pay."""
        checks = [{**asdict(outcome), "state": outcome.state} for outcome in self.outcomes]
        return {"healthy": self.healthy, "checks": _finite(checks)}

    def _answers(self) -> Iterator[tuple[str, str, str]]:
        for outcome in self.outcomes:
            answer = NOT_CHECKED if outcome.why.startswith(NOT_CHECKED) else outcome.why
            answer = answer or " · ".join(finding.title for finding in outcome.findings) or outcome.evidence
            yield outcome.state, outcome.question, answer

    def __rich__(self) -> "Group":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
        for state, question, answer in self._answers():
            colour = COLOURS.get(state, "dim")
            table.add_row(Text(MARKS[state], style=colour), question, Text(answer, style=colour))
        parts: list[Any] = [table]
        for finding in self.findings:
            parts += ["", finding]
        return Group(*parts)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="{_edge(state)}">{MARKS[state]}</td>'
            f'<td style="text-align:left">{escape(question)}</td><td style="text-align:left">{escape(answer)}</td></tr>'
            for state, question, answer in self._answers()
        )
        return f"<table><tbody>{rows}</tbody></table>" + "".join(f._repr_html_() for f in self.findings)


def _edge(state: str) -> str:
    """Style of a cell: the colour stands beside the words, which stay as readable as the page's theme makes them."""
    return f"border-left:0.4em solid {COLOURS.get(state, 'transparent')}"


def _finite(value: Any) -> Any:
    """The same with None for floats that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value
