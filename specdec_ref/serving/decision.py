"""When to switch speculation on: the checklist of the source text's 7.1 and 7.2 as a tree of measurable questions.

The questions are in the order in which they cost: what can be read off the models, what has to be known of the
machine's memory, what has to be measured. At the end stands the formula, with the costs of the batch at hand, instead
of limits for batch size and acceptance, which differ between machines and pairs. Where a draft model is out of the
question, or does not pay, prompt lookup may: it has no model to run, and a formula of its own with c = 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec_ref import plotting
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.theory import predicted_speedup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 1.05
"""Predicted speedup below which it is not worth the second model."""


@dataclass(frozen=True)
class Situation:
    """What is known. batch: requests at once. acceptance: α. c: a draft step, v: {n: scoring n tokens}, in steps of
    the target at that batch. same_vocabulary: every id means the same string in both models. memory: bytes that are
    free beside the target and its caches; draft_memory: bytes that draft and its caches take. lookup_acceptance: α of
    prompt lookup, high where the output repeats its prompt (summaries, edits of code); 0 where nobody measured it.
    """

    batch: int
    acceptance: float
    c: float
    v: Mapping[int, float]
    same_vocabulary: bool = True
    memory: float = float("inf")
    draft_memory: float = 0.0
    lookup_acceptance: float = 0.0

    def __post_init__(self) -> None:
        if not is_whole(self.batch) or self.batch < 1:
            raise SpecdecError(f"batch={self.batch!r:.80}: takes a whole number ≥ 1")
        for name in ("acceptance", "lookup_acceptance"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise SpecdecError(f"{name}={value!r:.80}: takes a probability, 0 ≤ α ≤ 1")
        if not any(is_whole(n) and n > 1 for n in self.v):
            raise SpecdecError(f"v={self.v!r:.80}: takes {{tokens scored: cost}}, for more than one token")


@dataclass(frozen=True)
class Decision:
    """method: 'draft_model', 'ngram' or None for neither. k: tokens to draft, 0 for None. predicted: speedup by the
    formula, None where nothing was computed. path: the questions asked, each with its answer."""

    method: str | None
    k: int
    predicted: float | None
    path: tuple[tuple[str, bool], ...]


VOCABULARY = "Same vocabulary,\nid by id?"
MEMORY = "Room for the draft\nand its caches?"
PAYS = "Does the formula pay\nat this batch?"
COPIES = "Does prompt lookup\npay, with c = 0?"


def decide(situation: Situation) -> Decision:
    """Walk the tree. The formula is asked for every k for which v is known. Raises SpecdecError for a c below 0."""
    asked: list[tuple[str, bool]] = []

    def ask(question: str, answer: bool) -> bool:
        asked.append((question, answer))
        return answer

    predicted = None
    if ask(VOCABULARY, situation.same_vocabulary) and ask(MEMORY, situation.draft_memory <= situation.memory):
        k, predicted = _best(situation.acceptance, situation.c, situation.v)
        if ask(PAYS, predicted >= MARGIN):
            return Decision("draft_model", k, predicted, tuple(asked))
    k, of_lookup = _best(situation.lookup_acceptance, 0.0, situation.v)
    if ask(COPIES, of_lookup >= MARGIN):
        return Decision("ngram", k, of_lookup, tuple(asked))
    return Decision(None, 0, predicted, tuple(asked))


def _best(alpha: float, c: float, v: Mapping[int, float]) -> tuple[int, float]:
    """The k with the largest predicted speedup, and that speedup."""
    speedups = {n - 1: float(predicted_speedup(alpha, n - 1, c, cost)) for n, cost in v.items() if n > 1}
    k = max(speedups, key=lambda k: speedups[k])
    return k, speedups[k]


QUESTIONS = {VOCABULARY: (0.0, 3.0), MEMORY: (0.0, 2.0), PAYS: (0.0, 1.0), COPIES: (1.65, 2.0)}
LEAVES = {
    (PAYS, True): ("draft model,\nthe k of the formula", (0.0, 0.0)),
    (COPIES, True): ("prompt lookup\n(ngram)", (3.2, 2.6)),
    (COPIES, False): ("no speculation\nat this batch", (3.2, 1.4)),
}
NEXT = {
    (VOCABULARY, True): MEMORY,
    (VOCABULARY, False): COPIES,
    (MEMORY, True): PAYS,
    (MEMORY, False): COPIES,
    (PAYS, False): COPIES,
}


@plotting.styled
def decision_figure(decision: Decision | None = None) -> "Figure":
    """The tree; with a decision, the way that it went is drawn strong."""
    path = set(decision.path) if decision else set()
    title = "When to switch it on"
    if decision is not None:
        what = f"{decision.method}, k = {decision.k}" if decision.method else "do not speculate"
        gain = f", predicted {decision.predicted:.2f} times" if decision.predicted is not None else ""
        title = f"This case: {what}{gain}"
    figure, axes = plotting.new_figure(title, "", "", height=4.4)
    axes.set(xlim=(-0.75, 3.85), ylim=(-0.45, 3.45))
    axes.axis("off")
    arrows = [(edge, QUESTIONS[edge[0]], QUESTIONS[there]) for edge, there in NEXT.items()]
    arrows += [(edge, QUESTIONS[edge[0]], spot) for edge, (_, spot) in LEAVES.items()]
    for edge, (x, y), (to_x, to_y) in arrows:
        taken = edge in path
        color = plotting.TARGET if taken else plotting.FORMULA
        axes.annotate(
            "",
            (to_x, to_y + 0.28) if to_x == x else (to_x - 0.62, to_y),
            (x, y - 0.28) if to_x == x else (x + 0.62, y),
            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2.5 if taken else 1.0},
        )
        middle = ((x + to_x) / 2, (y + to_y) / 2)
        shift = (0.06, 0.0) if to_x == x else (0.0, 0.0)
        align = "left" if to_x == x else "center"
        answer = "yes" if edge[1] else "no"
        axes.text(
            middle[0] + shift[0], middle[1] + shift[1], answer, ha=align, va="center", fontsize=9, color=color,
            fontweight="bold" if taken else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    asked = {question for question, _ in path}
    for question, (x, y) in QUESTIONS.items():
        _box(axes, question, x, y, strong=question in asked, leaf=False)
    for edge, (words, (x, y)) in LEAVES.items():
        _box(axes, words, x, y, strong=edge in path, leaf=True)
    return figure


def _box(axes: object, words: str, x: float, y: float, *, strong: bool, leaf: bool) -> None:
    edge = plotting.TARGET if strong else plotting.FORMULA
    axes.text(  # type: ignore[attr-defined]
        x, y, words, ha="center", va="center", fontsize=9.5, fontweight="bold" if strong else "normal",
        bbox={"boxstyle": "round,pad=0.45" if leaf else "square,pad=0.45", "facecolor": "white", "edgecolor": edge,
              "linewidth": 2 if strong else 1},
    )  # fmt: skip


def parallel_for(
    total: float, gpu_memory: float, heads: int, *, gpus_per_node: int = 8, share: float = 0.9
) -> tuple[int, int]:
    """(tensor parallel, pipeline parallel): the fewest GPUs that hold so many bytes.

    total: bytes of weights, caches and activations, draft included. gpu_memory: bytes of one GPU, of which `share` may
    be used. heads: key/value heads of the target; a size that divides them shares caches out evenly. Tensor parallel
    stays inside one node, where links are fast; what does not fit there is cut into groups of layers over nodes.
    Raises SpecdecError.
    """
    for name, value in (("total", total), ("gpu_memory", gpu_memory), ("share", share)):
        if not is_number(value) or value <= 0:
            raise SpecdecError(f"{name}={value!r:.80}: takes a number > 0")
    for name, whole in (("heads", heads), ("gpus_per_node", gpus_per_node)):
        if not is_whole(whole) or whole < 1:
            raise SpecdecError(f"{name}={whole!r:.80}: takes a whole number ≥ 1")
    sizes = [size for size in range(1, gpus_per_node + 1) if heads % size == 0]
    for size in sizes:
        if total / size <= share * gpu_memory:
            return size, 1
    nodes = -(-total // (sizes[-1] * share * gpu_memory))
    return sizes[-1], int(nodes)
