"""The result of a diagnosis: findings, each with the evidence, the cause and the remedy."""

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
COLORS: dict[str, str] = {"problem": "#D55E00", "warning": "#E69F00", "note": "#0072B2", "healthy": "#009E73"}

NOT_CHECKED = "not checked"
"""How the reason begins for a check after a problem. A table shows no more, because the problem is in it."""

DOES_NOT_APPLY = "does not apply"
LEFT_OUT = "left out, no time"
"""The reasons for a check that is not about this set-up, and for one that the time did not suffice for."""

LEAST_SECONDS, MORE_TIME = 120, 5
"""What the report proposes where time ran out: so many times as long, but no shorter than this."""


@dataclass(frozen=True)
class Finding:
    """One finding of a check.

    Attributes:
        code: a stable name.
        severity: 'problem' (wrong, or slower than without drafts), 'warning' (it costs something) or 'note' (harmless).
        title, evidence, cause, remedy: sentences.
        numbers: the evidence by name.
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
        style = f"bold {COLORS[self.severity]}"
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
class CheckOutcome:
    """The outcome of one check.

    Attributes:
        check: its name.
        question: that it answers.
        findings: none for a healthy pair.
        why: the reason for skipping it, '' where it was made.
        seconds: it took.
        evidence: its measurement in words, '' for a check without one.
        numbers: the same by name.
        left_out: its parts that there was no time for.
    """

    check: str
    question: str
    findings: tuple[Finding, ...] = ()
    why: str = ""
    seconds: float = 0.0
    evidence: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

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
    """All checks, in turn. It shows itself as a table with the findings below; what is healthy shows its figures.

    Attributes:
        outcomes: one for each check.
        seconds: the time that measuring was limited to, None for no limit.
    """

    outcomes: tuple[CheckOutcome, ...]
    seconds: float | None = None

    @property
    def findings(self) -> list[Finding]:
        """Of all checks, in their order."""
        return [finding for outcome in self.outcomes for finding in outcome.findings]

    @property
    def healthy(self) -> bool:
        """Whether no problem was found; warnings and notes are none."""
        return all(finding.severity != "problem" for finding in self.findings)

    @property
    def left_out(self) -> list[str]:
        """What there was no time for: names of checks, and of parts of checks."""
        names = []
        for outcome in self.outcomes:
            if outcome.why == LEFT_OUT:
                names.append(outcome.check)
            elif outcome.left_out:
                names.append(f"{outcome.check} ({', '.join(outcome.left_out)})")
        return names

    @property
    def omissions(self) -> str:
        """One line on what there was no time for and how to run it; '' where nothing was left out."""
        if not self.left_out or self.seconds is None:
            return ""
        more = max(LEAST_SECONDS, round(MORE_TIME * self.seconds))
        return f"left out: {'; '.join(self.left_out)}; run with --seconds {more}"

    def to_dict(self) -> dict[str, Any]:
        """Everything by name; None for numbers that are not finite, such as the α of a pair that can never pay."""
        checks = [{**asdict(outcome), "state": outcome.state} for outcome in self.outcomes]
        return {"healthy": self.healthy, "left_out": self.left_out, "checks": _finite(checks)}

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
            color = COLORS.get(state, "dim")
            table.add_row(Text(MARKS[state], style=color), question, Text(answer, style=color))
        parts: list[Any] = [table]
        for finding in self.findings:
            parts += ["", finding]
        if self.omissions:
            parts += ["", Text(self.omissions)]
        return Group(*parts)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="{_edge(state)}">{MARKS[state]}</td>'
            f'<td style="text-align:left">{escape(question)}</td><td style="text-align:left">{escape(answer)}</td></tr>'
            for state, question, answer in self._answers()
        )
        findings = "".join(f._repr_html_() for f in self.findings)
        omissions = f"<p>{escape(self.omissions)}</p>" if self.omissions else ""
        return f"<table><tbody>{rows}</tbody></table>{findings}{omissions}"


def _edge(state: str) -> str:
    """Style of a cell: a colored border next to the text, which keeps the colors of the page's theme."""
    return f"border-left:0.4em solid {COLORS.get(state, 'transparent')}"


def _finite(value: Any) -> Any:
    """The same with None for floats that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
