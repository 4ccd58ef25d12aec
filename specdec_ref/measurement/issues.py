"""The source text's table of common issues (4.2): its symptoms and causes, with the remedies that hold today."""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Issue:
    """One row of the source text's table 4.2, mended.

    solutions: what helps today. corrections: (what the table says, what is so). codes: of the findings that tell
    whether you have it.
    """

    title: str
    symptoms: tuple[str, ...]
    causes: tuple[str, ...]
    solutions: tuple[str, ...]
    corrections: tuple[tuple[str, str], ...]
    codes: tuple[str, ...]

    def _lists(self) -> list[tuple[str, tuple[str, ...]]]:
        mended = tuple(f"“{said}”: {so}" for said, so in self.corrections)
        return [("symptoms", self.symptoms), ("causes", self.causes), ("solutions", self.solutions), ("mended", mended)]

    def __rich__(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.title, title_justify="left", box=None, show_header=False, pad_edge=False)
        for name, lines in self._lists():
            for i, line in enumerate(lines):
                table.add_row("" if i else Text(name, style="dim"), Text(f"• {line}"))
        return table

    def _repr_html_(self) -> str:
        left = 'style="text-align:left; vertical-align:top"'
        rows = "".join(
            f"<tr><td {left}>{name}</td><td {left}>{'<br>'.join('• ' + escape(line) for line in lines)}</td></tr>"
            for name, lines in self._lists()
        )
        return f"<table><caption>{escape(self.title)}</caption><tbody>{rows}</tbody></table>"


def common_issues() -> tuple[Issue, ...]:
    """Low acceptance, out of memory, no speedup: symptoms and causes as the source text has them, remedies as of today.

    What it says of vLLM was read in vLLM 0.32.
    """
    return (LOW_ACCEPTANCE, OUT_OF_MEMORY, NO_SPEEDUP)


LOW_ACCEPTANCE = Issue(
    "Low acceptance rate",
    (
        "Slower than without speculation",
        "Few drafted tokens accepted in the logs",
        "Poor speedup despite a fast draft model",
    ),
    (
        "The draft is poorly aligned with the target",
        "The two vocabularies give the same ids to different strings",
        "Temperature, top-k or top-p differ between draft and target",
        "The draft's cache is not rewound properly",
        "The draft is too small",
    ),
    (
        "Compute the break-even α from measured c and v: whether α is low depends on them",
        "Use a draft of the target's family, or distil one from the target",
        "Compare the maps from id to string; padding rows may differ",
        "Run the target as its own draft: everything must be accepted, else the loop is at fault and not the draft",
        "A larger draft accepts more and costs more: measure both",
    ),
    (
        (
            "Acceptance below 50 % is an issue",
            "with v = 1 and c = 0.05 an α of 0.5 gives 1.63× at k = 3; with c = 0.5 it never gains",
        ),
        ("Ensure identical tokenization", "the same strings under the same ids; equal vocabulary sizes prove nothing"),
        (
            "Match sampling parameters",
            "q must be what the draft was drawn from; then every q is exact, and the closer to p the faster. vLLM's "
            "draft_sample_method is 'greedy' unless set to 'probabilistic'",
        ),
    ),
    ("vocabulary-mismatch", "draft-cache-stale", "acceptance-lost", "acceptance-near-zero", "slower-than-without"),
)

OUT_OF_MEMORY = Issue(
    "Out of memory",
    ("CUDA out of memory at start", "Crashes when generating with a large batch"),
    (
        "Weights of both models on one GPU",
        "The KV cache of the draft beside that of the target, and k more slots of each sequence in both",
        "More sequences at once than there is room for",
    ),
    (
        "Compute weights and KV cache of both from the configurations before loading (memory_profile)",
        "Use a smaller draft, prompt lookup, or a quantised draft (vLLM: speculative_config's 'quantization')",
        "Fewer sequences at once, or a shorter context; the draft's own may be shorter (vLLM: 'max_model_len')",
        "Where another program needs the GPU too, a lower gpu_memory_utilization in vLLM",
    ),
    (
        (
            "Free memory = total − torch.cuda.memory_allocated",
            "that is this process's tensors only: torch.cuda.mem_get_info",
        ),
        ("40 GB available will do", "weights of both and KV cache of both, computed"),
        (
            "Enable speculative_disable_by_batch_size",
            "gone from vLLM; num_speculative_tokens_per_batch_size saves time at large batches, not memory",
        ),
        ("Reduce num_speculative_tokens", "saves one slot for each token and sequence: next to nothing"),
        (
            "Reduce gpu_memory_utilization to 0.85",
            "that shrinks the KV cache; it helps only what is outside vLLM's own budget",
        ),
    ),
    ("memory-too-small", "memory-tight"),
)

NO_SPEEDUP = Issue(
    "No speedup, or a slowdown",
    ("As slow as without, or slower", "High overhead in the profile"),
    (
        "The draft step is not cheap enough: k·c",
        "Scoring k + 1 tokens costs much more than one: v(k + 1)",
        "The batch is so large that the hardware computes all the time: v grows with it",
        "k is too high or too low for this α",
        "The target is called from slow code: o",
    ),
    (
        "Measure α, c, v and o; the formula says which of them to blame",
        "Take the best k that they predict, instead of trying 2, 4 and 8",
        "Speculate up to the batch size where it pays (vLLM: num_speculative_tokens_per_batch_size)",
        "Compare with plain decoding in turn, after a warm-up, with repeats",
    ),
    (
        (
            "Speed ratio < 5× is too slow",
            "no such limit: with α = 0.9 and v = 1, a draft at a third of the target's time gives 1.76× at k = 4",
        ),
        ("Use speculative decoding only for small batches", "up to the ridge point, which is measured"),
    ),
    ("slower-than-without", "k-not-best", "k-not-reached", "slower-under-load"),
)
