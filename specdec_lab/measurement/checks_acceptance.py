"""Checks of acceptance: does it match both models' distributions, and is it stuck at 0 or 100 %?

Acceptance can be computed: at every examined position, a drafted token is accepted with probability Σ min(p, q),
whatever came before. So the number of accepted tokens must be the sum of these probabilities, up to random variation.
Otherwise the loop is at fault, not a model.
"""

import math
from typing import Any

import torch
from scipy.stats import norm
from torch.nn import functional as F

from specdec_lab.measurement.diagnosis_setup import LEVEL, Measurement, RecordedGeneration, Setup, plain_logits
from specdec_lab.measurement.expected_acceptance import RecordedDecision, recording
from specdec_lab.measurement.findings import Finding
from specdec_lab.measurement.intervals import share_interval
from specdec_ref.acceptance import acceptance_rate
from specdec_ref.api import verification_rule
from specdec_ref.loading import Pair
from specdec_ref.sampling import Sampling

SIGMAS = 5
"""Standard deviations from the computed acceptance that random variation does not explain."""

FALSE_ALARM = 2 * float(norm.sf(SIGMAS))
"""Probability that a right rule is outside this range, by the normal approximation: one in 1.7 million."""

CONTROL_LEAST = {4: 0.97, 2: 0.85}
"""Share of its own drafts that the target must accept, by bytes of the number type. Rounding makes p and q differ by
about 1e-6 in float32 and 1 % in bfloat16, and at temperature 0 a tie can change a token."""

NEAR_ZERO = 0.1
"""An α for which no k pays: S > 1 would need c + v(2) below 1.1 with one drafted token, and less with more."""

SAME = 0.995
"""Average Σ min(p, q) at temperature 1 above which draft and target have the same distribution, up to rounding."""

CHEAP = 0.5
"""A draft with at most this share of the target's parameters counts as smaller."""

GENERATION_PART = 0.6
"""The share of the acceptance check's time for generating. Later checks use the same generations."""

FEW_JUDGED = 30
"""With fewer examined tokens nothing is said about α."""


def check_acceptance(setup: Setup) -> list[Finding] | None:
    """Are as many tokens accepted as the distributions allow?

    For a draft model with token verification, q and p are computed again with transformers' forward pass. For any other
    drafter or rule, the p and q that the rule received are used.
    """
    with setup.budget.part(GENERATION_PART):
        recordings = setup.recordings
    draft = setup.draft_model
    slack = 1.0
    if draft is not None and setup.verification == "token":
        rates = [rate for recorded in recordings for rate in _judged(setup, draft, recorded)]
        accepted, examined = sum(a for _, a in rates), len(rates)
        expected, variance = sum(b for b, _ in rates), sum(b * (1 - b) for b, _ in rates)
        if setup.pair.target.dtype.itemsize < 4:
            slack += 0.02 * examined  # q as sampled from and q as computed here differ by rounding
        counted = f"{accepted} of {examined} examined tokens accepted"
    else:
        decisions = _decisions(setup)
        accepted, examined = sum(d.accepted for d in decisions), len(decisions)
        expected, variance = sum(d.mean for d in decisions), sum(d.variance for d in decisions)
        counted = f"{accepted} tokens accepted in {examined} rounds"
    slack += SIGMAS * math.sqrt(variance)
    numbers: dict[str, Any] = {"accepted": accepted, "examined": examined, "expected": expected, "slack": slack}
    numbers["false_alarm_rate"] = FALSE_ALARM
    words = f"{counted}, {expected:.1f} ± {slack:.1f} expected"
    if draft is not None:
        numbers |= _own_draft(setup)
    setup.measurements["acceptance"] = Measurement(words, numbers)
    own, own_examined = numbers.get("own_accepted", 0), numbers.get("own_examined", 0)
    alone = f"; with the target as its own draft {own} of {own_examined}" if draft is not None else ""
    evidence = f"{words} from p and q (a right rule leaves this range once in {1 / FALSE_ALARM:,.0f} checks){alone}"
    if accepted > expected + slack:
        limit = "the proven optimum for blocks" if setup.verification == "block" else "Σ min(p, q) for each token"
        return [
            Finding(
                "acceptance-too-high",
                "problem",
                "More tokens are accepted than the rule allows",
                evidence,
                f"No rule with the target's distribution accepts more on average than {limit}. This one accepts tokens "
                "that it should reject, so the output no longer follows the target's distribution. Known causes: u "
                "fixed at 0, p and q of different rows, q not the distribution that the token was sampled from.",
                "Run `specdec equivalence`. If the engine is unchanged, report it as a bug.",
                numbers,
            )
        ]
    smallest_share = CONTROL_LEAST[min(4, setup.pair.target.dtype.itemsize)]
    if accepted < expected - slack or own < smallest_share * own_examined:
        return [
            Finding(
                "acceptance-lost",
                "problem",
                "The loop loses acceptance that the models have",
                evidence,
                "A target that drafts for itself must accept everything. Acceptance is lost between drafting and "
                "verification: the draft sampled at another temperature than q's, a cache that is not rewound, a wrong "
                "row.",
                "Look at the drafter first: it must sample from exactly the distribution that it returns. A better "
                "draft model will not help.",
                numbers,
            )
        ]
    return []


def _own_draft(setup: Setup) -> dict[str, int]:
    """Accepted and examined tokens with the target as its own draft."""
    itself = Pair(setup.pair.target, setup.pair.target, setup.pair.tokenizer)
    recordings = setup.as_many_as_fit(
        "prompts with the target as its own draft",
        range(len(setup.prompts[:2])),
        lambda i: setup.generate(setup.prompts[i], k=setup.max_k, pair=itself, seed=i),
        minimum=0,
    )
    return {"own_accepted": sum(p.accepted for p in recordings), "own_examined": sum(p.examined for p in recordings)}


def _decisions(setup: Setup) -> list[RecordedDecision]:
    """The decisions of the setup's rule in new generations."""
    drafter, decisions = recording(
        setup.new_drafter(), verification_rule(setup.verification), setup.verification == "block"
    )
    setup.as_many_as_fit(
        "prompts with recorded decisions",
        range(len(setup.prompts)),
        lambda i: setup.generate(setup.prompts[i], k=setup.max_k, drafter=drafter, seed=i),
    )
    assert decisions, "a generation has at least one round"
    return decisions


def _judged(setup: Setup, draft: "torch.nn.Module", recorded: RecordedGeneration) -> list[tuple[float, int]]:
    """(Σ min(p, q), accepted) for each examined token whose position in the text is known."""
    generation = recorded.generation
    text = [*generation.prompt_tokens, *generation.tokens]
    p = setup.sampling.probabilities(plain_logits(setup.pair.target, text))
    q = setup.sampling.probabilities(plain_logits(draft, text)[:, : p.shape[-1]])  # type: ignore[arg-type]
    rates = acceptance_rate(p, F.pad(q, (0, p.shape[-1] - q.shape[-1]))).clamp(0, 1).tolist()
    known, at = [], len(generation.prompt_tokens)
    for r in generation.rounds:
        for i in range(min(r.accepted + 1, len(r.drafted), len(r.emitted))):
            known.append((rates[at + i - 1], int(i < r.accepted)))
        at += len(r.emitted)
    return known


def check_stuck(setup: Setup) -> list[Finding]:
    """Is acceptance stuck at 0 or at 100 %?"""
    accepted, examined = setup.accepted
    if examined < FEW_JUDGED:
        return []
    low, high = share_interval(accepted, examined, LEVEL)
    numbers = {"accepted": accepted, "examined": examined, "alpha": accepted / examined, "interval": (low, high)}
    evidence = f"{accepted} of {examined} examined tokens accepted, α between {low:.2f} and {high:.2f}"
    setup.measurements["stuck"] = Measurement(f"α between {low:.2f} and {high:.2f}", numbers)
    draft = setup.draft_model
    if high < NEAR_ZERO and draft is not None:
        return [
            Finding(
                "acceptance-near-zero",
                "problem",
                "Almost nothing of the draft is accepted",
                evidence + "; the loop itself accepts what it should",
                "The draft does not predict the target's text: it is not trained, trained on something else, the wrong "
                "checkpoint, or made for another prompt format.",
                "Let the draft generate by itself. If the output is not text, the checkpoint is wrong. Otherwise take "
                "a draft of the target's family, or distill one.",
                numbers,
            )
        ]
    if draft is None or accepted < CONTROL_LEAST[min(4, setup.pair.target.dtype.itemsize)] * examined:
        return []
    overlap = _agreement(setup, draft)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (setup.pair.target, draft)]
    if overlap < SAME or sizes[1] <= CHEAP * sizes[0]:
        return []
    return [
        Finding(
            "acceptance-always-one",
            "problem",
            "The draft is the target itself, or nearly so",
            f"{evidence}; average Σ min(p, q) at temperature 1: {overlap:.4f}; parameters: target {sizes[0]:,}, draft "
            f"{sizes[1]:,}",
            "Everything is accepted because both predict the same, but each drafted token costs a step of the target.",
            "Name a smaller draft; check that target and draft are not the same path.",
            numbers | {"agreement": overlap, "target_parameters": sizes[0], "draft_parameters": sizes[1]},
        )
    ]


def _agreement(setup: Setup, draft: "torch.nn.Module") -> float:
    """Average Σ min(p, q) at temperature 1 over the recorded texts."""
    rates = []
    for recorded in setup.recordings:
        text = [*recorded.generation.prompt_tokens, *recorded.generation.tokens]
        p = Sampling().probabilities(plain_logits(setup.pair.target, text))
        q = Sampling().probabilities(plain_logits(draft, text)[:, : p.shape[-1]])  # type: ignore[arg-type]
        rates.append(acceptance_rate(p, F.pad(q, (0, p.shape[-1] - q.shape[-1]))))
    return float(torch.cat(rates).mean())
