"""Graders, tested: right answers of several styles pass, each wrong one ends in its own diagnosis, nothing raises."""

import json
import math
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch

from specdec_lab.teaching.exercises import check, hint, picture, progress, solution
from specdec_lab.teaching.exercises.beyond_one import SAMPLERS, distance
from specdec_lab.teaching.exercises.catalogue import EXERCISES, exercise_named
from specdec_lab.teaching.exercises.exercise import Exercise, ExerciseCase, Misconception, given
from specdec_lab.teaching.exercises.hidden import STEP, with_telling_cases
from specdec_lab.teaching.exercises.judging import HIDDEN_SEEDS, PUBLIC_SEED, judge
from specdec_lab.teaching.exercises.outcomes import BadRequest, Chance, distribution
from specdec_lab.teaching.exercises.showing import ShownResult
from specdec_ref.errors import SpecdecError

ROOT = Path(__file__).parents[1]
ALL = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)
MISTAKES = [(e, m) for e in EXERCISES.values() for m in e.misconceptions]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_PROGRESS", str(tmp_path / "progress.json"))


def accepts_loop(p: Any, q: Any, u: Any) -> Any:
    return [bool(b < min(1.0, float(x) / float(y))) for x, y, b in zip(p, q, u, strict=True)]


def accepts_product(p: Any, q: Any, u: Any) -> Any:
    return u * q < p


def accepts_numpy(p: Any, q: Any, u: Any) -> Any:
    return u.numpy() < (p / q).clamp(max=1).float().numpy()


def accepts_list_of_tensors(p: Any, q: Any, u: Any) -> Any:
    return [bound < x / y for x, y, bound in zip(p, q, u, strict=True)]


def accepts_float32(p: Any, q: Any, u: Any) -> Any:
    return u.float() < (p.float() / q.float()).clamp(max=1)


def residual_row_by_row(p: Any, q: Any) -> Any:
    if p.dim() > 1:
        return torch.stack([residual_row_by_row(x, y) for x, y in zip(p, q, strict=True)])
    rest = (p - q).clamp(min=0)
    return rest / rest.sum() if rest.any() else p


def residual_loop(p: Any, q: Any) -> Any:
    rows = p.reshape(-1, p.shape[-1]).tolist(), q.reshape(-1, q.shape[-1]).tolist()
    out = []
    for a, b in zip(*rows, strict=True):
        rest = [max(0.0, x - y) for x, y in zip(a, b, strict=True)]
        out.append([r / sum(rest) for r in rest] if sum(rest) else a)
    return torch.tensor(out).reshape(p.shape)


def residual_by_minimum(p: Any, q: Any) -> Any:
    kept = torch.minimum(p, q)
    left = 1 - kept.sum(-1, keepdim=True)
    return torch.where(left > 1e-9, (p - kept) / left.clamp(min=1e-30), p)


def residual_float32(p: Any, q: Any) -> Any:
    rest = torch.relu(p.float() - q.float())
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest / rest.sum(-1, keepdim=True), p.float())


def step_while(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    i = 0
    while i < len(drafted):
        if not chance.accept((p[i, drafted[i]] / q[i, drafted[i]]).clamp(max=1)):
            left = (p[i] - q[i]).clip(0)
            return (*drafted[:i], chance.draw((left / left.sum()).float()))
        i += 1
    return (*drafted, chance.draw(p[-1].tolist()))


def step_certain_without_asking(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    out: list[int] = []
    for i, x in enumerate(drafted):
        if p[i, x] >= q[i, x] or chance.accept(p[i, x] / q[i, x]):
            out.append(x)
        else:
            rest = torch.relu(p[i] - q[i])
            return torch.tensor([*out, chance.draw(rest / rest.sum())])
    return torch.tensor([*out, chance.draw(p[len(drafted)])])


def step_all_verdicts_first(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    keep = [chance.accept(min(1.0, float(p[i, x] / q[i, x]))) for i, x in enumerate(drafted)]
    n = ([*keep, False]).index(False)
    rest = p[n] - q[n].clamp(max=1) if n < len(drafted) else p[n]
    rest = rest.clamp(min=0)
    return [*drafted[:n], chance.draw(rest / rest.sum())]


def speedup_sum(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return sum(alpha**i for i in range(k + 1)) / (v + c * k)


def speedup_tensor(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    return torch.tensor(alpha, dtype=torch.float32).pow(torch.arange(k + 1)).sum() / (k * c + v)


def speedup_recursive(alpha: Any, k: Any, c: Any, v: Any) -> Any:
    tokens = 1.0
    for _ in range(k):
        tokens = 1 + alpha * tokens
    return tokens / (k * c + v)


def rewind_by_cases(cached: int, k: int, accepted: int) -> Any:
    return (cached + accepted + 1, cached + accepted + 1) if accepted < k else (cached + k + 1, cached + k)


def fixed_draws(target: Any, draft: Any, last: int, k: int, chance: Any) -> Any:
    rows, drafted = [], []
    for _ in range(k):
        rows.append(draft[drafted[-1]] if drafted else draft[last])
        drafted.append(chance.draw(rows[-1]))
    return step_while(target[[last, *drafted]], torch.stack(rows), drafted, chance)


def fixed_one_hot(target: Any, draft: Any, last: int, k: int, chance: Any) -> Any:
    """Draft the most likely token and report a one-hot q."""
    drafted: list[int] = []
    for _ in range(k):
        drafted.append(int(draft[[last, *drafted][-1]].argmax()))
    p = target[[last, *drafted]]
    for i, x in enumerate(drafted):
        if not chance.accept(p[i, x]):
            rest = p[i].clone()
            rest[x] = 0
            return [*drafted[:i], chance.draw(rest / rest.sum())]
    return [*drafted, chance.draw(p[k])]


def fixed_while_equal(target: Any, draft: Any, last: int, k: int, chance: Any) -> Any:
    """Draws from the target, and goes on while the draft said the same: exact, too, and accepts less."""
    said = [last]
    for _ in range(k):
        theirs, ours = chance.draw(draft[said[-1]]), chance.draw(target[said[-1]])
        said.append(ours)
        if ours != theirs:
            return said[1:]
    return [*said[1:], chance.draw(target[said[-1]])]


def fixed_while_likeliest(target: Any, draft: Any, last: int, k: int, chance: Any) -> Any:
    """Sample from the target only, and continue while the sample is the draft's most likely token."""
    said = [last]
    while len(said) <= k + 1:
        before = said[-1]
        said.append(chance.draw(target[before]))
        if said[-1] != int(draft[before].argmax()):
            break
    return said[1:]


def find_bug_by_words() -> Any:
    from specdec_lab.teaching.exercises.judgement import BUGS

    words = {"A": "reports a different q", "B": "samples from the target", "C": "accepts tokens after"}
    return {letter: next(bug for bug in BUGS if bug.startswith(start)) for letter, start in words.items()}


def find_bug_literally() -> Any:
    return {
        "C": "accepts tokens after a rejection",
        "B": "samples from the target after a rejection",
        "A": "reports a different q than it sampled from",
    }


def find_bug_step_by_step() -> Any:
    answer = {}
    answer["A"] = "reports a different q than it sampled from"
    answer["B"] = "samples from the target after a rejection"
    answer["C"] = "accepts tokens after a rejection"
    return answer


def consistent_by_scipy(counts: Any, probabilities: Any) -> Any:
    from scipy.stats import chisquare

    possible = np.array(probabilities) > 0
    if np.array(counts)[~possible].any():
        return False
    expected = np.array(probabilities)[possible] * sum(counts)
    return chisquare(np.array(counts)[possible], expected).pvalue >= 0.001


def consistent_by_loop(counts: Any, probabilities: Any) -> Any:
    limits = {1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 9: 27.877}
    total, statistic = sum(counts), 0.0
    for count, p in zip(counts, probabilities, strict=True):
        statistic += (count - total * p) ** 2 / max(total * p, 1e-9)
    return statistic <= limits[len(counts) - 1]


def consistent_by_likelihood(counts: Any, probabilities: Any) -> Any:
    """Another statistic, as good: the likelihood ratio."""
    from scipy.stats import chi2

    n = sum(counts)
    if any(c and not p for c, p in zip(counts, probabilities, strict=True)):
        return False
    g = 2 * sum(c * math.log(c / (n * p)) for c, p in zip(counts, probabilities, strict=True) if c)
    return g <= chi2.isf(0.001, len(counts) - 1)


def decode_by_step(target: Any, draft: Any, start: int, n: int, k: int, chance: Any) -> Any:
    text = [start]
    while len(text) <= n:
        begin = len(text) - 1
        for _ in range(k):
            text.append(chance.draw(draft[text[-1]]))
        drafted, text = text[begin + 1 :], text[: begin + 1]
        rows = [text[-1], *drafted]
        text += step_while(target[rows], draft[rows[:-1]], drafted, chance)
    return text[1 : n + 1]


def decode_never_drafts_too_far(target: Any, draft: Any, start: int, n: int, k: int, chance: Any) -> Any:
    """Drafts no more than can still be used."""
    text: list[int] = []
    while len(text) < n:
        last, drafted = ([start, *text])[-1], []
        for _ in range(min(k, n - len(text) - 1)):
            drafted.append(chance.draw(draft[([last, *drafted])[-1]]))
        rows = [last, *drafted]
        text += step_all_verdicts_first(target[rows], draft[rows[:-1]], drafted, chance)
    return text


def decode_while_equal(target: Any, draft: Any, start: int, n: int, k: int, chance: Any) -> Any:
    """In float32, from NumPy, as a tuple; and another rule that is as exact."""
    text = [start]
    while len(text) <= n:
        text += fixed_while_equal(target.float().numpy(), draft.float().numpy(), text[-1], k, chance)
    return tuple(text[1 : n + 1])


def decode_while_equal_to_the_end(target: Any, draft: Any, start: int, n: int, k: int, chance: Any) -> Any:
    """The same, and drafts no more than can still be used."""
    text = [start]
    while len(text) <= n:
        text += fixed_while_equal(target, draft, text[-1], min(k, n - len(text)), chance)
    return text[1:]


def best_draft_loops(drafts: Any, slope: Any) -> Any:
    best, choice = 1.0, ("none", 0)
    for name in sorted(drafts):
        alpha, c = drafts[name]
        for k in range(8, 0, -1):
            gain = sum(alpha**i for i in range(k + 1)) / (1 + k * (c + slope))
            if gain > best:
                best, choice = gain, (name, k)
    return choice


def best_draft_by_package(drafts: Any, slope: Any) -> Any:
    import specdec_ref as sd

    def gain(name: str, k: int) -> float:
        return float(sd.predicted_speedup(drafts[name][0], k, drafts[name][1], lambda n: 1 + slope * (n - 1)))

    name, k = max(((n, k) for n in drafts for k in range(1, 9)), key=lambda option: gain(*option))
    return [name, k] if gain(name, k) > 1 else ["none", 0]


def best_draft_by_numpy(drafts: Any, slope: Any) -> Any:
    ks, names = np.arange(1, 9), list(drafts)
    alpha, c = np.array([drafts[n] for n in names]).T
    tokens = (alpha[:, None] ** np.arange(9)).cumsum(1)[:, 1:]
    gain = tokens / (ks * c[:, None] + 1 + slope * ks)
    i, j = np.unravel_index(gain.argmax(), gain.shape)
    return (names[i], int(ks[j])) if gain.max() > 1 else ("none", 0)


def adaptive_with_a_prior(history: Any, c: Any, slope: Any) -> Any:
    kept = 2.0 + sum(a for _, a in history[-16:])
    examined = 3.0 + sum(min(a + 1, d) for d, a in history[-16:])
    alpha = min(0.97, kept / examined)
    gains = [sum(alpha**i for i in range(k + 1)) / (1 + k * (c + slope)) for k in range(9)]
    best = int(np.argmax(gains))
    resting = len(history) >= 12 and not any(d for d, _ in history[-12:])
    return 1 if best == 0 and resting else best


def adaptive_with_forgetting(history: Any, c: Any, slope: Any) -> Any:
    kept, examined = 0.7, 1.0
    for d, a in history:
        kept, examined = 0.9 * kept + a, 0.9 * examined + min(a + 1, d)
    alpha = min(0.97, (kept + 0.05) / (examined + 0.1))
    best = max(range(9), key=lambda k: (1 - alpha ** (k + 1)) / (1 - alpha) / (1 + k * (c + slope)))
    return best or int(len(history) >= 18 and not any(d for d, _ in history[-18:]))


def adaptive_by_moving_average(history: Any, c: Any, slope: Any) -> Any:
    """The mean of rates of rounds, old ones counting less. Too low as an estimate of α, and good enough."""
    alpha = 0.7
    for drafted, accepted in history:
        if drafted:
            alpha = 0.8 * alpha + 0.2 * accepted / min(accepted + 1, drafted)
    return best_k_or_look_again(min(alpha, 0.95), history, 15, c, slope)


def adaptive_without_a_prior(history: Any, c: Any, slope: Any) -> Any:
    examined = sum(min(accepted + 1, drafted) for drafted, accepted in history)
    alpha = sum(accepted for _, accepted in history) / examined if examined else 0.8
    return best_k_or_look_again(min(alpha, 0.95), history, 20, c, slope)


def adaptive_that_looks_again_late(history: Any, c: Any, slope: Any) -> Any:
    examined = 1 + sum(min(accepted + 1, drafted) for drafted, accepted in history)
    alpha = (0.7 + sum(accepted for _, accepted in history)) / examined
    return best_k_or_look_again(min(alpha, 0.98), history, 39, c, slope)


def adaptive_after_a_warm_up(history: Any, c: Any, slope: Any) -> Any:
    if len(history) < 3:
        return 4
    examined = 1 + sum(min(accepted + 1, drafted) for drafted, accepted in history[-20:])
    alpha = (0.5 + sum(accepted for _, accepted in history[-20:])) / examined
    return best_k_or_look_again(min(alpha, 0.98), history, 15, c, slope)


def best_k_or_look_again(alpha: float, history: Any, rest: int, c: float, slope: float) -> int:
    """The best k; one token where none was drafted for so many rounds."""
    gains = [sum(alpha**i for i in range(k + 1)) / (1 + k * (c + slope)) for k in range(9)]
    resting = len(history) >= rest and not any(drafted for drafted, _ in history[-rest:])
    return int(np.argmax(gains)) or int(resting)


def adaptive_by_package(history: Any, c: Any, slope: Any) -> Any:
    from specdec_ref.control import CostModelSpeculation
    from specdec_ref.decoding import Round

    model = CostModelSpeculation(8, c=c, v=lambda n: 1 + slope * (n - 1))
    for d, a in history[-15:]:
        model.next_k()
        model.observe([Round((0,) * d, a, (0,) * (a + 1), 0.0, 0.0)])
    return model.next_k()


def memory_with_names(target: Any, draft: Any, batch: int, tokens: int, k: int) -> Any:
    def cache(m: Any, slots: int) -> int:
        per_token = m["layers"] * m["kv_heads"] * m["head_dim"] * (1 + 1) * 2
        return int(per_token * slots * batch)

    if not draft:
        return target["parameters"] * 2 + cache(target, tokens)
    return (target["parameters"] + draft["parameters"]) * 2 + cache(target, tokens + k) + cache(draft, tokens + k)


def memory_as_float(target: Any, draft: Any, batch: int, tokens: int, k: int) -> Any:
    return float(memory_with_names(target, draft, batch, tokens, k))


def memory_by_tensor(target: Any, draft: Any, batch: int, tokens: int, k: int) -> Any:
    return torch.tensor(memory_with_names(target, draft, batch, tokens, k), dtype=torch.float64)


def decide_by_branches(batch: int, context: int, alpha: float, c: float, v3: float, v5: float) -> Any:
    two = (1 + alpha + alpha**2) / (2 * c + v3)
    four = (1 + alpha + alpha**2 + alpha**3 + alpha**4) / (4 * c + v5)
    if max(two, four) <= 1:
        return 0
    return 4 if four > two else 2


def decide_by_package(batch: int, context: int, alpha: float, c: float, v3: float, v5: float) -> Any:
    import specdec_ref as sd

    v = {1: 1.0, 3: v3, 5: v5}
    return max((0, 2, 4), key=lambda k: float(sd.predicted_speedup(alpha, k, c, v[k + 1])))


def decide_carefully(batch: int, context: int, alpha: float, c: float, v3: float, v5: float) -> Any:
    """Asks for two per cent of gain before it speculates."""
    gains = {2: np.polyval([1] * 3, alpha) / (2 * c + v3), 4: np.polyval([1] * 5, alpha) / (4 * c + v5)}
    best = max(gains, key=lambda k: gains[k])
    return best if gains[best] > 1.02 else 0


def rate_by_numpy(rounds: Any) -> Any:
    drafted, accepted = np.array(rounds).T
    return accepted.sum() / np.minimum(accepted + 1, drafted).sum()


def rate_without_empty_rounds(rounds: Any) -> Any:
    examined = [(accepted, accepted + 1 if accepted < drafted else accepted) for drafted, accepted in rounds if drafted]
    return sum(accepted for accepted, _ in examined) / sum(number for _, number in examined)


def rate_of_verdicts(rounds: Any) -> Any:
    verdicts: list[bool] = []
    for drafted, accepted in rounds:
        verdicts += [True] * accepted + [False] * (accepted < drafted)
    return torch.tensor(verdicts, dtype=torch.float32).mean()


def rate_by_package(rounds: Any) -> Any:
    from specdec_ref.api import Generation
    from specdec_ref.decoding import Round

    made = tuple(Round((0,) * drafted, accepted, (0,) * (accepted + 1), 0.0, 0.0) for drafted, accepted in rounds)
    return Generation((), (), "", made, 1.0, "length").acceptance_rate


def faster_by_numpy(plain: Any, speculative: Any) -> Any:
    (n, t), (m, s) = (np.array(runs).sum(0) for runs in (plain, speculative))
    return m * t / (n * s)


def faster_per_token(plain: Any, speculative: Any) -> Any:
    each = [sum(s for _, s in runs) / sum(n for n, _ in runs) for runs in (plain, speculative)]
    return Fraction(each[0]) / Fraction(each[1])


def faster_by_tensor(plain: Any, speculative: Any) -> Any:
    totals = torch.stack([torch.tensor(runs, dtype=torch.float64).sum(0) for runs in (plain, speculative)])
    pace = totals[:, 0] / totals[:, 1]
    return (pace[1] / pace[0]).float()


def config_by_package(draft: str, k: int) -> Any:
    from specdec_lab.serving.configuration import speculative_config

    return speculative_config(draft, k)


def config_without_a_method(draft: str, k: int) -> Any:
    return dict(num_speculative_tokens=k, model=draft)


def config_with_more_said(draft: str, k: int) -> Any:
    config: dict[str, Any] = {"draft_tensor_parallel_size": 1, "method": "draft_model"}
    config["model"], config["num_speculative_tokens"] = draft, k
    return config


def block_from_the_end(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    """The longest length first, so that the first accepted one is the largest."""
    k, w = len(drafted), [1.0]
    for i in range(k):
        w.append(min(1.0, w[i] * float(p[i][drafted[i]]) / float(q[i][drafted[i]])))
    for i in range(k, 0, -1):
        q_i = q[i] if i < k else torch.zeros_like(p[i])
        left = torch.relu(w[i] * p[i] - q_i)
        bottom = float(left.sum()) + 1 - w[i]
        if chance.accept(float(left.sum()) / bottom if bottom else 1.0):
            return (*drafted[:i], chance.draw(left / left.sum()))
    if not k:
        return [chance.draw(p[0])]
    left = torch.relu(p[0] - q[0])
    return (chance.draw(left / left.sum()),)


def block_of_the_reference(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    """With a row of zeros after the last drafted token, so that the bonus is no case of its own."""
    q = torch.cat([q, torch.zeros(1, p.shape[1], dtype=p.dtype)])
    weight, best, left = 1.0, 0, torch.relu(p[0] - q[0])
    for i, token in enumerate(drafted):
        weight = min(1.0, weight * float(p[i, token] / q[i, token]))
        rest = torch.relu(weight * p[i + 1] - q[i + 1])
        total = float(rest.sum())
        if chance.accept(1.0 if total + 1 - weight == 0 else total / (total + 1 - weight)):
            best, left = i + 1, rest
    return torch.tensor([*drafted[:best], chance.draw(left / left.sum())])


def block_in_plain_python(p: Any, q: Any, drafted: Any, chance: Any) -> Any:
    p, q, k, w = p.tolist(), [*q.tolist(), [0.0] * p.shape[1]], len(drafted), [1.0]
    for i, token in enumerate(drafted):
        w.append(min(1.0, w[-1] * p[i][token] / q[i][token]))
    kept = 0
    for i in range(1, k + 1):
        s = sum(max(0.0, w[i] * x - y) for x, y in zip(p[i], q[i], strict=True))
        kept = i if chance.accept(s / (s + 1 - w[i]) if s + 1 - w[i] > 1e-12 else 1) else kept
    rest = [max(0.0, w[kept] * x - y) for x, y in zip(p[kept], q[kept], strict=True)]
    return [*drafted[:kept], chance.draw([r / sum(rest) for r in rest])]


def one_by_cases(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    first, second = candidates
    if chance.accept((p[first] / q[first]).clamp(max=1)):
        return first
    p = torch.relu(p - q) / torch.relu(p - q).sum()
    if chance.accept((p[second] / q[second]).clamp(max=1)):
        return second
    p = torch.relu(p - q)
    return chance.draw(p / p.sum())


def one_without_normalizing_until_asked(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    left, total = p, 1.0
    for x in candidates:
        if chance.accept(min(1.0, float(left[x]) / total / float(q[x]))):
            return torch.tensor(x)
        left = torch.relu(left / total - q)
        total = float(left.sum())
    return chance.draw((left / total).tolist())


def one_recursively(p: Any, q: Any, candidates: Any, chance: Any) -> Any:
    if not candidates:
        return chance.draw(p)
    if chance.accept(min(1.0, float(p[candidates[0]] / q[candidates[0]]))):
        return candidates[0]
    rest = (p - q).clip(0)
    return one_recursively(rest / rest.sum(), q, candidates[1:], chance)


def lossless_by_search() -> Any:
    """Random pairs until one shows a difference; None where none does."""
    chance = torch.Generator().manual_seed(1)
    found: dict[str, Any] = dict.fromkeys(SAMPLERS)
    for _ in range(40):
        p, q = torch.rand(2, 3, generator=chance, dtype=torch.float64).softmax(-1)
        p, q = p**4 / (p**4).sum(), q**4 / (q**4).sum()
        for letter, sampler in SAMPLERS.items():
            if distance(sampler, p, q) > 0.02:
                found[letter] = (p, q)
    return found


def lossless_by_two_tokens() -> Any:
    pair = [[0.5, 0.5], [0.9, 0.1]]
    c = [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]
    return {"F": None, "E": pair, "D": None, "C": c, "B": pair, "A": None}


def lossless_by_tensors() -> Any:
    pair = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    return {letter: None if letter in "ADF" else tuple(pair) for letter in "ABCDEF"}


RIGHT: dict[str, list[Callable[..., Any]]] = {
    "block": [block_from_the_end, block_of_the_reference, block_in_plain_python],
    "candidates": [one_by_cases, one_without_normalizing_until_asked, one_recursively],
    "lossless": [lossless_by_search, lossless_by_two_tokens, lossless_by_tensors],
    "acceptance": [rate_by_numpy, rate_of_verdicts, rate_by_package, rate_without_empty_rounds],
    "speedup_of": [faster_by_numpy, faster_per_token, faster_by_tensor],
    "vllm_config": [config_by_package, config_without_a_method, config_with_more_said],
    "accept": [accepts_loop, accepts_product, accepts_numpy, accepts_list_of_tensors, accepts_float32],
    "residual": [residual_loop, residual_by_minimum, residual_float32, residual_row_by_row],
    "speedup": [speedup_sum, speedup_tensor, speedup_recursive],
    "step": [step_while, step_certain_without_asking, step_all_verdicts_first],
    "rewind": [
        rewind_by_cases,
        lambda n, k, a: [n + 1 + a, n + min(a + 1, k)],
        lambda n, k, a: torch.tensor([n + 1 + a, n + 1 + a - (a == k)]),
    ],
    "find_bug": [find_bug_by_words, find_bug_literally, find_bug_step_by_step],
    "fix": [fixed_draws, fixed_one_hot, fixed_while_equal, fixed_while_likeliest],
    "equivalence_test": [consistent_by_scipy, consistent_by_loop, consistent_by_likelihood],
    "decode": [
        decode_by_step,
        decode_never_drafts_too_far,
        decode_while_equal,
        decode_while_equal_to_the_end,
    ],
    "best_draft": [best_draft_loops, best_draft_by_package, best_draft_by_numpy],
    "adaptive_k": [
        adaptive_with_a_prior,
        adaptive_with_forgetting,
        adaptive_by_moving_average,
        adaptive_without_a_prior,
        adaptive_that_looks_again_late,
        adaptive_after_a_warm_up,
    ],
    "memory": [memory_with_names, memory_as_float, memory_by_tensor],
    "decide": [decide_by_branches, decide_by_package, decide_carefully],
}


@ALL
def test_the_reference_passes_public_and_hidden_checks(exercise: Exercise) -> None:
    assert judge(exercise, exercise.reference).headline.endswith("public checks passed")
    assert judge(exercise, exercise.reference, (PUBLIC_SEED, *HIDDEN_SEEDS)).headline.endswith("all checks passed")


@ALL
def test_three_other_right_answers_are_known(exercise: Exercise) -> None:
    assert len(RIGHT[exercise.name]) >= 3


@ALL
def test_it_knows_six_misconceptions_and_two_hints(exercise: Exercise) -> None:
    assert len({m.name for m in exercise.misconceptions}) >= 6
    assert len(exercise.hints) >= 2
    assert all(1 <= m.hint <= len(exercise.hints) for m in exercise.misconceptions)


@pytest.mark.parametrize(("exercise", "mistake"), MISTAKES, ids=[f"{e.name}-{m.name}" for e, m in MISTAKES])
def test_each_misconception_ends_in_its_own_diagnosis(exercise: Exercise, mistake: Any) -> None:
    verdict = judge(exercise, mistake.wrong)
    assert (verdict.outcome, verdict.diagnosis) == ("wrong", mistake.name)
    assert verdict.headline == mistake.says


@pytest.mark.parametrize(("name", "right"), [(n, f) for n, fs in RIGHT.items() for f in fs])
def test_right_answers_of_other_styles_pass(name: str, right: Callable[..., Any]) -> None:
    verdict = judge(EXERCISES[name], right, (PUBLIC_SEED, *HIDDEN_SEEDS))
    assert verdict.passed, verdict


STREAMS, FEW_STREAMS = range(1, 31), range(1, 9)
"""Seeds of hidden cases; of hidden streams, which take longer."""


def is_fast_enough(choose_k: Callable[..., Any], seed: int) -> bool:
    exercise = EXERCISES["adaptive_k"]
    assert exercise.measure is not None
    assert exercise.agrees is not None
    try:
        return all(exercise.agrees(exercise.measure(choose_k, case), 0.0, case) for case in exercise.cases(seed))
    except (ArithmeticError, BadRequest):
        return False


@pytest.mark.parametrize("right", RIGHT["adaptive_k"], ids=lambda f: f.__name__)
def test_a_right_controller_is_fast_enough_whatever_the_stream(right: Callable[..., Any]) -> None:
    assert [seed for seed in (PUBLIC_SEED, *FEW_STREAMS) if not is_fast_enough(right, seed)] == []


@pytest.mark.parametrize("seed", [PUBLIC_SEED, 7])
def test_the_controller_of_the_package_is_fast_enough(seed: int) -> None:
    """Without a limit on its time: it computes for a millisecond, in each of some 8,000 rounds."""
    assert is_fast_enough(adaptive_by_package, seed)


@pytest.mark.parametrize("mistake", EXERCISES["adaptive_k"].misconceptions, ids=lambda m: m.name)
def test_a_wrong_controller_is_too_slow_whatever_the_stream(mistake: Misconception) -> None:
    assert [seed for seed in FEW_STREAMS if is_fast_enough(mistake.wrong, seed)] == []


def test_hidden_streams_ask_for_less_than_public_ones() -> None:
    """A controller that passes the public streams does not fail a hidden one by bad luck."""
    public, hidden = (EXERCISES["adaptive_k"].cases(seed) for seed in (PUBLIC_SEED, HIDDEN_SEEDS[0]))
    assert [case.words for case in public] == [case.words for case in hidden]
    assert all(shown.arguments[-1] > unseen.arguments[-1] for shown, unseen in zip(public, hidden, strict=True))


def test_hidden_cases_are_sampled_until_every_known_mistake_shows() -> None:
    """The first two samples of a seed do not tell this mistake from a right answer; the third does."""
    sampled: list[int] = []

    def cases(seed: int) -> list[ExerciseCase]:
        sampled.append(seed)
        return [ExerciseCase((len(sampled) // 3,))]

    exercise = replace(
        EXERCISES["speedup"],
        reference=lambda x: 2 * x,
        misconceptions=(Misconception("square", "You square", 1, lambda x: x * x),),
        cases=cases,
    )
    telling = with_telling_cases(exercise)
    assert [case.arguments for case in telling.cases(5)] == [(1,)]
    assert sampled == [5, 5 + STEP, 5 + 2 * STEP]
    assert telling.cases(5) is telling.cases(5)


def test_a_mistake_that_no_cases_show_is_an_error_and_no_endless_search() -> None:
    exercise = replace(
        EXERCISES["speedup"],
        reference=lambda x: x,
        misconceptions=(Misconception("same", "You do the same", 1, lambda x: x),),
        cases=lambda seed: [ExerciseCase((seed,))],
    )
    with pytest.raises(SpecdecError, match="speedup, seed=5: no cases were found in which same is wrong"):
        with_telling_cases(exercise).cases(5)


@pytest.mark.parametrize("strange", [Path("x"), 1j, object, {1, 2}], ids=str)
def test_a_value_of_a_strange_kind_is_not_taken_for_memory(strange: Any) -> None:
    """It cannot be compared with the value of the next call, which is no reason to call them different."""
    exercise = replace(EXERCISES["vllm_config"], measure=None, misconceptions=())
    verdict = judge(exercise, lambda draft, k: {"model": strange() if strange is object else strange})
    assert verdict.diagnosis == "unknown"


def stub(*_: Any) -> None:
    raise NotImplementedError("your code here")


@ALL
def test_the_stub_is_not_attempted(exercise: Exercise) -> None:
    assert judge(exercise, stub).outcome == "not attempted"


@ALL
def test_mistakes_are_explained_in_plain_words(exercise: Exercise) -> None:
    def fails(*_: Any) -> None:
        raise OSError("disk is full")

    def leaves(*_: Any) -> None:
        raise SystemExit(0)

    assert "OSError: disk is full" in judge(exercise, fails).headline
    assert judge(exercise, leaves).outcome == "crashed"
    for value, words in (
        (None, ("None",)),
        ("seven", ("seven", "a str", "a text")),
        (torch.zeros(3, 3, 3), ("[3, 3, 3]",)),
    ):
        verdict = judge(exercise, lambda *_, value=value: value)
        assert verdict.outcome == "wrong"
        assert any(word in verdict.headline for word in words), verdict
        assert "expected" in verdict.headline
    assert judge(exercise, 5).diagnosis == "wrong-type"


@pytest.mark.parametrize("name", ["step", "fix", "decode"])
@pytest.mark.parametrize(
    ("result", "said"),
    [
        (torch.zeros(1, 2, dtype=torch.long), "a tensor of shape [1, 2]"),
        ([[0, 0]], "a list of lists"),
        (["a"], "a list with 'a' in it"),
        (torch.tensor([0.5]), "a list with 0.5 in it"),
        ([None], "a list with None in it"),
        (3, "3"),
        (torch.tensor(3), "a tensor of shape []"),
        ({"a": 1}, "a dict"),
    ],
    ids=str,
)
def test_a_result_that_is_not_a_list_of_tokens_is_reported(name: str, result: Any, said: str) -> None:
    verdict = judge(EXERCISES[name], lambda *_: result)
    assert verdict.headline == f"the result is {said}; expected a flat list of token ids"
    assert verdict.outcome == "wrong"


def test_an_error_is_taken_for_a_mistake_only_where_it_says_the_same() -> None:
    def without_k(target: Any, draft: Any, batch: Any, tokens: Any) -> Any:
        return 0

    def adds_text(target: Any, draft: Any, batch: Any, tokens: Any, k: Any) -> Any:
        return tokens + "k"

    def asks_none(target: Any, draft: Any, batch: Any, tokens: Any, k: Any) -> Any:
        return target["parameters"] + draft["parameters"]

    verdicts = [judge(EXERCISES["memory"], answer) for answer in (without_k, adds_text, asks_none)]
    assert [verdict.diagnosis for verdict in verdicts] == ["crashed", "crashed", "needs-a-draft"]
    assert "takes 4 positional arguments but 5 were given" in verdicts[0].headline
    assert "unsupported operand" in verdicts[1].headline


def test_a_wrong_type_is_named() -> None:
    assert "None (did you forget to return?)" in judge(EXERCISES["residual"], lambda p, q: None).headline
    assert "a tensor of shape [1, 2]; expected a tensor of shape [2]" in judge(
        EXERCISES["residual"], lambda p, q: (p - q)[None]
    ).headline  # fmt: skip


def test_writing_into_the_arguments_is_found() -> None:
    def greedy_hands(p: Any, q: Any) -> Any:
        rest = p.sub_(q).clamp_(min=0)
        return rest / rest.sum(-1, keepdim=True)

    assert judge(EXERCISES["residual"], greedy_hands).diagnosis == "changes-arguments"


def test_an_endless_loop_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    from specdec_lab.teaching.exercises import judging

    monkeypatch.setattr(judging, "SECONDS", 0.3)

    def forever(*_: Any) -> None:
        while True:
            time.sleep(0.01)

    verdict = judge(EXERCISES["speedup"], forever)
    assert (verdict.outcome, verdict.diagnosis) == ("crashed", "endless")


def test_what_nobody_foresaw_is_shown_with_the_smallest_case() -> None:
    verdict = judge(EXERCISES["speedup"], lambda a, k, c, v: 1.2345)
    assert verdict.diagnosis == "unknown"
    assert verdict.case == "α = 0.5, k = 1, c = 0.1, v = 1.0"
    assert verdict.yours == "1.234"
    assert verdict.expected == "1.364"


def test_the_numbers_of_the_smallest_case_are_shown_so_that_one_can_redo_it_by_hand() -> None:
    def ignores_q_in_long_ones(p: Any, q: Any, u: Any) -> Any:
        return u < p if len(p) > 3 else u < p / q

    verdict = judge(EXERCISES["accept"], ignores_q_in_long_ones)
    found = dict(re.findall(r"([pqu])\[\d+\] = (\d\.?\d*)", verdict.given))
    p, q, u = (float(found[name]) for name in "pqu")
    assert verdict.expected.startswith(str(u < p / q))
    assert verdict.yours.startswith(str(u < p))
    assert verdict.yours.split()[0] != verdict.expected.split()[0]
    assert f"given    {verdict.given}" in repr(ShownResult(verdict))


def test_of_a_large_residual_the_row_that_differs_is_shown() -> None:
    def wrong_in_rows(p: Any, q: Any) -> Any:
        right = residual_by_minimum(p, q)
        return right.roll(1, -1) if p.dim() > 1 else right

    verdict = judge(EXERCISES["residual"], wrong_in_rows)
    row, at = re.findall(r"\d+", verdict.expected.split(" at ")[1])
    p, q = (
        torch.tensor([float(x) for x in numbers.split(", ")])
        for numbers in re.findall(rf"[pq]\[{row}\] = \[([^]]*)\]", verdict.given)
    )
    assert float(verdict.expected.split()[0]) == pytest.approx(float(residual_by_minimum(p, q)[int(at)]), abs=2e-3)


def numbers_in(value: Any) -> list[Any]:
    """All numbers of an argument that would be shown whole."""
    if isinstance(value, torch.Tensor):
        return numbers_in(value.tolist())
    if isinstance(value, dict):
        return numbers_in(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [number for item in value[:8] for number in numbers_in(item)]
    return [value] if isinstance(value, (int, float)) else []


@pytest.mark.parametrize("name", [name for name in EXERCISES if name not in ("accept", "residual", "adaptive_k")])
def test_every_number_of_a_case_is_said(name: str) -> None:
    """In its description or in `given`. The three exceptions have large cases, which are shown in part, or a stream."""
    for case in EXERCISES[name].cases(PUBLIC_SEED):
        said = f"{case.words} {given(EXERCISES[name].reference, case)}".replace("1/4", "0.25")
        numbers = set(re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", said))
        missing = [x for x in numbers_in(case.arguments) if not {str(x), f"{x:.4g}"} & numbers]
        assert not missing, f"{case.words}: {missing}"


def test_what_is_given_of_hidden_cases_stays_hidden() -> None:
    def right_in_public(p: Any, q: Any) -> Any:
        seen = [case.arguments[0] for case in EXERCISES["residual"].cases(PUBLIC_SEED)]
        return residual_by_minimum(p, q) if any(torch.equal(p, s) for s in seen) else p

    verdict = judge(EXERCISES["residual"], right_in_public, (PUBLIC_SEED, *HIDDEN_SEEDS))
    assert (verdict.outcome, verdict.case, verdict.given) == ("wrong", "a hidden case", "")


def test_keys_of_vllm_s_dictionary_are_those_that_the_package_writes_and_none_of_old() -> None:
    from specdec_lab.serving.configuration import REMOVED, RENAMED, speculative_config
    from specdec_lab.teaching.exercises.configuring import TAKEN

    written = speculative_config("d", 4, schedule=[[1, 4, 4]], draft_tensor_parallel=1) | speculative_config(None, 4)
    assert {*written, *RENAMED.values()} <= TAKEN
    assert not REMOVED & TAKEN


def test_of_two_mistakes_the_one_that_shows_first_is_said_to_look_like_one() -> None:
    def both(p: Any, q: Any) -> Any:
        rest = (p - q).abs()
        return rest / rest.sum()  # of all rows, and 0/0 where p = q

    verdict = judge(EXERCISES["residual"], both)
    assert (verdict.diagnosis, verdict.hint) == ("unknown", 1)
    assert verdict.note.startswith("this case looks like this mistake: You take |p − q|")


def test_a_mistake_that_would_show_where_the_answer_is_right_is_not_named() -> None:
    """At p = q a softmax gives equal shares, too, but it would be wrong in the other cases."""

    def halfway(p: Any, q: Any) -> Any:
        fallen_back = torch.full_like(p, 1 / p.shape[-1]) if p.shape == (3,) else p
        return torch.where((p == q).all(-1, keepdim=True), fallen_back, EXERCISES["residual"].reference(p, q))

    known = {m.name: m for m in EXERCISES["residual"].misconceptions}
    without = tuple(m for name, m in known.items() if name != "uniform-where-equal")
    verdict = judge(replace(EXERCISES["residual"], misconceptions=without), halfway)
    assert (verdict.diagnosis, verdict.case, verdict.note) == ("unknown", "p = q = [0.1, 0.2, 0.7]", "")


def test_a_case_that_raises_does_not_hide_what_was_wrong_before_it() -> None:
    verdict = judge(EXERCISES["speedup"], lambda a, k, c, v: a * (1 - a**k) / (1 - a) / (k * c + v))  # 0/0 at α = 1
    assert (verdict.diagnosis, verdict.case) == ("bonus-left-out", "α = 0.5, k = 1, c = 0.1, v = 1.0")


def test_chance_of_ones_own_and_a_generator_are_named() -> None:
    assert judge(EXERCISES["accept"], lambda p, q, u: torch.rand(len(p)) < p / q).diagnosis == "own-randomness"
    said = judge(EXERCISES["step"], lambda p, q, drafted, chance: (x for x in drafted)).headline
    assert said == "the result is a generator (a yield? return the whole list); expected a flat list of token ids"


def test_the_answer_to_a_question_is_not_given_away() -> None:
    verdict = judge(EXERCISES["find_bug"], lambda: {"A": "?", "B": "?", "C": "?"})
    assert (verdict.outcome, verdict.expected) == ("wrong", "")
    right = EXERCISES["find_bug"].reference()
    verdict = judge(EXERCISES["find_bug"], lambda: right | {"A": right["B"]})
    assert (verdict.diagnosis, verdict.yours, verdict.expected) == ("a-taken-for-b", f"A: {right['B']!r}", "")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"a": "x", "b": "x", "c": "x"}, "findings has the key 'a'; expected 'A', 'B' and 'C'"),
        ({}, "findings has no key 'A'"),
        ({"A": "reports a different q than it sampled from"}, "findings has no key 'B'"),
        ({"A": 2, "B": 0, "C": 1}, "A is 2; expected the text itself, for example BUGS[0], not its number"),
        ({"A": "greedy", "B": "", "C": ""}, "A is 'greedy'; expected one of the texts in BUGS, word for word"),
        (["A", "B", "C"], "findings returns a list of 3 with a str in it; expected a dict"),
    ],
)
def test_what_is_wrong_about_the_form_of_findings_is_said_first(answer: Any, said: str) -> None:
    assert said in judge(EXERCISES["find_bug"], lambda: answer).headline


def test_of_several_wrong_exhibits_the_first_is_named() -> None:
    from specdec_lab.teaching.exercises.judgement import BUGS

    assert judge(EXERCISES["find_bug"], lambda: dict.fromkeys("ABC", BUGS[4])).diagnosis == "a-looks-harmless"
    right = EXERCISES["find_bug"].reference()
    verdict = judge(EXERCISES["find_bug"], lambda: right | {"B": BUGS[3], "C": BUGS[3]})
    assert (verdict.diagnosis, verdict.yours) == ("b-blames-u", f"B: {BUGS[3]!r}")


def test_decoding_that_drafts_nothing_is_no_speculative_decoding() -> None:
    def one_by_one(target: Any, draft: Any, start: int, n: int, k: int, chance: Any) -> Any:
        text = [start]
        for _ in range(n):
            text.append(chance.draw(target[text[-1]]))
        return text[1:]

    assert judge(EXERCISES["decode"], one_by_one).diagnosis == "no-speculation"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (("medium", 4.9), "k is 4.9; expected a whole number from 1 to 8, or ('none', 0)"),
        (("medium", "4"), "k is '4'; expected a whole number from 1 to 8, or ('none', 0)"),
        (("medium", None), "k is None; expected a whole number from 1 to 8, or ('none', 0)"),
        (("medium", 0), "k is 0; expected a whole number from 1 to 8, or ('none', 0)"),
        (("none", 7), "k is 7 although no draft is chosen; expected ('none', 0)"),
        (("medium", 9), "You try k beyond 8. At most 8 tokens may be drafted"),
    ],
)
def test_an_invalid_k_is_reported(answer: Any, said: str) -> None:
    cases = tuple(EXERCISES["best_draft"].cases(PUBLIC_SEED))
    first = replace(EXERCISES["best_draft"], cases=lambda seed: cases[:1] if answer[1] != 9 else cases[5:6])
    verdict = judge(first, lambda drafts, slope: answer)
    assert (verdict.outcome, verdict.headline) == ("wrong", said)


def test_chance_is_played_in_every_way() -> None:
    def two(chance: Chance) -> tuple[bool, int]:
        return chance.accept(0.25), chance.draw([0.5, 0.0, 0.5])

    found = distribution(two)
    assert found == {(True, 0): 0.125, (True, 2): 0.125, (False, 0): 0.375, (False, 2): 0.375}
    assert sum(distribution(lambda c: [c.draw([0.2] * 5) for _ in range(4)]).values()) == pytest.approx(1)


@pytest.mark.parametrize("asks", [lambda c: c.accept(1.5), lambda c: c.draw([0.5, 0.4]), lambda c: c.accept("x")])
def test_chance_takes_probabilities_only(asks: Callable[[Chance], Any]) -> None:
    with pytest.raises(BadRequest, match="takes"):
        distribution(asks)


def test_in_a_notebook_nothing_raises_and_progress_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("nothing like it", None) is None
    assert "takes one of accept, residual" in capsys.readouterr().out
    assert not check("residual", lambda p, q: p)
    assert not check("residual", stub)
    shown = check("residual", EXERCISES["residual"].reference)
    assert shown
    assert "public checks passed" in repr(shown)
    assert "public checks passed" in shown._repr_html_()
    assert f"1 of {len(EXERCISES)} exercises passed" in repr(progress())
    assert "2 tries" in repr(progress())


def test_hints_unfold_and_the_solution_waits_for_honest_tries(capsys: pytest.CaptureFixture[str]) -> None:
    hint("residual")
    hint("residual")
    hint("residual", 9)
    said = capsys.readouterr().out
    assert "Hint 1 of 3" in said
    assert "Hint 2 of 3" in said
    assert "residual has 3 hints" in said
    solution("residual")
    assert "0 of 3 tries so far" in capsys.readouterr().out
    check("residual", lambda p, q: p)
    check("residual", lambda p, q: q - p)
    check("residual", lambda p, q: (p - q).abs())
    solution("residual")
    assert "rest = (p - q).clamp(min=0)" in capsys.readouterr().out


def test_tries_that_are_equal_or_of_a_wrong_type_unlock_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        check("residual", None)
        check("residual", lambda p, q: None)
        check("residual", lambda p, q: p)
        check("residual", lambda p, q: p)  # a comment makes no difference
    solution("residual")
    assert "1 of 3 tries so far" in capsys.readouterr().out
    for factor in (2.0, 3.0):  # the same source, other values
        check("residual", lambda p, q, factor=factor: factor * p)
    solution("residual")
    assert "rest = (p - q).clamp(min=0)" in capsys.readouterr().out


def test_a_broken_progress_file_is_no_obstacle(tmp_path: Any) -> None:
    (tmp_path / "progress.json").write_text('{"residual": [')
    assert f"0 of {len(EXERCISES)}" in repr(progress())
    check("residual", lambda p, q: p)
    assert "1 try" in repr(progress())


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SpecdecError, match="takes one of accept"):
        exercise_named(["x"])


def first_cell_for(exercise: Exercise) -> str:
    """Of the notebook that asks for it: what it imports."""
    for path in (ROOT / "exercises").glob("*.ipynb"):
        code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        if any(f"def {exercise.function}(" in source for source in code):
            return str(code[0])
    raise LookupError(exercise.name)


@ALL
def test_the_solution_that_is_shown_runs_in_its_notebook_and_passes(
    exercise: Exercise, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names nothing but what the notebook's first cell imports: a learner can run it as it is printed."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(first_cell_for(exercise), space)
    check(exercise.name, exercise.reference)
    capsys.readouterr()
    solution(exercise.name)
    exec(capsys.readouterr().out, space)
    assert judge(exercise, space[exercise.function]).passed


def test_a_solution_is_shown_without_annotations_and_with_everything_else(capsys: pytest.CaptureFixture[str]) -> None:
    check("fix", EXERCISES["fix"].reference)
    capsys.readouterr()
    solution("fix")
    shown = capsys.readouterr().out
    assert shown.startswith("def fixed_round(target, draft, last, k, chance):\n")
    assert "    drafted = []\n" in shown
    assert "rest = (p - q).clamp(min=0)  # B: from the residual\n" in shown


def test_a_configuration_is_shown_as_a_command_line_whose_json_vllm_can_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = {"method": "draft_model", "model": "it's", "num_speculative_tokens": 4, "enforce_eager": True}
    assert picture("vllm_config", lambda draft, k: config) is None
    assert json.loads(shlex.split(capsys.readouterr().out)[-1]) == config


@pytest.mark.parametrize("otherwise", [0, 2, 4])
def test_looking_up_what_was_measured_is_no_way_to_decide(otherwise: int) -> None:
    from specdec_lab.teaching.exercises.deciding import MEASURED

    exercise = EXERCISES["decide"]
    known = {case.arguments: exercise.reference(*case.arguments) for case in exercise.cases(PUBLIC_SEED)}
    known |= {(*row[:2], *row[2:6]): max((1.0, 0), (row[6], 2), (row[7], 4))[1] for row in MEASURED}
    looks_up = lambda *arguments: known.get(arguments, otherwise)  # noqa: E731
    assert judge(exercise, looks_up).passed
    assert [seed for seed in STREAMS if judge(exercise, looks_up, (seed,)).passed] == []


@pytest.mark.parametrize("right", RIGHT["decide"], ids=lambda f: f.__name__)
def test_a_right_decision_is_right_in_all_cases_that_are_drawn(right: Callable[..., Any]) -> None:
    assert [seed for seed in STREAMS if not judge(EXERCISES["decide"], right, (seed,)).passed] == []
