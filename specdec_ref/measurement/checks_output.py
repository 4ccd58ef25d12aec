"""Checks of what comes out: do the caches hold what they should after a rejection, and is greedy decoding the same?

Both compare with transformers' own forward pass over the whole text, which knows nothing of our caches and masks.
"""

import copy
from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from specdec_ref.control import FixedK
from specdec_ref.decoding import Row, speculate
from specdec_ref.drafting import ModelDrafter
from specdec_ref.measurement.case import Case, plain_logits
from specdec_ref.measurement.findings import Finding
from specdec_ref.measurement.memory import available_memory
from specdec_ref.models import Pair, TransformersModel
from specdec_ref.sampling import GREEDY, Sampling, SeededRandomness

CACHE_ROUNDS = 6
"""A wrong rewind shows after the first rejection, a token missing after a full acceptance: a few rounds have both."""

CACHE_PROMPTS = 2
NOISE_FACTOR = 10
"""A stale cache is another context, not another rounding: it must differ by so many times what rounding alone does."""

LEAST_DISTANCE, MOST_DISTANCE = 1e-3, 0.2
"""Total variation that is no fault whatever the rounding, and that is one whatever the rounding."""

TIE_FACTOR = 8
"""A margin below so many times the largest rounding error of the logits can be turned round by summing in another
order: two logits, two ways to compute them, and the error was seen at one place only."""

DOUBLE_EXACT = 1e-9
"""Logits that differ by less are a tie in float64 as well."""


def check_caches(case: Case) -> list[Finding]:
    """Do the caches tell the same after some rounds as a fresh reading of the text?"""
    distances: dict[str, list[float]] = {"target": [], "draft": []}
    noise = {"target": 0.0, "draft": 0.0}
    for prompt in case.prompts[:CACHE_PROMPTS]:
        _after_rounds(case, prompt, distances, noise)
    findings = []
    for role, seen in distances.items():
        limit = min(NOISE_FACTOR * noise[role] + LEAST_DISTANCE, MOST_DISTANCE)
        if seen and max(seen) > limit:
            wrong = sum(distance > limit for distance in seen)
            findings.append(
                Finding(
                    f"{role}-cache-stale",
                    "problem",
                    f"The {role}'s cache does not hold the text",
                    f"after {wrong} of {len(seen)} rounds its next-token distribution is up to {max(seen):.3f} (total "
                    f"variation) from that of a fresh reading; rounding explains {noise[role]:.1g}",
                    "Rejected tokens were not taken back, or a drafted token was never fed: the model continues "
                    "another text. "
                    + (
                        "The output is wrong."
                        if role == "target"
                        else "The output stays right, but fewer drafts are accepted."
                    ),
                    "Rewind to what is still true before each step; feed the last drafted token when all were "
                    "accepted. If the engine is unchanged, report it as a bug.",
                    {"largest_distance": max(seen), "noise": noise[role], "rounds": len(seen), "wrong": wrong},
                )
            )
    return findings


def _after_rounds(
    case: Case, prompt: tuple[int, ...], distances: dict[str, list[float]], noise: dict[str, float]
) -> None:
    pair, k, everything = case.pair, case.max_k, Sampling()
    target, drafter = TransformersModel(pair.target), case.new_drafter()
    draft_model = case.draft_model
    randomness = SeededRandomness(0, pair.device)
    room = pair.context - len(prompt)
    row = Row(prompt, min(room, (CACHE_ROUNDS + 1) * (k + 2)))  # never full: the rounds below are fewer
    rounds = speculate(target, drafter, [row], FixedK(k), case.sampling, randomness, pair.eos, pair.context)
    for _ in islice(rounds, CACHE_ROUNDS):
        text = row.sequence
        if row.finish or len(text) + 2 > pair.context:
            break
        target.rewind([len(text) - 1])
        mine = target.extend(torch.tensor([text[-1:]], device=target.device))[0, -1]
        distances["target"].append(_distance(mine, plain_logits(pair.target, text)[-1]))
        if draft_model is not None and isinstance(drafter, ModelDrafter):
            q = drafter.propose([text], 1, everything, randomness).probabilities
            plain = plain_logits(draft_model, text)[-1, : drafter.model.vocab_size]
            assert q is not None  # a model always tells what it drew from
            distances["draft"].append(_distance(q[0, 0].log(), plain))
    for role, model in (("target", pair.target), ("draft", draft_model)):
        if model is not None:
            noise[role] = max(noise[role], _rounding(model, row.sequence, k))


def _distance(ours: Tensor, plain: Tensor) -> float:
    """Total variation between the two next-token distributions at temperature 1. [V] each."""
    p, q = (logits.double().softmax(-1) for logits in (ours, plain[: ours.shape[-1]]))
    return float((p - q).abs().sum() / 2)


def _rounding(model: "torch.nn.Module", text: Sequence[int], k: int) -> float:
    """How far a fresh cache, read in one piece and then in steps, is from the plain forward pass."""
    fresh = TransformersModel(model)  # type: ignore[arg-type]
    n = min(k + 1, len(text) - 1)
    known = [min(token, fresh.vocab_size - 1) for token in text]
    fresh.start(1, len(text))
    fresh.prefill([known[:-n]])
    ours = fresh.extend(torch.tensor([known[-n:]], device=fresh.device))[0, -1]
    return _distance(ours, plain_logits(fresh.model, known)[-1])


def check_greedy(case: Case) -> list[Finding]:
    """Does greedy decoding give the same tokens with and without drafts?"""
    ties: list[str] = []
    for i, prompt in enumerate(case.prompts):
        plain = case.play(prompt, k=0, sampling=GREEDY).generation.tokens
        drafted = case.play(prompt, k=case.max_k, sampling=GREEDY).generation.tokens
        if plain == drafted:
            continue
        at = _first_difference(plain, drafted)
        if at >= min(len(plain), len(drafted)):
            return [_greedy_bug(f"prompt {i}: {len(plain)} tokens without drafts, {len(drafted)} with", {"prompt": i})]
        text = [*prompt, *plain[:at]]
        margin, rounding = _margin(case, text, plain[at], drafted[at])
        seen = (
            f"prompt {i} differs at new token {at}: {_show(case, plain[at])} without drafts, with them "
            f"{_show(case, drafted[at])}; their logits differ by {margin:.2g}, rounding by up to {rounding:.1g}"
        )
        numbers: dict[str, object] = {"prompt": i, "token": at, "margin": margin, "rounding": rounding}
        bug = margin > TIE_FACTOR * rounding
        if not bug and _room_for_double(case):
            again = _first_difference_in_double(case, prompt)
            numbers["differs_in_float64_at"] = again
            seen += "; in float64 " + ("both agree" if again is None else f"they first differ at token {again}")
            bug = again is not None and again <= at and margin > DOUBLE_EXACT
        if bug:
            return [_greedy_bug(seen, numbers)]
        ties.append(seen)
    if not ties:
        return []
    return [
        Finding(
            "greedy-tie",
            "note",
            "Greedy outputs differ by a numerical tie: no fault",
            ties[0] + (f" ({len(ties)} of {len(case.prompts)} prompts)" if len(ties) > 1 else ""),
            "Scoring several tokens at once sums in another order than one by one. Where two tokens are as likely as "
            "each other to within rounding, either may come out.",
            "Nothing; compare in float32 or float64 where equal tokens matter.",
            {"prompts": len(ties)},
        )
    ]


def _greedy_bug(seen: str, numbers: dict[str, object]) -> Finding:
    return Finding(
        "greedy-differs",
        "problem",
        "Greedy outputs differ, and not by rounding",
        seen,
        "The rule accepts a token that is not the target's largest, or compares the wrong row, or a cache is wrong.",
        "Run `specdec equivalence`: it names the position and the distribution. If the engine is unchanged, report it "
        "as a bug.",
        numbers,
    )


def _margin(case: Case, text: list[int], a: int, b: int) -> tuple[float, float]:
    """|logit a − logit b| after `text`, and how far rounding moves any logit there: as seen against float64, or where
    that does not fit into memory as the number type lets expect."""
    model = case.pair.target
    usual = plain_logits(model, text)[-1].double()
    if not _room_for_double(case):
        return float((usual[a] - usual[b]).abs()), torch.finfo(model.dtype).eps * float(usual.abs().max())
    double = plain_logits(copy.deepcopy(model).double(), text)[-1]
    return float((double[a] - double[b]).abs()), float((usual - double).abs().max())


def _room_for_double(case: Case) -> bool:
    models = [m for m in (case.pair.target, case.draft_model) if m is not None]
    return 8 * sum(p.numel() for m in models for p in m.parameters()) < available_memory(case.pair.device) / 2


def _first_difference_in_double(case: Case, prompt: Sequence[int]) -> int | None:
    """Both ways of decoding again in float64: where they first differ, None where they agree."""
    target = copy.deepcopy(case.pair.target).double()
    draft = copy.deepcopy(case.pair.draft).double() if case.pair.draft is not None else None
    pair = Pair(target, draft, case.pair.tokenizer)
    drafter = case.new_drafter() if case.drafter is not None or draft is None else None
    plain = case.play(prompt, k=0, sampling=GREEDY, pair=pair)
    drafted = case.play(prompt, k=case.max_k, sampling=GREEDY, pair=pair, drafter=drafter)
    one, other = plain.generation.tokens, drafted.generation.tokens
    return None if one == other else _first_difference(one, other)


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """Where two sequences part; the shorter one's length where it begins the longer."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _show(case: Case, token: int) -> str:
    return repr(case.models.target_tokenizer.decode([token]))
