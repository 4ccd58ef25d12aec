"""Wrong answers as learners write them, written without a look at the checks' own wrong versions."""

from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

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
    "fix": """
def fixed_round(target, draft, last, k, chance):
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
    "acceptance": """
def acceptance_rate(rounds):
    examined = 0
    accepted = sum(kept for _, kept in rounds)
    while rounds:
        drafted, kept = rounds.pop()
        examined += min(drafted, kept + 1)
    return accepted / examined
""",
    "speedup_of": """
def speedup_of(plain, speculative):
    tokens = seconds = others = more = 0
    while plain:
        n, t = plain.pop()
        m, s = speculative.pop()
        tokens, seconds, others, more = tokens + n, seconds + t, others + m, more + s
    return others / more * seconds / tokens
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
    kept, examined = 1.4, 2.0
    for drafted, accepted in history[:20]:
        kept, examined = kept + accepted, examined + min(accepted + 1, drafted)
    alpha = min(0.98, kept / examined)
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

    possible = np.array(probabilities) > 0
    if np.array(counts)[~possible].any():
        return False
    return chisquare(np.array(counts)[possible], np.array(probabilities)[possible] * sum(counts)).pvalue > 0.01


def verdict_by_rounding(p: Any, q: Any, u: Any) -> Any:
    return [bool(x / y >= 0.5) for x, y in zip(p.tolist(), q.tolist(), strict=True)]


def verdict_not_below(p: Any, q: Any, u: Any) -> Any:
    return torch.minimum(torch.ones_like(p), p / q) >= u


def verdict_upside_down(p: Any, q: Any, u: Any) -> Any:
    return u * p < q


def verdict_rejects(p: Any, q: Any, u: Any) -> Any:
    return ~(u < p / q)


def left_over(p: Any, q: Any) -> Any:
    return torch.relu(p - q)


def left_over_with_epsilon(p: Any, q: Any) -> Any:
    left = left_over(p, q)
    return left / (left.sum(-1, keepdim=True) + 1e-8)


def left_over_or_zero(p: Any, q: Any) -> Any:
    return torch.nan_to_num(left_over(p, q) / left_over(p, q).sum(-1, keepdim=True))


def left_over_or_uniform(p: Any, q: Any) -> Any:
    left = left_over(p, q)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total, torch.full_like(p, 1 / p.shape[-1]))


def left_over_or_uniform_half_done(p: Any, q: Any) -> Any:
    """The mean of p and uniform where nothing is left: nobody foresaw that."""
    return torch.where((p == q).all(-1, keepdim=True), (p + 1 / p.shape[-1]) / 2, left_over_with_epsilon(p, q))


def left_over_one_hot(p: Any, q: Any) -> Any:
    one_hot = torch.nn.functional.one_hot((p - q).argmax(-1), p.shape[-1]).double()
    return torch.where((p == q).all(-1, keepdim=True), p, one_hot)


def left_over_of_absolutes_over_all_rows(p: Any, q: Any) -> Any:
    return (p - q).abs() / (p - q).abs().sum()


def yield_of_accepted(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return sum(alpha**i for i in range(1, k + 1)) / (c * k + v)


def yield_scored_one_by_one(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return sum(alpha**i for i in range(k + 1)) / (k * c + (k + 1) * v)


def yield_by_formula_only(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return (1 - alpha ** (k + 1)) / ((1 - alpha) * (c * k + v))


def yield_of_k_minus_one(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return sum(alpha**i for i in range(k)) / (c * k + v)


def lengths_exchanged(cached: Any, k: Any, accepted: Any) -> Any:
    target, draft = cached + accepted + 1, min(cached + accepted + 1, cached + k)
    return draft, target


def lengths_both_bounded(cached: Any, k: Any, accepted: Any) -> Any:
    length = cached + min(k, accepted + 1)
    return length, length


def lengths_alike(cached: Any, k: Any, accepted: Any) -> Any:
    return (cached + accepted + 1,) * 2


def lengths_with_the_new_token(cached: Any, k: Any, accepted: Any) -> Any:
    return cached + accepted + 2, min(cached + accepted + 2, cached + k)


def lengths_of_all(cached: Any, k: Any, accepted: Any) -> Any:
    return [cached + k + 1, cached + k]


def step_upside_down(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    for i, x in enumerate(drafted):
        if not chance.accept(min(1, float(q[i, x] / p[i, x]))):
            left = left_over(p[i], q[i])
            return [*drafted[:i], chance.draw(left / left.sum())]
    return [*drafted, chance.draw(p[-1])]


def step_next_row(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    for i, x in enumerate(drafted):
        if not chance.accept(min(1, float(p[i + 1, x] / q[i, x]))):
            left = left_over(p[i + 1], q[i])
            return [*drafted[:i], chance.draw(left / left.sum())]
    return [*drafted, chance.draw(p[-1])]


def step_from_the_target(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    n = 0
    while n < len(drafted) and chance.accept((p[n, drafted[n]] / q[n, drafted[n]]).clamp(max=1)):
        n += 1
    return [*drafted[:n], chance.draw(p[n])]


def step_that_remembers(p: Any, q: Any, drafted: Any, chance: Any, out: Any = []) -> Any:  # noqa: B006
    """Right but for its default, which is made once: what earlier calls emitted is still in it."""
    for i, x in enumerate(drafted):
        if not chance.accept(min(1, float(p[i, x] / q[i, x]))):
            left = left_over(p[i], q[i])
            out.append(chance.draw(left / left.sum()))
            return out
        out.append(x)
    out.append(chance.draw(p[-1]))
    return out


def step_without_bonus(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    out = step_with_float32(p, q, drafted, chance)
    return out[: len(drafted)]


def step_with_float32(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    for i, x in enumerate(drafted):
        if not chance.accept(min(1, float(p[i, x] / q[i, x]))):
            left = left_over(p[i], q[i]).float()
            return [*drafted[:i], chance.draw(left / left.sum())]
    return [*drafted, chance.draw(p[-1])]


A, B, C = (
    "reports a different q than it sampled from",
    "samples from the target after a rejection",
    "accepts tokens after a rejection",
)


def fixed_by_halves(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    """A and C are fixed, B is not."""
    text = [last]
    for _ in range(k):
        text.append(chance.draw(draft[text[-1]]))
    for i in range(k):
        p, q = target[text[i]], draft[text[i]]
        if not chance.accept(min(1.0, float(p[text[i + 1]] / q[text[i + 1]]))):
            return [*text[1 : i + 1], chance.draw(p)]
    return [*text[1:], chance.draw(target[text[-1]])]


def fixed_but_greedy(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    text = [last]
    for _ in range(k):
        text.append(int(torch.argmax(draft[text[-1]])))
    return step_with_float32(target[text], draft[text[:-1]], text[1:], chance)


def fixed_without_bonus(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    text = [last]
    for _ in range(k):
        text.append(chance.draw(draft[text[-1]]))
    return step_without_bonus(target[text], draft[text[:-1]], text[1:], chance)


def fixed_without_a_draft(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    text = [last]
    for _ in range(k + 1):
        text.append(chance.draw(target[text[-1]]))
    return text[1:]


def fixed_after_an_idle_draw(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    chance.draw(draft[last])
    return fixed_without_a_draft(target, draft, last, k, chance)


def fixed_by_stopping_at_zero(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    """Rounds of several lengths, without a look at the draft."""
    text = fixed_without_a_draft(target, draft, last, k, chance)
    return text[: text.index(0) + 1] if 0 in text else text


def decoded_after_idle_draws(each: bool) -> Any:
    def speculative_decode(target: Any, draft: Any, start: Any, n: Any, k: Any, chance: Any) -> Any:
        text = [start]
        while len(text) <= n:
            if each or len(text) == 1:
                chance.draw(draft[text[-1]])
            text.append(chance.draw(target[text[-1]]))
        return text[1:]

    return speculative_decode


def decoded_with_idle_drafts(target: Any, draft: Any, start: Any, n: Any, k: Any, chance: Any) -> Any:
    text = [start]
    while len(text) <= n:
        ahead = [text[-1]]
        while len(ahead) <= k:
            ahead.append(chance.draw(draft[ahead[-1]]))
        text.append(chance.draw(target[text[-1]]))
    return text[1:]


def decoded_by(step: Any, cut: bool = True) -> Any:
    def speculative_decode(target: Any, draft: Any, start: Any, n: Any, k: Any, chance: Any) -> Any:
        text = [start]
        while len(text) <= n:
            ahead = [text[-1]]
            while len(ahead) <= k:
                ahead.append(chance.draw(draft[ahead[-1]]))
            text.extend(step(target[ahead], draft[ahead[:-1]], ahead[1:], chance))
        return text[1 : n + 1] if cut else text[1:]

    return speculative_decode


def draft_by_alpha(drafts: Any, slope: Any) -> Any:
    name = max(drafts, key=drafts.get)
    return drafts_up_to(8)({name: drafts[name]}, slope)


def draft_with_k_plus_one_steps(drafts: Any, slope: Any) -> Any:
    best, choice = 1.0, ("none", 0)
    for name, (alpha, c) in drafts.items():
        for k in range(1, 9):
            gain = (1 - alpha ** (k + 1)) / (1 - alpha) / ((k + 1) * c + 1 + slope * k)
            if gain > best:
                best, choice = gain, (name, k)
    return choice


def draft_scored_for_free(drafts: Any, slope: Any) -> Any:
    return drafts_up_to(8)(drafts, 0.0)


def draft_whatever_it_gains(drafts: Any, slope: Any) -> Any:
    gain = {
        (n, k): sum(a**i for i in range(k + 1)) / (1 + k * (c + slope))
        for n, (a, c) in drafts.items()
        for k in range(1, 9)
    }
    return sorted(gain, key=gain.get)[-1]


def draft_and_a_half(drafts: Any, slope: Any) -> Any:
    name, k = drafts_up_to(8)(drafts, slope)
    return name, k + 0.9


def draft_in_letters(drafts: Any, slope: Any) -> Any:
    name, k = drafts_up_to(8)(drafts, slope)
    return name, str(k)


def draft_of_none(drafts: Any, slope: Any) -> Any:
    name, k = drafts_up_to(8)(drafts, slope)
    return name, k or 7


def k_without_a_limit_on_alpha(history: Any, c: Any, slope: Any) -> Any:
    examined = sum(min(accepted + 1, drafted) for drafted, accepted in history[-10:])
    alpha = sum(accepted for _, accepted in history[-10:]) / examined if examined else 0.6
    return max(range(9), key=lambda k: (1 - alpha ** (k + 1)) / (1 - alpha) / (1 + k * (c + slope)))


def k_from_nothing(history: Any, c: Any, slope: Any) -> Any:
    alpha = min(0.95, sum(a for _, a in history) / sum(min(a + 1, d) for d, a in history))
    return max(range(9), key=lambda k: (1 - alpha ** (k + 1)) / (1 - alpha) / (1 + k * (c + slope)))


def k_of_four(history: Any, c: Any, slope: Any) -> Any:
    return 4


def k_up_and_down(history: Any, c: Any, slope: Any) -> Any:
    k = 4
    for drafted, accepted in history:
        k = min(8, k + 1) if accepted == drafted else max(1, k - 1)
    return k


def bytes_of(slots_target: int, slots_draft: int, *, cache: bool = True, per_number: int = 2) -> Any:
    def memory_bytes(target: Any, draft: Any, batch: Any, tokens: Any, k: Any) -> Any:
        def kv(m: Any, n: Any) -> Any:
            return 2 * m["layers"] * m["kv_heads"] * m["head_dim"] * n * batch

        numbers = target["parameters"] + kv(target, tokens + (slots_target * k if draft else 0))
        if draft:
            numbers += draft["parameters"] + (kv(draft, tokens + slots_draft * k) if cache else 0)
        return numbers * per_number

    return memory_bytes


def decides_by_batch(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    return 4 if batch < 32 else 0


def one_degree_too_few(counts: Any, probabilities: Any) -> Any:
    n = sum(counts)
    chi = sum((c - n * p) ** 2 / (n * p) for c, p in zip(counts, probabilities, strict=True))
    return chi <= LIMITS.get(len(counts) - 2, 10.828)


def step_from_the_draft(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    for i, x in enumerate(drafted):
        if not chance.accept(min(1, float(p[i, x] / q[i, x]))):
            return [*drafted[:i], chance.draw(q[i])]
    return [*drafted, chance.draw(p[-1])]


def rate_of_drafted(rounds: Any) -> Any:
    drafted, accepted = np.array(rounds).T
    return accepted.sum() / drafted.sum()


def rate_with_one_rejection_a_round(rounds: Any) -> Any:
    accepted = sum(a for _, a in rounds)
    return accepted / (accepted + len(rounds))


def rate_round_by_round(rounds: Any) -> Any:
    shares = [a / d for d, a in rounds]  # and 0/0 where nothing was drafted
    return sum(shares) / len(shares)


def rate_of_rounds(rounds: Any) -> Any:
    rates = []
    for drafted, accepted in rounds:
        if drafted:
            rates.append(accepted / min(drafted, accepted + 1))
    return np.mean(rates)


def rate_of_what_was_emitted(rounds: Any) -> Any:
    return sum(accepted + 1 for _, accepted in rounds) / sum(drafted + 1 for drafted, _ in rounds)


def rate_of_broken_rounds(rounds: Any) -> Any:
    """Looks only at rounds in which something was rejected: nobody foresaw that."""
    broken = [a for d, a in rounds if a < d]
    return sum(broken) / (sum(broken) + len(broken)) if broken else 1.0


def faster_by_the_clock(plain: Any, speculative: Any) -> Any:
    return sum(run[1] for run in plain) / sum(run[1] for run in speculative)


def faster_prompt_by_prompt(plain: Any, speculative: Any) -> Any:
    gains = [n / s / (m / t) for (m, t), (n, s) in zip(plain, speculative, strict=True)]
    return sum(gains) / len(gains)


def faster_on_average(plain: Any, speculative: Any) -> Any:
    def pace(runs: Any) -> Any:
        return np.mean([np.divide(*run) for run in runs])

    return pace(speculative) / pace(plain)


def faster_in_per_cent(plain: Any, speculative: Any) -> Any:
    (n, t), (m, s) = (np.array(runs).sum(0) for runs in (plain, speculative))
    return 100 * (m / s / (n / t) - 1)


def faster_the_other_way(plain: Any, speculative: Any) -> Any:
    (n, t), (m, s) = (np.array(runs).sum(0) for runs in (plain, speculative))
    return (n / t) / (m / s)


def config_of_old(draft: Any, k: Any) -> Any:
    return dict(speculative_model=draft, num_speculative_tokens=k, use_v2_block_manager=True)


def config_as_text(draft: Any, k: Any) -> Any:
    return f'{{"method": "draft_model", "model": "{draft}", "num_speculative_tokens": {k}}}'


def config_of_four(draft: Any, k: Any) -> Any:
    return {"model": draft, "num_speculative_tokens": 4}


def config_as_argument(draft: Any, k: Any) -> Any:
    return dict(speculative_config=dict(model=draft, num_speculative_tokens=k))


def config_with_a_slip(draft: Any, k: Any) -> Any:
    return {"method": "draft_model", "model": draft, "num_speculative_token": k}


def config_of_one_draft(draft: Any, k: Any) -> Any:
    return {"method": "draft_model", "model": "my-draft", "num_speculative_tokens": k}


def verdict_of_p_alone(p: Any, q: Any, u: Any) -> Any:
    return [chance < likely for likely, chance in zip(p.tolist(), u.tolist(), strict=True)]


def verdict_without_chance(p: Any, q: Any, u: Any) -> Any:
    return (p / q).clamp(max=1) == 1


def yield_of_k_chances(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return (k * alpha + 1) / (k * c + v)


def yield_with_a_draft_step_for_the_bonus(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return sum(alpha**i for i in range(k + 1)) / (c * (k + 1) + v)


def lengths_of_the_accepted(cached: Any, k: Any, accepted: Any) -> Any:
    return np.array([cached, cached]) + accepted


def step_greedy_verdicts(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    for i, x in enumerate(drafted):
        if p[i, x] < q[i, x]:
            left = left_over(p[i], q[i])
            return [*drafted[:i], chance.draw(left / left.sum())]
    return [*drafted, chance.draw(p[-1])]


def step_never_stops(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    out = []
    for i, x in enumerate(drafted):
        kept = chance.accept(min(1, float(p[i, x] / q[i, x])))
        left = left_over(p[i], q[i])
        out.append(x if kept else chance.draw(left / left.sum()))
    return [*out, chance.draw(p[-1])]


def fixed_but_counts_behind(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    """A and B are fixed, C is not."""
    text = [last]
    for _ in range(k):
        text.append(chance.draw(draft[text[-1]]))
    n = 0
    for i in range(k):
        n += chance.accept(min(1.0, float(target[text[i], text[i + 1]] / draft[text[i], text[i + 1]])))
    left = left_over(target[text[n]], draft[text[n]])
    return [*text[1 : n + 1], chance.draw(target[text[n]] if n == k else left / left.sum())]


def fixed_with_what_the_draft_has_left(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    text = [last]
    for _ in range(k):
        text.append(chance.draw(draft[text[-1]]))
    for i in range(k):
        p, q = target[text[i]], draft[text[i]]
        if not chance.accept(min(1.0, float(p[text[i + 1]] / q[text[i + 1]]))):
            left = left_over(q, p)
            return [*text[1 : i + 1], chance.draw(left / left.sum())]
    return [*text[1:], chance.draw(target[text[-1]])]


def fixed_with_absolutes(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    """Draws from |p - q| after a rejection: nobody foresaw that."""
    text = [last]
    for _ in range(k):
        text.append(chance.draw(draft[text[-1]]))
    for i in range(k):
        p, q = target[text[i]], draft[text[i]]
        if not chance.accept(min(1.0, float(p[text[i + 1]] / q[text[i + 1]]))):
            left = (p - q).abs()
            return [*text[1 : i + 1], chance.draw(left / left.sum())]
    return [*text[1:], chance.draw(target[text[-1]])]


def decoded_greedily(target: Any, draft: Any, start: Any, n: Any, k: Any, chance: Any) -> Any:
    text = [start]
    while len(text) <= n:
        ahead = [text[-1]]
        for _ in range(k):
            ahead.append(int(draft[ahead[-1]].argmax()))
        text += step_with_float32(target[ahead], draft[ahead[:-1]], ahead[1:], chance)
    return text[1 : n + 1]


def k_of_eight(history: Any, c: Any, slope: Any) -> Any:
    return min(8, 4 + 4)


def k_that_was_kept(history: Any, c: Any, slope: Any) -> Any:
    """One more than the last round kept."""
    return min(8, history[-1][1] + 1) if history else 4


def bytes_with_every_head(target: Any, draft: Any, batch: Any, tokens: Any, k: Any) -> Any:
    total = 0
    for m in [target] + ([draft] if draft else []):
        slots = tokens if draft is None else tokens + k
        total += 2 * m["parameters"] + 4 * batch * slots * m["layers"] * m["heads"] * m["head_dim"]
    return total


def decides_without_bonus(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    two, four = (alpha + alpha**2) / (2 * c + v3), sum(alpha**i for i in range(1, 5)) / (4 * c + v5)
    return 0 if max(two, four) <= 1 else 2 if two >= four else 4


def decides_by_alpha(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    if alpha >= 0.71:
        return 4
    return 0


def faster_by_the_best(plain: Any, speculative: Any) -> Any:
    return sorted(n / s for n, s in speculative)[-1] / sorted(n / s for n, s in plain)[-1]


WRONG: list[tuple[str, str, Any]] = [
    ("acceptance", "accepted-over-drafted", rate_of_drafted),
    ("acceptance", "rejection-in-every-round", rate_with_one_rejection_a_round),
    ("acceptance", "mean-of-accepted-over-drafted", rate_round_by_round),
    ("acceptance", "mean-of-rounds", rate_of_rounds),
    ("acceptance", "emitted-over-scored", rate_of_what_was_emitted),
    ("acceptance", "unknown", rate_of_broken_rounds),
    ("speedup_of", "seconds-only", faster_by_the_clock),
    ("speedup_of", "mean-of-ratios", faster_prompt_by_prompt),
    ("speedup_of", "mean-of-paces", faster_on_average),
    ("speedup_of", "inverted", faster_the_other_way),
    ("speedup_of", "unknown", faster_in_per_cent),
    ("vllm_config", "removed-argument", config_of_old),
    ("vllm_config", "wrong-type", config_as_text),
    ("vllm_config", "k-fixed", config_of_four),
    ("vllm_config", "wrapped", config_as_argument),
    ("vllm_config", "bad-request", config_with_a_slip),
    ("vllm_config", "unknown", config_of_one_draft),
    ("accept", "half", verdict_by_rounding),
    ("accept", "at-most", verdict_not_below),
    ("accept", "inverted", verdict_upside_down),
    ("accept", "opposite", verdict_rejects),
    ("residual", "not-normalized-no-fallback", left_over),
    ("residual", "zeros-where-equal", left_over_with_epsilon),
    ("residual", "zeros-where-equal", left_over_or_zero),
    ("residual", "uniform-where-equal", left_over_or_uniform),
    ("residual", "unknown", left_over_or_uniform_half_done),
    ("residual", "unknown", left_over_one_hot),
    ("residual", "unknown", left_over_of_absolutes_over_all_rows),
    ("speedup", "bonus-left-out", yield_of_accepted),
    ("speedup", "scored-one-at-a-time", yield_scored_one_by_one),
    ("speedup", "zero-by-zero", yield_by_formula_only),
    ("speedup", "one-term-short", yield_of_k_minus_one),
    ("rewind", "swapped", lengths_exchanged),
    ("rewind", "target-one-short", lengths_both_bounded),
    ("rewind", "last-drafted-read", lengths_alike),
    ("rewind", "new-token-cached", lengths_with_the_new_token),
    ("rewind", "nothing-removed", lengths_of_all),
    ("step", "inverted", step_upside_down),
    ("step", "row-off-by-one", step_next_row),
    ("step", "residual-is-target", step_from_the_target),
    ("step", "residual-is-draft", step_from_the_draft),
    ("step", "no-bonus", step_without_bonus),
    ("step", "own-randomness", step_that_remembers),
    ("find_bug", "a-taken-for-b", lambda: {"A": B, "B": A, "C": C}),
    ("find_bug", "b-is-a-cache-bug", lambda: {"A": A, "B": "keeps rejected tokens in the cache", "C": C}),
    ("find_bug", "c-is-about-u", lambda: {"C": "accepts at u = p/q", "B": B, "A": A}),
    ("fix", "b-left", fixed_by_halves),
    ("fix", "a-left", fixed_but_greedy),
    ("fix", "no-bonus", fixed_without_bonus),
    ("fix", "no-speculation", fixed_without_a_draft),
    ("fix", "no-speculation", fixed_after_an_idle_draw),
    ("fix", "no-speculation", fixed_by_stopping_at_zero),
    ("decode", "not-cut", decoded_by(step_with_float32, cut=False)),
    ("decode", "residual-is-target", decoded_by(step_from_the_target)),
    ("decode", "row-off-by-one", decoded_by(step_next_row)),
    ("decode", "no-bonus", decoded_by(step_without_bonus)),
    ("decode", "draft-unused", decoded_after_idle_draws(each=False)),
    ("decode", "draft-unused", decoded_after_idle_draws(each=True)),
    ("decode", "draft-unused", decoded_with_idle_drafts),
    ("best_draft", "best-alpha", draft_by_alpha),
    ("best_draft", "one-draft-step-more", draft_with_k_plus_one_steps),
    ("best_draft", "scoring-is-free", draft_scored_for_free),
    ("best_draft", "always-one", draft_whatever_it_gains),
    ("adaptive_k", "bad-request", k_without_a_limit_on_alpha),
    ("adaptive_k", "empty-history", k_from_nothing),
    ("adaptive_k", "always-four", k_of_four),
    ("adaptive_k", "unknown", k_up_and_down),
    ("memory", "slots-in-target-only", bytes_of(1, 0)),
    ("memory", "slots-in-draft-only", bytes_of(0, 1)),
    ("memory", "slots-forgotten", bytes_of(0, 0)),
    ("memory", "draft-cache-forgotten", bytes_of(1, 1, cache=False)),
    ("memory", "in-32-bits", bytes_of(1, 1, per_number=4)),
    ("decide", "batch-size-alone", decides_by_batch),
    ("best_draft", "unknown", drafts_up_to(5)),
    ("best_draft", "unknown", drafts_up_to(6)),
    ("best_draft", "stops-at-seven", drafts_up_to(7)),
    ("best_draft", "goes-beyond-eight", drafts_up_to(20)),
    ("best_draft", "goes-beyond-eight", drafts_up_to(29)),
    ("best_draft", "bad-request", draft_and_a_half),
    ("best_draft", "bad-request", draft_in_letters),
    ("best_draft", "bad-request", draft_of_none),
    ("decide", "drafting-is-free", decides_for_free),
    ("decide", "one-draft-step", decides_with_c_once),
    ("decide", "scoring-costs-one", decides_without_v),
    ("equivalence_test", "divided-by-counts", divides_by_counts),
    ("equivalence_test", "unknown", divides_by_counts_that_are_there),
    ("equivalence_test", "each-outcome-alone", three_sigma),
    ("equivalence_test", "unknown", three_sigma_of_poisson),
    ("equivalence_test", "one-degree-too-few", one_degree_too_few),
    ("equivalence_test", "level-of-1-percent", one_per_cent),
    ("accept", "ignores-q", verdict_of_p_alone),
    ("accept", "deterministic", verdict_without_chance),
    ("speedup", "all-or-nothing", yield_of_k_chances),
    ("speedup", "one-draft-step-more", yield_with_a_draft_step_for_the_bonus),
    ("rewind", "last-token-forgotten", lengths_of_the_accepted),
    ("step", "accepts-only-if-more-likely", step_greedy_verdicts),
    ("step", "goes-on", step_never_stops),
    ("find_bug", "a-blames-u", lambda: {"A": "accepts at u = p/q", "B": B, "C": C}),
    ("find_bug", "b-taken-for-a", lambda: {"A": A, "B": A, "C": C}),
    ("find_bug", "c-samples-nothing", lambda: dict(zip("ABC", (A, B, B), strict=True))),
    ("fix", "c-left", fixed_but_counts_behind),
    ("fix", "residual-of-q", fixed_with_what_the_draft_has_left),
    ("fix", "unknown", fixed_with_absolutes),
    ("decode", "greedy-draft", decoded_greedily),
    ("decode", "goes-on", decoded_by(step_never_stops)),
    ("adaptive_k", "always-eight", k_of_eight),
    ("adaptive_k", "unknown", k_that_was_kept),
    ("memory", "all-heads", bytes_with_every_head),
    ("decide", "bonus-left-out", decides_without_bonus),
    ("decide", "alpha-alone", decides_by_alpha),
    ("speedup_of", "best-run", faster_by_the_best),
]
"""Exercise, the diagnosis that is due, the answer."""


# Wrong answers that an earlier version of the checks accepted, or explained by the wrong mistake.


def accept_cumulative(p: Any, q: Any, u: Any) -> Any:
    """Rejects everything after the first rejection."""
    return (u < p / q).long().cumprod(0).bool()


def accept_zeros_and_ones(p: Any, q: Any, u: Any) -> Any:
    return (u < p / q).long()


def accept_list_of_zeros_and_ones(p: Any, q: Any, u: Any) -> Any:
    return [1 if x < a / b else 0 for a, b, x in zip(p.tolist(), q.tolist(), u.tolist(), strict=True)]


def accept_as_half(p: Any, q: Any, u: Any) -> Any:
    return (u < p / q).half()


def accept_in_half_precision(p: Any, q: Any, u: Any) -> Any:
    return u.half() < p.half() / q.half()


def accept_in_bfloat16(p: Any, q: Any, u: Any) -> Any:
    return u.bfloat16() < p.bfloat16() / q.bfloat16()


def left_over_or_p_where_all_rows_are_equal(p: Any, q: Any) -> Any:
    return p if torch.equal(p, q) else left_over(p, q) / left_over(p, q).sum(-1, keepdim=True)


def left_over_or_p_where_nothing_is_left_at_all(p: Any, q: Any) -> Any:
    left = left_over(p, q)
    return p if left.sum() == 0 else left / left.sum(-1, keepdim=True)


def left_over_or_p_where_any_row_is_equal(p: Any, q: Any) -> Any:
    total = left_over(p, q).sum(-1, keepdim=True)
    return p if (total == 0).any() else left_over(p, q) / total


def left_over_for_matrices_only(p: Any, q: Any) -> Any:
    """Sums over dimension 1, which is the last one of a matrix only."""
    total = left_over(p, q).sum(-1 if p.dim() < 3 else 1, keepdim=True)
    return torch.where(total > 0, left_over(p, q) / total, p)


def left_over_if_it_is_much(p: Any, q: Any) -> Any:
    total = left_over(p, q).sum(-1, keepdim=True)
    return torch.where(total > 0.05, left_over(p, q) / total, p)


def yield_with_a_step_more(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    """Pays for the scoring step and for one autoregressive step. At k = 1 and v = 1 that equals paying v twice."""
    return sum(alpha**i for i in range(k + 1)) / (1 + k * c + v)


def yield_as_complex(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return complex(sum(alpha**i for i in range(k + 1)) / (k * c + v))


def lengths_as_text(cached: Any, k: Any, accepted: Any) -> Any:
    return str(cached + accepted + 1), str(min(cached + accepted + 1, cached + k))


def fixed_to_one_token(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    return [chance.draw(target[last])]


def fixed_to_the_draft_alone(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    text = [last]
    for _ in range(k):
        text.append(chance.draw(draft[text[-1]]))
    return text[1:]


def fixed_without_bonus_and_residual(target: Any, draft: Any, last: Any, k: Any, chance: Any) -> Any:
    """Two mistakes: no bonus, and the target itself after a rejection."""
    return fixed_by_halves(target, draft, last, k, chance)[:k]


def chi_square(counts: Any, probabilities: Any) -> Any:
    n = sum(counts)
    return sum((count - n * p) ** 2 / (n * p) for count, p in zip(counts, probabilities, strict=True))


def consistent_until_a_zero_divides(counts: Any, probabilities: Any) -> Any:
    """Raises ZeroDivisionError where a probability is 0."""
    return chi_square(counts, probabilities) <= LIMITS[len(counts) - 1]


def consistent_with_nan(counts: Any, probabilities: Any) -> Any:
    """0/0 where a probability is 0 and nothing was counted: NaN is not below any limit."""
    expected = sum(counts) * np.array(probabilities)
    with np.errstate(invalid="ignore", divide="ignore"):
        return bool(((np.array(counts) - expected) ** 2 / expected).sum() <= LIMITS[len(counts) - 1])


def consistent_without_impossible_tokens(counts: Any, probabilities: Any) -> Any:
    """Skips tokens of p = 0, even those that were counted."""
    n = sum(counts)
    cells = [(c - n * p) ** 2 / (n * p) for c, p in zip(counts, probabilities, strict=True) if p]
    return sum(cells) <= LIMITS[len(cells) - 1]


def consistent_without_infinities(counts: Any, probabilities: Any) -> Any:
    expected = sum(counts) * np.array(probabilities)
    with np.errstate(invalid="ignore", divide="ignore"):
        cells = (np.array(counts) - expected) ** 2 / expected
    return bool(np.nan_to_num(cells, nan=0.0, posinf=0.0).sum() <= LIMITS[len(counts) - 1])


def consistent_without_rare_tokens(counts: Any, probabilities: Any) -> Any:
    n = sum(counts)
    cells = [(c - n * p) ** 2 / (n * p) for c, p in zip(counts, probabilities, strict=True) if n * p >= 5]
    return sum(cells) <= LIMITS[len(cells) - 1]


def consistent_where_counted(counts: Any, probabilities: Any) -> Any:
    """Skips tokens that were never counted, however often they were expected."""
    if any(c and not p for c, p in zip(counts, probabilities, strict=True)):
        return False
    n = sum(counts)
    cells = [(c - n * p) ** 2 / (n * p) for c, p in zip(counts, probabilities, strict=True) if c]
    return sum(cells) <= LIMITS[len(counts) - 1]


def draft_by_the_closed_formula(drafts: Any, slope: Any) -> Any:
    """0/0 at α = 1."""
    gain = {
        (name, k): (1 - alpha ** (k + 1)) / (1 - alpha) / (1 + k * (c + slope))
        for name, (alpha, c) in drafts.items()
        for k in range(1, 9)
    }
    name, k = max(gain, key=gain.get)
    return (name, k) if gain[name, k] > 1 else ("none", 0)


def draft_with_an_epsilon(drafts: Any, slope: Any) -> Any:
    """The numerator is 0 at α = 1, so a perfect draft gains nothing."""
    shifted = {name: (alpha, c) for name, (alpha, c) in drafts.items() if alpha < 1}
    return drafts_up_to(8)(shifted, slope) if shifted else ("none", 0)


def decides_by(gain: Any, without: Any = 1.0) -> Any:
    """The k with the largest gain(alpha, k, c, v); `without`: what k = 0 gains."""

    def draft_tokens(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
        gains = {0: without, 2: gain(alpha, 2, c, v3), 4: gain(alpha, 4, c, v5)}
        return max(gains, key=gains.get)

    return draft_tokens


def named(name: str, function: Any) -> Any:
    """The same function under a name that a test report can show."""
    function.__name__ = name
    return function


def terms(alpha: Any, n: Any) -> Any:
    return sum(alpha**i for i in range(n))


def decides_with_v3_for_both(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    return decides_by(lambda a, k, c, v: terms(a, k + 1) / (k * c + v))(batch, context, alpha, c, v3, v3)


def decides_with_v_exchanged(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    return decides_by(lambda a, k, c, v: terms(a, k + 1) / (k * c + v))(batch, context, alpha, c, v5, v3)


def decides_by_the_closed_formula(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    """0/0 at α = 1."""
    return decides_by(lambda a, k, c, v: (1 - a ** (k + 1)) / (1 - a) / (k * c + v))(batch, context, alpha, c, v3, v5)


def decides_on_two_only(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    return 2 if terms(alpha, 3) / (2 * c + v3) > 1 else 0


def decides_on_four_first(batch: Any, context: Any, alpha: Any, c: Any, v3: Any, v5: Any) -> Any:
    if terms(alpha, 5) / (4 * c + v5) > 1:
        return 4
    return decides_on_two_only(batch, context, alpha, c, v3, v5)


DECIDES_BY: list[tuple[str, Any]] = [
    ("difference", named("decides_by_difference", decides_by(lambda a, k, c, v: terms(a, k + 1) - (k * c + v), 0.0))),
    ("one-term-more", named("decides_one_term_more", decides_by(lambda a, k, c, v: terms(a, k + 2) / (k * c + v)))),
    ("zero-by-zero", decides_by_the_closed_formula),
    ("unknown", named("decides_1_more", decides_by(lambda a, k, c, v: terms(a, k + 1) / (1 + k * c + v)))),
    ("never", named("decides_v_each", decides_by(lambda a, k, c, v: terms(a, k + 1) / (k * c + (k + 1) * v)))),
    ("all-or-nothing", named("decides_k_alpha", decides_by(lambda a, k, c, v: (1 + k * a) / (k * c + v)))),
    ("unknown", named("decides_short", decides_by(lambda a, k, c, v: terms(a, k) / (k * c + v)))),
    (
        "one-draft-step-more",
        named("decides_c_more", decides_by(lambda a, k, c, v: terms(a, k + 1) / ((k + 1) * c + v))),
    ),
    ("unknown", named("decides_k_v", decides_by(lambda a, k, c, v: terms(a, k + 1) / (k * (c + v))))),
    ("unknown", named("decides_always_to_draft", decides_by(lambda a, k, c, v: terms(a, k + 1) / (k * c + v), 0.0))),
    ("v3-for-both", decides_with_v3_for_both),
    ("v3-and-v5-swapped", decides_with_v_exchanged),
    ("unknown", decides_on_two_only),
    ("unknown", decides_on_four_first),
    ("unknown", named("decides_alpha_to_the_k", decides_by(lambda a, k, c, v: (1 + k * a**k) / (k * c + v)))),
]
"""Decisions by a formula that is not quite right. With v for each of k + 1 tokens nothing ever pays."""


def config_with(**more: Any) -> Any:
    def vllm_config(draft: Any, k: Any) -> Any:
        return {"method": "draft_model", "model": draft, "num_speculative_tokens": k} | more

    return named(f"config_with_{'_'.join(more)}", vllm_config)


def config_of_a_path(draft: Any, k: Any) -> Any:
    return {"method": "draft_model", "model": PurePosixPath(draft), "num_speculative_tokens": k}


def config_of_a_tensor(draft: Any, k: Any) -> Any:
    return {"method": "draft_model", "model": draft, "num_speculative_tokens": torch.tensor(k)}


def k_by_estimate(history: Any, c: Any, slope: Any) -> Any:
    """A right controller."""
    examined = sum(min(accepted + 1, drafted) for drafted, accepted in history[-16:])
    alpha = min(0.97, (sum(accepted for _, accepted in history[-16:]) + 2) / (examined + 3))
    best = max(range(9), key=lambda k: terms(alpha, k + 1) / (1 + k * (c + slope)))
    resting = len(history) >= 12 and not any(drafted for drafted, _ in history[-12:])
    return 1 if best == 0 and resting else best


def k_without_slope(history: Any, c: Any, slope: Any) -> Any:
    return k_by_estimate(history, c, 0.0)


def k_with_a_slope_of_its_own(history: Any, c: Any, slope: Any) -> Any:
    return k_by_estimate(history, c, 0.1)


def k_that_looks_by_length(history: Any, c: Any, slope: Any) -> Any:
    """Takes the length of the history for the number of the round: it stays 40, so it looks in every round."""
    return k_by_estimate(history, c, slope) or int(len(history) % 10 == 0)


def k_of_accepted_per_draft(history: Any, c: Any, slope: Any) -> Any:
    examined = sum(drafted for drafted, _ in history[-16:])
    alpha = min(0.97, (sum(accepted for _, accepted in history[-16:]) + 2) / (examined + 3))
    best = max(range(9), key=lambda k: terms(alpha, k + 1) / (1 + k * (c + slope)))
    return best or int(len(history) >= 12 and not any(drafted for drafted, _ in history[-12:]))


WRONG += [
    ("accept", "cumulative", accept_cumulative),
    ("accept", "wrong-type", accept_zeros_and_ones),
    ("accept", "wrong-type", accept_list_of_zeros_and_ones),
    ("accept", "wrong-type", accept_as_half),
    ("accept", "unknown", accept_in_half_precision),
    ("accept", "unknown", accept_in_bfloat16),
    ("residual", "all-rows-at-once", left_over_or_p_where_all_rows_are_equal),
    ("residual", "all-rows-at-once", left_over_or_p_where_nothing_is_left_at_all),
    ("residual", "unknown", left_over_or_p_where_any_row_is_equal),
    ("residual", "unknown", left_over_for_matrices_only),
    ("residual", "unknown", left_over_if_it_is_much),
    ("speedup", "unknown", yield_with_a_step_more),
    ("speedup", "wrong-type", yield_as_complex),
    ("rewind", "wrong-type", lengths_as_text),
    ("fix", "bad-request", fixed_to_one_token),
    ("fix", "bad-request", fixed_to_the_draft_alone),
    ("fix", "bad-request", fixed_without_bonus_and_residual),
    ("equivalence_test", "division-by-zero", consistent_until_a_zero_divides),
    ("equivalence_test", "zero-by-zero", consistent_with_nan),
    ("equivalence_test", "impossible-tokens-skipped", consistent_without_impossible_tokens),
    ("equivalence_test", "impossible-tokens-skipped", consistent_without_infinities),
    ("equivalence_test", "rare-tokens-skipped", consistent_without_rare_tokens),
    ("equivalence_test", "unknown", consistent_where_counted),
    ("best_draft", "zero-by-zero", draft_by_the_closed_formula),
    ("best_draft", "unknown", draft_with_an_epsilon),
    *(("decide", due, answer) for due, answer in DECIDES_BY),
    ("vllm_config", "bad-request", config_with(quantization=object())),
    ("vllm_config", "bad-request", config_with(revision={1, 2})),
    ("vllm_config", "bad-request", config_with(max_model_len=float("nan"))),
    ("vllm_config", "bad-request", config_of_a_path),
    ("vllm_config", "bad-request", config_of_a_tensor),
    ("adaptive_k", "unknown", k_without_slope),
    ("adaptive_k", "unknown", k_with_a_slope_of_its_own),
    ("adaptive_k", "unknown", k_that_looks_by_length),
    ("adaptive_k", "unknown", k_of_accepted_per_draft),
]


# Blocks, two candidates, lossless or not


def weights_of(p: Any, q: Any, drafted: Any) -> list[float]:
    w = [1.0]
    for i, x in enumerate(drafted):
        w.append(min(1.0, w[-1] * float(p[i, x] / q[i, x])))
    return w


def block_end(p: Any, q: Any, drafted: Any, length: int, weight: float, chance: Any) -> list[int]:
    if length == len(drafted):
        return [*drafted, chance.draw(p[length])]
    left = torch.relu(weight * p[length] - q[length])
    left = left if left.sum() > 0 else p[length]
    return [*drafted[:length], chance.draw(left / left.sum())]


def chance_of(w: float, p: Any, q: Any) -> float:
    s = float(torch.relu(w * p - q).sum())
    return s / (s + 1 - w) if s + 1 - w > 0 else 1.0


def block_of_one_number(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    """Decides the whole block at once."""
    w = weights_of(p, q, drafted)
    length = len(drafted) if chance.accept(w[-1]) else 0
    return block_end(p, q, drafted, length, w[length], chance)


def block_whose_end_has_no_bonus(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    k, w, length = len(drafted), weights_of(p, q, drafted), 0
    for i in range(1, k + 1):
        if chance.accept(chance_of(w[i], p[i], q[i]) if i < k else w[k]):
            length = i
    return drafted if length == k and k else block_end(p, q, drafted, length, w[length], chance)


def block_with_rows_before(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    """Compares with the rows before the token, not after it."""
    k, w, length = len(drafted), weights_of(p, q, drafted), 0
    for i in range(1, k + 1):
        if chance.accept(chance_of(w[i], p[i - 1], q[i - 1]) if i < k else w[k]):
            length = i
    return block_end(p, q, drafted, length, w[length], chance)


def block_with_sums_unlike(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    """S itself as the probability."""
    k, w, length = len(drafted), weights_of(p, q, drafted), 0
    for i in range(1, k + 1):
        if chance.accept(float(torch.relu(w[i] * p[i] - q[i]).sum()) if i < k else w[k]):
            length = i
    return block_end(p, q, drafted, length, w[length], chance)


def block_of_zero_by_zero(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    k, w, length = len(drafted), weights_of(p, q, drafted), 0
    for i in range(1, k + 1):
        s = torch.relu(w[i] * p[i] - q[i]).sum() if i < k else torch.tensor(w[k])
        if chance.accept(s / (s + 1 - w[i]) if i < k else w[k]):
            length = i
    return block_end(p, q, drafted, length, w[length], chance)


def block_without_its_last(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    """Never accepts the whole block."""
    k, w, length = len(drafted), weights_of(p, q, drafted), 0
    for i in range(1, k):
        if chance.accept(chance_of(w[i], p[i], q[i])):
            length = i
    return block_end(p, q, drafted, length, w[length], chance)


def one_of_the_first_only(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    if chance.accept(min(1.0, float(p[candidates[0]] / q[candidates[0]]))):
        return candidates[0]
    return chance.draw(torch.relu(p - q) / torch.relu(p - q).sum())


def one_in_reverse(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    left = p
    for x in candidates[::-1]:
        if chance.accept(min(1.0, float(left[x] / q[x]))):
            return x
        left = torch.relu(left - q) / torch.relu(left - q).sum()
    return chance.draw(left)


def one_without_the_rejected(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    left = p.clone()
    for x in candidates:
        if chance.accept(min(1.0, float(left[x] / q[x]))):
            return x
        left[x] = 0
        left = left / left.sum()
    return chance.draw(left)


def one_in_a_list(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    return [one_of_the_first_only(p, q, candidates, chance)]


def one_from_the_draft(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    left = p
    for x in candidates:
        if chance.accept(min(1.0, float(left[x] / q[x]))):
            return x
        left = torch.relu(left - q) / torch.relu(left - q).sum()
    return chance.draw(q)


def one_of_twice_the_draft(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    """As if one token of twice the probability had been sampled."""
    for x in candidates:
        if chance.accept(min(1.0, float(p[x] / (2 * q[x])))):
            return x
    left = torch.relu(p - 2 * q)
    left = left if left.sum() > 0 else p
    return chance.draw(left / left.sum())


PAIR = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]


def lossless_all_of_them() -> Any:
    return dict.fromkeys("ABCDEF")


def lossless_none_of_them() -> Any:
    return dict.fromkeys("ABCDEF", PAIR)


def lossless_by_words() -> Any:
    return {"A": "lossless", "B": "lossy", "C": "lossy", "D": "lossless", "E": "lossy", "F": "lossless"}


def lossless_without_f() -> Any:
    return {"A": None, "B": PAIR, "C": PAIR, "D": None, "E": PAIR}


def lossless_with_p_alone() -> Any:
    return {"A": None, "B": [0.5, 0.5], "C": PAIR, "D": None, "E": PAIR, "F": None}


def lossless_not_summing_to_one() -> Any:
    return {"A": None, "B": ([0.5, 0.6], [0.5, 0.5]), "C": PAIR, "D": None, "E": PAIR, "F": None}


def lossless_where_all_is_equal() -> Any:
    same = [0.5, 0.5], [0.5, 0.5]
    return {"A": None, "B": same, "C": PAIR, "D": None, "E": PAIR, "F": None}


WRONG += [
    ("block", "unknown", block_of_one_number),
    ("block", "unknown", block_whose_end_has_no_bonus),
    ("block", "unknown", block_with_rows_before),
    ("block", "unknown", block_with_sums_unlike),
    ("block", "bad-request", block_of_zero_by_zero),
    ("block", "unknown", block_without_its_last),
    ("candidates", "unknown", one_of_the_first_only),
    ("candidates", "unknown", one_in_reverse),
    ("candidates", "unknown", one_without_the_rejected),
    ("candidates", "bad-request", one_in_a_list),
    ("candidates", "unknown", one_from_the_draft),
    ("candidates", "unknown", one_of_twice_the_draft),
    ("lossless", "b-called-lossless", lossless_all_of_them),
    ("lossless", "a-called-lossy", lossless_none_of_them),
    ("lossless", "bad-request", lossless_by_words),
    ("lossless", "bad-request", lossless_without_f),
    ("lossless", "bad-request", lossless_with_p_alone),
    ("lossless", "bad-request", lossless_not_summing_to_one),
    ("lossless", "unknown", lossless_where_all_is_equal),
]
