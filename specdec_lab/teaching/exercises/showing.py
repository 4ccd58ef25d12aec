"""Results of checks as text and HTML, with the same words in notebooks, terminals and reports."""

from html import escape

from specdec_lab import plotting
from specdec_lab.teaching.exercises.exercise import CheckResult

MARKS = {"passed": plotting.ACCEPTED_MARK, "wrong": plotting.REJECTED_MARK, "crashed": "!", "not attempted": "–"}
COLORS = {
    "passed": plotting.ACCEPTED,
    "wrong": plotting.REJECTED,
    "crashed": plotting.DRAFT,
    "not attempted": plotting.FORMULA,
}


def rows(verdict: CheckResult) -> list[tuple[str, str]]:
    """The lines below the headline, as pairs of a name and a text."""
    pairs = [("case", verdict.case), ("given", verdict.given)]
    pairs += [("yours", verdict.yours), ("expected", verdict.expected)]
    if verdict.hint:
        pairs.append(("next", f'hint("{verdict.exercise}", {verdict.hint})'))
    pairs.append(("note", verdict.note))
    return [(name, words) for name, words in pairs if words]


def plain(verdict: CheckResult) -> str:
    """A result as plain text."""
    head = f"{MARKS[verdict.outcome]} {verdict.outcome}: {verdict.headline}"
    return "\n".join([head, *(f"    {name:9}{words}" for name, words in rows(verdict))])


class ShownResult:
    """A result that is shown as HTML in a notebook and as plain text elsewhere. It is truthy if the answer passed."""

    def __init__(self, verdict: CheckResult):
        self.verdict = verdict

    def __bool__(self) -> bool:
        return self.verdict.passed

    def __repr__(self) -> str:
        return plain(self.verdict)

    def _repr_html_(self) -> str:
        v = self.verdict
        color = COLORS[v.outcome]
        lines = "".join(
            f'<tr><td style="text-align:left;opacity:0.75;padding:1px 14px 1px 0">{name}</td>'
            f'<td style="text-align:left;font-family:monospace">{escape(words)}</td></tr>'
            for name, words in rows(v)
        )
        return (
            f'<div style="border-left:4px solid {color};padding:4px 12px;margin:4px 0">'
            f'<b style="color:{color}">{MARKS[v.outcome]} {v.outcome}</b> &nbsp; {escape(v.headline)}'
            f'<table style="margin:4px 0 0 0">{lines}</table></div>'
        )
