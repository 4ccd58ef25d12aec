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
"""Beginning of the reason for a check after a problem. The table shows only this, since it shows the problem too."""

DOES_NOT_APPLY = "does not apply"
LEFT_OUT = "left out, no time"
"""The reasons for a check that does not apply to this setup, and for a check without time."""

LEAST_SECONDS, MORE_TIME = 120, 5
"""If time ran out, the report proposes a limit that is this many times as long, and at least this many seconds."""


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
        question: the question that it answers.
        findings: its findings; none for a healthy pair.
        why: the reason for skipping it; '' if it was made.
        seconds: the time that it took.
        evidence: its measurement in words; '' for a check without a measurement.
        numbers: the measurement by name.
        left_out: parts that were left out for lack of time.
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
        """'healthy', 'skipped', or the highest severity of its findings."""
        if self.why:
            return "skipped"
        return next(
            (s for s in ("problem", "warning", "note") if any(f.severity == s for f in self.findings)), "healthy"
        )


@dataclass(frozen=True)
class Examination:
    """The outcomes of all checks. Displayed as a table with the findings below; healthy checks show their figures.

    Attributes:
        outcomes: one per check.
        seconds: the time limit for measuring; None for no limit.
    """

    outcomes: tuple[CheckOutcome, ...]
    seconds: float | None = None

    @property
    def findings(self) -> list[Finding]:
        """The findings of all checks, in their order."""
        return [finding for outcome in self.outcomes for finding in outcome.findings]

    @property
    def healthy(self) -> bool:
        """Whether no problem was found. Warnings and notes do not count."""
        return all(finding.severity != "problem" for finding in self.findings)

    @property
    def left_out(self) -> list[str]:
        """Names of the checks, and of parts of checks, that were left out for lack of time."""
        names = []
        for outcome in self.outcomes:
            if outcome.why == LEFT_OUT:
                names.append(outcome.check)
            elif outcome.left_out:
                names.append(f"{outcome.check} ({', '.join(outcome.left_out)})")
        return names

    @property
    def omissions(self) -> str:
        """One line on the omitted checks and how to run them; '' if none was omitted."""
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
    """A copy with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
