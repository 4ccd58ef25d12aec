"""Checks of the output: are the caches right after a rejection, and does greedy decoding give the same tokens?

Both compare with transformers' own forward pass over the whole text, which does not use our caches and masks.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from specdec_lab.measurement.diagnosis_setup import Measurement, Setup, plain_logits
from specdec_lab.measurement.findings import Finding
from specdec_lab.measurement.memory_profile import available_memory
from specdec_lab.measurement.methods import head_of
from specdec_ref.control import FixedK
from specdec_ref.decoding import Row, speculate
from specdec_ref.drafting import ModelDrafter
from specdec_ref.loading import Pair
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import GREEDY, Sampling, SeededRandomness

CACHE_ROUNDS = 6
"""A wrong rewind shows after the first rejection, and a missing token after a full acceptance. Six rounds have both."""

CACHE_PROMPTS = 2
NOISE_FACTOR = 10
"""A stale cache must differ by this many times the distance that rounding explains, since it is another context."""

LEAST_DISTANCE, MOST_DISTANCE = 1e-3, 0.2
"""Total variation up to the first number is never an error, and above the second always, regardless of rounding."""

TIE_FACTOR = 8
"""A margin below this many times the largest rounding error of the logits counts as a tie, since sums in another order
can reverse it. Two logits are computed in two ways, and the error was measured at one position only."""

DOUBLE_EXACT = 1e-9
"""Logits with a smaller difference are a tie even in float64."""


def check_caches(setup: Setup) -> list[Finding]:
    """Do the models predict the same after some rounds as after a new forward pass over the text?"""
    prompts = setup.prompts[:CACHE_PROMPTS]
    measured = setup.as_many_as_fit("prompts", prompts, lambda prompt: _after_rounds(setup, prompt))
    distances = {
        role: [d for distances_by_role in measured for d in distances_by_role[role].distances]
        for role in ("target", "draft")
    }
    noise = {role: max(distances_by_role[role].noise for distances_by_role in measured) for role in distances}
    compared = sum(map(len, distances.values()))
    furthest = max((max(values) for values in distances.values() if values), default=0.0)
    setup.measurements["caches"] = Measurement(
        f"{compared} comparisons with a new forward pass, largest distance {furthest:.1g}",
        {"compared": compared, "largest_distance": furthest},
    )
    findings = []
    for role, values in distances.items():
        limit = min(NOISE_FACTOR * noise[role] + LEAST_DISTANCE, MOST_DISTANCE)
        if values and max(values) > limit:
            wrong = sum(distance > limit for distance in values)
            findings.append(
                Finding(
                    f"{role}-cache-stale",
                    "problem",
                    f"The {role}'s cache does not hold the text",
                    f"after {wrong} of {len(values)} rounds its next-token distribution differs from that of a new "
                    f"forward pass over the text, by up to {max(values):.3f} (total variation); rounding errors "
                    f"reach only {noise[role]:.1g}",
                    "Rejected tokens stayed in the cache, or the model did not read one of the drafted tokens. It "
                    "now continues another text. "
                    + (
                        "The output is wrong."
                        if role == "target"
                        else "The output stays correct, but fewer tokens are accepted."
                    ),
                    "Rewind each cache to the accepted text before each round, and feed the last drafted token when "
                    "all were accepted. If the engine is unchanged, report it as a bug.",
                    {"largest_distance": max(values), "noise": noise[role], "rounds": len(values), "wrong": wrong},
                )
            )
    return findings


@dataclass
class _CacheDistances:
    """The cache errors of one model.

    Attributes:
        distances: after each round, the distance from a new forward pass over the text.
        noise: the distance that rounding explains, computed only if a distance needs an explanation.
    """

    distances: list[float] = field(default_factory=list)
    noise: float = 0.0


def _after_rounds(setup: Setup, prompt: tuple[int, ...]) -> dict[str, _CacheDistances]:
    """The cache errors of both models after each of some rounds. If time runs out, fewer rounds, but at least one."""
    pair, k, everything = setup.pair, setup.max_k, Sampling()
    target, drafter = setup.decoder()
    draft_model = setup.draft_model
    randomness = SeededRandomness(0, pair.device)
    space = pair.context - len(prompt)
    row = Row(prompt, min(space, (CACHE_ROUNDS + 1) * (k + 2)))  # never full: the rounds below are fewer
    rounds = speculate(target, drafter, [row], FixedK(k), setup.sampling, randomness, pair.eos, pair.context)
    by_role = {"target": _CacheDistances(), "draft": _CacheDistances()}
    for n, _ in enumerate(islice(rounds, CACHE_ROUNDS)):
        if n and not setup.budget.left:
            setup.left_out.append(f"{CACHE_ROUNDS - n} of {CACHE_ROUNDS} rounds")
            break
        text = row.sequence
        if row.finish or len(text) + 2 > pair.context:
            break
        target.rewind([len(text) - 1])
        mine = target.extend(torch.tensor([text[-1:]], device=target.device))[0, -1]
        by_role["target"].distances.append(_distance(mine, plain_logits(pair.target, text)[-1]))
        if draft_model is not None and isinstance(drafter, ModelDrafter):
            q = drafter.propose([text], 1, everything, randomness).probabilities
            plain = plain_logits(draft_model, text)[-1, : drafter.model.vocab_size]
            assert q is not None  # a model always returns what it sampled from
            by_role["draft"].distances.append(_distance(q[0, 0].log(), plain))
    for role, model in (("target", pair.target), ("draft", draft_model)):
        if model is not None and max(by_role[role].distances, default=0.0) > LEAST_DISTANCE:
            by_role[role].noise = _rounding(model, row.sequence, k)
    return by_role


def _distance(ours: Tensor, plain: Tensor) -> float:
    """Total variation between two next-token distributions at temperature 1, given as logits [V]."""
    p, q = (logits.double().softmax(-1) for logits in (ours, plain[: ours.shape[-1]]))
    return float((p - q).abs().sum() / 2)


def _rounding(model: "torch.nn.Module", text: Sequence[int], k: int) -> float:
    """The distance between a new cache, filled in one pass and then in steps, and the plain forward pass."""
    fresh = TransformersModel(model)  # type: ignore[arg-type]
    n = min(k + 1, len(text) - 1)
    known = [min(token, fresh.vocab_size - 1) for token in text]
    fresh.start(1, len(text))
    fresh.prefill([known[:-n]])
    ours = fresh.extend(torch.tensor([known[-n:]], device=fresh.device))[0, -1]
    return _distance(ours, plain_logits(fresh.model, known)[-1])


def check_greedy(setup: Setup) -> list[Finding]:
    """Does greedy decoding give the same tokens with and without drafts?"""
    compared = setup.as_many_as_fit("prompts", setup.prompts, lambda prompt: _both_ways(setup, prompt))
    tokens = sum(min(map(len, both)) for both in compared)
    setup.measurements["greedy"] = Measurement(
        f"{tokens} tokens compared, prompts: {len(compared)}", {"tokens": tokens, "prompts": len(compared)}
    )
    ties: list[str] = []
    for i, (plain, drafted) in enumerate(compared):
        prompt = setup.prompts[i]
        if plain == drafted:
            continue
        at = _first_difference(plain, drafted)
        if at >= min(len(plain), len(drafted)):
            return [_greedy_bug(f"prompt {i}: {len(plain)} tokens without drafts, {len(drafted)} with", {"prompt": i})]
        text = [*prompt, *plain[:at]]
        margin, rounding = _margin(setup, text, plain[at], drafted[at])
        evidence = (
            f"prompt {i} differs at new token {at}: {_show(setup, plain[at])} without drafts, "
            f"{_show(setup, drafted[at])} with them; their logits differ by {margin:.2g}, rounding by up to "
            f"{rounding:.1g}"
        )
        numbers: dict[str, object] = {"prompt": i, "token": at, "margin": margin, "rounding": rounding}
        bug = margin > TIE_FACTOR * rounding
        if not bug and _double_fits(setup):
            again = _first_difference_in_double(setup, prompt)
            numbers["differs_in_float64_at"] = again
            evidence += "; in float64 " + ("both agree" if again is None else f"they first differ at token {again}")
            bug = again is not None and again <= at and margin > DOUBLE_EXACT
        if bug:
            return [_greedy_bug(evidence, numbers)]
        ties.append(evidence)
    if not ties:
        return []
    return [
        Finding(
            "greedy-tie",
            "note",
            "Greedy outputs differ by a numerical tie: not a bug",
            ties[0] + (f" ({len(ties)} of {len(compared)} prompts)" if len(ties) > 1 else ""),
            "Scoring several tokens in one step sums in another order than one token at a time. Where two tokens are "
            "equally likely to within rounding, either may be the largest.",
            "Nothing; compare in float32 or float64 where equal tokens matter.",
            {"prompts": len(ties)},
        )
    ]


def _both_ways(setup: Setup, prompt: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Greedy tokens without drafts and with them."""
    plain = setup.generate(prompt, k=0, sampling=GREEDY).generation.tokens
    return plain, setup.generate(prompt, k=setup.max_k, sampling=GREEDY).generation.tokens


def _greedy_bug(evidence: str, numbers: dict[str, object]) -> Finding:
    return Finding(
        "greedy-differs",
        "problem",
        "Greedy outputs differ, and not by rounding",
        evidence,
        "The rule accepts a token that is not the target's most likely one, or compares the wrong row, or a cache is "
        "wrong.",
        "Run `specdec equivalence`: it names the position and the distribution. If the engine is unchanged, report it "
        "as a bug.",
        numbers,
    )


def _margin(setup: Setup, text: list[int], a: int, b: int) -> tuple[float, float]:
    """|logit a − logit b| after `text`, and the largest rounding error of the logits there.

    The rounding error is measured against float64. If that does not fit into memory, it is estimated from the number
    type.
    """
    model = setup.pair.target
    usual = plain_logits(model, text)[-1].double()
    if not _double_fits(setup):
        return float((usual[a] - usual[b]).abs()), torch.finfo(model.dtype).eps * float(usual.abs().max())
    double = plain_logits(copy.deepcopy(model).double(), text)[-1]
    return float((double[a] - double[b]).abs()), float((usual - double).abs().max())


def _double_fits(setup: Setup) -> bool:
    """Whether the pair can be copied in float64. A head cannot: it belongs to its own target."""
    if head_of(setup.new_drafter()) is not None:
        return False
    models = [m for m in (setup.pair.target, setup.draft_model) if m is not None]
    return 8 * sum(p.numel() for m in models for p in m.parameters()) < available_memory(setup.pair.device) / 2


def _first_difference_in_double(setup: Setup, prompt: Sequence[int]) -> int | None:
    """Decode both ways again in float64. Returns the position of the first difference, or None."""
    target = copy.deepcopy(setup.pair.target).double()
    draft = copy.deepcopy(setup.pair.draft).double() if setup.pair.draft is not None else None
    pair = Pair(target, draft, setup.pair.tokenizer)
    has_own_drafter = setup.drafter is not None or setup.pair.drafter is not None or draft is None
    drafter = setup.new_drafter() if has_own_drafter else None
    plain = setup.generate(prompt, k=0, sampling=GREEDY, pair=pair)
    drafted = setup.generate(prompt, k=setup.max_k, sampling=GREEDY, pair=pair, drafter=drafter)
    both = plain.generation.tokens, drafted.generation.tokens
    return None if both[0] == both[1] else _first_difference(*both)


def _first_difference(first: Sequence[int], second: Sequence[int]) -> int:
    """The position of the first difference. If one sequence begins with the other, the length of the shorter."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _show(setup: Setup, token: int) -> str:
    return repr(setup.models.target_tokenizer.decode([token]))
