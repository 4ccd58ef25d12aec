"""Wrong answers as learners write them, written without a look at the checks' own wrong versions."""

from typing import Any

import numpy as np

WRITES = {
    "accept": """
def accepts(p, q, u):
    p /= q
    return u < p
""",
    "residual": """
def residual(p, q):
    p -= q
    p.clamp_(min=0)
    return p / p.sum(-1, keepdim=True)
""",
    "step": """
def speculative_step(p, q, drafted, chance):
    out = []
    for i in range(len(drafted)):
        token = drafted.pop(0)
        if not chance.accept(min(1.0, float(p[i, token] / q[i, token]))):
            rest = (p[i] - q[i]).clamp(min=0)
            return [*out, chance.draw(rest / rest.sum())]
        out.append(token)
    return [*out, chance.draw(p[-1])]
""",
    "mend": """
def mended_round(target, draft, last, k, chance):
    text = [last]
    for _ in range(k):
        text.append(chance.draw(draft[text[-1]]))
    for i, token in enumerate(text[1:]):
        p, q = target[text[i]], draft[text[i]]
        if not chance.accept(min(1.0, float(p[token] / q[token]))):
            p -= q
            p.clamp_(min=0)
            return [*text[1 : i + 1], chance.draw(p / p.sum())]
    return [*text[1:], chance.draw(target[text[-1]])]
""",
    "equivalence_test": """
def is_consistent(counts, probabilities):
    n, chi = sum(counts), 0.0
    degrees = len(counts) - 1
    while counts:
        expected = n * probabilities[len(counts) - 1]
        chi += (counts.pop() - expected) ** 2 / expected
    return chi <= {1: 10.828, 3: 16.266}[degrees]
""",
    "decode": """
def speculative_decode(target, draft, start, n, k, chance):
    text = [start]
    while len(text) <= n:
        rows = [text[-1]]
        for _ in range(k):
            rows.append(chance.draw(draft[rows[-1]]))
        for i, token in enumerate(rows[1:]):
            p = target[rows[i]]
            if not chance.accept(min(1.0, float(p[token] / draft[rows[i], token]))):
                p.sub_(draft[rows[i]]).clamp_(min=0)
                text.append(chance.draw(p / p.sum()))
                break
            text.append(token)
        else:
            text.append(chance.draw(target[rows[-1]]))
    return text[1 : n + 1]
""",
    "best_draft": """
def best_draft(drafts, slope):
    best, winner = 1.0, ("none", 0)
    while drafts:
        name, (alpha, c) = drafts.popitem()
        for k in range(1, 9):
            gain = (1 - alpha ** (k + 1)) / (1 - alpha) / (1 + k * (c + slope))
            if gain > best:
                best, winner = gain, (name, k)
    return winner
""",
    "adaptive_k": """
def choose_k(history, c, slope):
    history.reverse()
    kept, judged = 1.4, 2.0
    for drafted, accepted in history[:20]:
        kept, judged = kept + accepted, judged + min(accepted + 1, drafted)
    alpha = min(0.98, kept / judged)
    best = max(range(9), key=lambda k: (1 - alpha ** (k + 1)) / (1 - alpha) / (1 + k * (c + slope)))
    return best or int(len(history) >= 15 and not any(drafted for drafted, _ in history[:15]))
""",
    "memory": """
def memory_bytes(target, draft, batch, tokens, k):
    total = 0
    for model in (target, draft):
        if model:
            slots = tokens + (k if draft else 0)
            model["cache"] = 2 * model["layers"] * model["kv_heads"] * model["head_dim"] * batch * slots
            total += 2 * (model["parameters"] + model["cache"])
    return total
""",
}
"""Right but for one thing: what they were given is not what it was."""


def drafts_up_to(most: int) -> Any:
    def best_draft(drafts: Any, slope: Any) -> Any:
        options = []
        for name, (alpha, c) in drafts.items():
            for k in range(1, most + 1):
                options.append((sum(alpha**i for i in range(k + 1)) / (1 + k * (c + slope)), name, k))
        gain, name, k = max(options)
        return (name, k) if gain > 1 else ("none", 0)

    return best_draft


def decides_for_free(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    two, four = (1 + alpha + alpha**2) / v3, sum(alpha**i for i in range(5)) / v5
    return 0 if max(two, four) <= 1 else 2 if two >= four else 4


def decides_with_c_once(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    two, four = (1 + alpha + alpha**2) / (c + v3), sum(alpha**i for i in range(5)) / (c + v5)
    return 0 if max(two, four) <= 1 else 2 if two >= four else 4


def decides_without_v(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    two, four = (1 + alpha + alpha**2) / (2 * c + 1), sum(alpha**i for i in range(5)) / (4 * c + 1)
    return 0 if max(two, four) <= 1 else 2 if two >= four else 4


LIMITS = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467}


def divides_by_counts(counts: Any, probabilities: Any) -> Any:
    counts, n = np.array(counts), sum(counts)
    with np.errstate(divide="ignore"):
        return bool(((counts - n * np.array(probabilities)) ** 2 / counts).sum() <= LIMITS[len(counts) - 1])


def divides_by_counts_that_are_there(counts: Any, probabilities: Any) -> Any:
    n = sum(counts)
    chi = sum((c - n * p) ** 2 / c for c, p in zip(counts, probabilities, strict=True) if c)
    return chi <= LIMITS[len(counts) - 1]


def three_sigma(counts: Any, probabilities: Any) -> Any:
    n = sum(counts)
    return all(abs(c - n * p) <= 3 * (n * p * (1 - p)) ** 0.5 for c, p in zip(counts, probabilities, strict=True))


def three_sigma_of_poisson(counts: Any, probabilities: Any) -> Any:
    n = sum(counts)
    return all(abs(c - n * p) / (n * p) ** 0.5 <= 3 for c, p in zip(counts, probabilities, strict=True))


def one_per_cent(counts: Any, probabilities: Any) -> Any:
    from scipy.stats import chisquare

    return chisquare(counts, np.array(probabilities) * sum(counts)).pvalue > 0.01


WRONG: list[tuple[str, str, Any]] = [
    ("best_draft", "unknown", drafts_up_to(5)),
    ("best_draft", "unknown", drafts_up_to(6)),
    ("best_draft", "stops-at-seven", drafts_up_to(7)),
    ("decide", "drafting-is-free", decides_for_free),
    ("decide", "one-draft-step", decides_with_c_once),
    ("decide", "scoring-costs-one", decides_without_v),
    ("equivalence_test", "divided-by-counts", divides_by_counts),
    ("equivalence_test", "unknown", divides_by_counts_that_are_there),
    ("equivalence_test", "each-by-itself", three_sigma),
    ("equivalence_test", "unknown", three_sigma_of_poisson),
    ("equivalence_test", "level-of-1-percent", one_per_cent),
]
"""Exercise, the diagnosis that is due, the answer."""
