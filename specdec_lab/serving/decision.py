"""When to switch speculation on: a checklist as a tree of measurable questions.

The cheapest question comes first: the vocabularies, then memory, then measured costs. The last question uses the
speedup formula with the costs at the batch size at hand. There are no fixed limits for batch size or acceptance,
because these differ between machines and pairs. Where a draft model cannot be used or does not pay, prompt lookup may
pay: it runs no model, so its formula has c = 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specdec_lab import plotting
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.theory import predicted_speedup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 1.05
"""Predicted speedup below which it is not worth the second model."""


@dataclass(frozen=True)
class Situation:
    """What is known about a deployment.

    Attributes:
        batch: requests at once.
        acceptance: α of the draft model.
        c: cost of a draft step, in steps of the target at that batch size.
        v: {n: cost of scoring n tokens per request}, in the same steps.
        same_vocabulary: every id means the same string in both models.
        memory: bytes that are free next to the target and its caches.
        draft_memory: bytes that the draft and its caches take.
        lookup_acceptance: α of prompt lookup, high where the output repeats its prompt (summaries, edits of code);
            0 where it was not measured.
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
    """What the tree decides.

    Attributes:
        method: 'draft_model', 'ngram' or None for neither.
        k: tokens to draft; 0 without a method.
        predicted: speedup by the formula; None where nothing was computed.
        path: the questions asked, each with its answer.
    """

    method: str | None
    k: int
    predicted: float | None
    path: tuple[tuple[str, bool], ...]


VOCABULARY = "Same vocabulary,\nid by id?"
MEMORY = "Memory for the draft\nand its caches?"
PAYS = "Does the formula predict\na gain at this batch?"
COPIES = "Does prompt lookup\npay, with c = 0?"


def decide(situation: Situation) -> Decision:
    """Walk the tree. The formula compares every k for which v is known. Raises SpecdecError for a c below 0."""
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
    (PAYS, True): ("draft model,\nk of the formula", (0.0, 0.0)),
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
    """The tree. With a decision, bold lines mark its path."""
    path = set(decision.path) if decision else set()
    title = "When to switch it on"
    if decision is not None:
        what = f"{decision.method}, k = {decision.k}" if decision.method else "do not speculate"
        gain = f", predicted {decision.predicted:.2f} times" if decision.predicted is not None else ""
        title = f"This case: {what}{gain}"
    figure, axes = plotting.new_figure(title, "", "", height=4.4)
    axes.set(xlim=(-0.75, 3.85), ylim=(-0.45, 3.45))
    axes.axis("off")
    asked = {question for question, _ in path}
    boxes: dict[Any, Any] = {
        question: _box(axes, question, *spot, strong=question in asked, leaf=False)
        for question, spot in QUESTIONS.items()
    }
    for leaf, (words, spot) in LEAVES.items():
        boxes[leaf] = _box(axes, words, *spot, strong=leaf in path, leaf=True)
    figure.draw_without_rendering()  # now the boxes have a size, so arrows can be drawn between them
    to_data = axes.transData.inverted()
    sides = {name: box.get_window_extent().transformed(to_data) for name, box in boxes.items()}
    for edge, there in [*NEXT.items(), *((leaf, leaf) for leaf in LEAVES)]:
        taken = edge in path
        color = plotting.TARGET if taken else plotting.FORMULA
        tail, tip, down = _between(sides[edge[0]], sides[there])
        axes.annotate(
            "",
            tip,
            tail,
            arrowprops={
                "arrowstyle": "-|>", "color": color, "linewidth": 2.5 if taken else 1.0, "shrinkA": 0, "shrinkB": 0,
            },
        )  # fmt: skip
        axes.text(
            (tail[0] + tip[0]) / 2 + 0.06 * down, (tail[1] + tip[1]) / 2, "yes" if edge[1] else "no",
            ha="left" if down else "center", va="center", fontsize=9, color=color,
            fontweight="bold" if taken else "normal", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    return figure


def _box(axes: Any, words: str, x: float, y: float, *, strong: bool, leaf: bool) -> Any:
    """Draw a box, and return its outline."""
    edge = plotting.TARGET if strong else plotting.FORMULA
    text = axes.text(
        x, y, words, ha="center", va="center", fontsize=9.5, fontweight="bold" if strong else "normal",
        bbox={"boxstyle": "round,pad=0.45" if leaf else "square,pad=0.45", "facecolor": "white", "edgecolor": edge,
              "linewidth": 2 if strong else 1},
    )  # fmt: skip
    return text.get_bbox_patch()


def _between(start: Any, end: Any) -> tuple[tuple[float, float], tuple[float, float], bool]:
    """The start and end of an arrow between two boxes, and whether it runs down (else to the right)."""
    if end.x0 < (start.x0 + start.x1) / 2:
        return ((start.x0 + start.x1) / 2, start.y0), ((end.x0 + end.x1) / 2, end.y1), True
    y, margin = (
        (start.y0 + start.y1) / 2,
        0.25 * (end.y1 - end.y0),
    )  # arrows from different heights end at different points
    return (start.x1, y), (end.x0, min(max(y, end.y0 + margin), end.y1 - margin)), False


def parallel_for(
    total: float,
    gpu_memory: float,
    heads: int,
    *,
    attention_heads: int | None = None,
    cache: float = 0.0,
    gpus_per_node: int = 8,
    share: float = 0.9,
) -> tuple[int, int]:
    """(tensor parallel, pipeline parallel): the fewest GPUs that hold the models and their caches.

    A tensor parallel size divides the attention heads. Up to the number of key/value heads it divides them, too, and
    each GPU holds its part of the cache. Above it, vLLM replicates key/value heads, so the cache shrinks no further.
    Tensor parallelism stays inside one node, where links are fast; what does not fit there is split into groups of
    layers, one group per node.

    Args:
        total: bytes of weights, caches and activations, draft included.
        gpu_memory: bytes of one GPU.
        heads: key/value heads of the target.
        attention_heads: of the target; default `heads`.
        cache: bytes of `total` that are KV caches.
        gpus_per_node: GPUs of one machine.
        share: of a GPU's memory that may be used.

    Raises:
        SpecdecError: a size is out of range.
    """
    for name, value in (("total", total), ("gpu_memory", gpu_memory), ("share", share)):
        if not is_number(value) or value <= 0:
            raise SpecdecError(f"{name}={value!r:.80}: takes a number > 0")
    attention_heads = heads if attention_heads is None else attention_heads
    for name, whole in (("heads", heads), ("attention_heads", attention_heads), ("gpus_per_node", gpus_per_node)):
        if not is_whole(whole) or whole < 1:
            raise SpecdecError(f"{name}={whole!r:.80}: takes a whole number ≥ 1")
    if not is_number(cache) or not 0 <= cache <= total:
        raise SpecdecError(f"cache={cache!r:.80}: takes bytes, from 0 to total")
    sizes = tensor_parallel_sizes(heads, attention_heads, gpus_per_node)
    for size in sizes:
        if bytes_per_gpu(total, size, heads, cache) <= share * gpu_memory:
            return size, 1
    nodes = -(-bytes_per_gpu(total, sizes[-1], heads, cache) // (share * gpu_memory))
    return sizes[-1], int(nodes)


def tensor_parallel_sizes(heads: int, attention_heads: int, gpus_per_node: int = 8) -> list[int]:
    """Sizes that vLLM accepts inside one node: key/value heads are divided evenly, or replicated evenly."""
    sizes = range(1, gpus_per_node + 1)
    return [n for n in sizes if attention_heads % n == 0 and (heads % n == 0 or n % heads == 0)]


def bytes_per_gpu(total: float, size: int, heads: int, cache: float = 0.0) -> float:
    """Bytes on each of `size` GPUs, of which `cache` bytes are divided among at most `heads` of them."""
    return (total - cache) / size + cache / min(size, heads)
