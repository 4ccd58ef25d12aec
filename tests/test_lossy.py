"""The promises about verification rules: the distance of each lossy rule from the target (by hand, by enumeration and
in the whole loop), distance 0 for the exact rules, and measurements on a pair that match the rules.

Nothing is random: all drafted tokens and all decisions are enumerated.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specdec_lab.equivalence.enumeration import Choice, Script
from specdec_lab.equivalence.exact import exact
from specdec_lab.equivalence.lossy import (
    FirstToken,
    RecordingRandomness,
    Verify,
    acceptance_by_position,
    certain_draft,
    ensemble,
    expected_by_block,
    first_token,
    fly,
    lenient,
    longest_match,
    typical_acceptance,
)
from specdec_lab.equivalence.lossy_tradeoff import RULES, draft_blocks, tradeoff, tradeoff_figure
from specdec_lab.equivalence.tables import random_table
from specdec_ref import ModelDrafter, Pair, SpecdecError, residual, verify
from specdec_ref.api import VERIFICATIONS

ROOT = Path(__file__).parents[1]
P, Q = (torch.tensor(values, dtype=torch.float64) for values in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]))  # Σ min = 0.7
LOSSY: dict[str, Verify] = {
    "typical acceptance": typical_acceptance,
    "longest match": longest_match,
    "lenience": lenient,
    "ensemble": ensemble,
}
EXACT: dict[str, Verify] = {
    "verify": verify,
    "certain draft": certain_draft,
    "lenience 1": partial(lenient, lenience=1.0),
    "ensemble 0": partial(ensemble, weight=0.0),
}
ALL = EXACT | LOSSY


def assert_emits(found: FirstToken, emitted: Sequence[float], tv: float, acceptance: float) -> None:
    assert found.emitted.tolist() == pytest.approx(list(emitted), abs=1e-12)
    assert found.tv == pytest.approx(tv, abs=1e-12)
    assert found.acceptance == pytest.approx(acceptance, abs=1e-12)


# By hand, on p = (0.5, 0.3, 0.2) and q = (0.2, 0.3, 0.5)


def test_the_exact_rule_emits_the_target() -> None:
    assert_emits(first_token(verify, P, Q), [0.5, 0.3, 0.2], 0, 0.7)


def test_a_draft_taken_as_certain_is_exact_and_accepted_with_the_sum_of_pq() -> None:
    assert_emits(first_token(certain_draft, P, Q), [0.5, 0.3, 0.2], 0, 0.10 + 0.09 + 0.10)


def test_lenience_by_hand() -> None:
    """l·q = (0.1, 0.15, 0.25): the third is accepted with 0.8. The lost 0.1 goes to (0.4, 0.15, 0) / 0.55."""
    found = first_token(partial(lenient, lenience=0.5), P, Q)
    assert_emits(found, [0.2 + 0.1 * 0.4 / 0.55, 0.3 + 0.1 * 0.15 / 0.55, 0.4], 0.5 - 0.2 - 0.1 * 0.4 / 0.55, 0.9)


def test_an_ensemble_emits_the_mixture() -> None:
    found = first_token(partial(ensemble, weight=0.2), P, Q)
    assert_emits(found, [0.44, 0.30, 0.26], 0.2 * 0.3, 0.2 + 0.3 + 0.26)


def test_longest_match_by_hand() -> None:
    """Only token 0 is accepted, 0.2 of the time; else p is sampled."""
    assert_emits(first_token(longest_match, P, Q), [0.2 + 0.8 * 0.5, 0.8 * 0.3, 0.8 * 0.2], 0.1, 0.2)


def test_typical_acceptance_by_hand() -> None:
    """exp(−H) = 0.357, so Medusa's threshold is 0.09 and accepts all; a threshold of 0.25 rejects the third token."""
    assert_emits(first_token(typical_acceptance, P, Q), Q.tolist(), 0.3, 1.0)
    for epsilon, alpha in ((0.25, 1.0), (1.0, 0.7)):
        found = first_token(partial(typical_acceptance, epsilon=epsilon, alpha=alpha), P, Q)
        assert_emits(found, [0.2 + 0.5 * 0.5, 0.3 + 0.5 * 0.3, 0.5 * 0.2], 0.15, 0.5)


@pytest.mark.parametrize("name", LOSSY)
def test_every_lossy_rule_is_at_a_distance(name: str) -> None:
    assert first_token(LOSSY[name], P, Q).tv > 0.05


@pytest.mark.parametrize("name", ["typical acceptance", "lenience", "ensemble"])
def test_these_accept_more_than_the_exact_rule(name: str) -> None:
    assert first_token(LOSSY[name], P, Q).acceptance > 0.75


WEIGHTS = st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(any)


@given(WEIGHTS, WEIGHTS)
def test_every_exact_rule_is_at_distance_0(p: list[int], q: list[int]) -> None:
    target, draft = (torch.tensor(weights).double() / sum(weights) for weights in (p, q))
    for rule in EXACT.values():
        assert first_token(rule, target, draft).tv < 1e-12


@given(WEIGHTS, WEIGHTS, st.sampled_from([0.1, 0.4, 0.8]))
def test_lenience_raises_no_token_above_its_bound(p: list[int], q: list[int], lenience: float) -> None:
    """p(x)/l: Leviathan et al., appendix A.5."""
    target, draft = (torch.tensor(weights).double() / sum(weights) for weights in (p, q))
    emitted = first_token(partial(lenient, lenience=lenience), target, draft).emitted
    assert (emitted <= target / lenience + 1e-12).all()


# By enumeration


def played(rule: Verify, p: Tensor, q: Tensor) -> tuple[list[float], float]:
    """The distribution of the first token and the tokens per round, by enumeration of all drafts and all decisions."""
    k, size = q.shape
    first, tokens = [0.0] * size, 0.0
    for drafted in itertools.product(range(size), repeat=k):
        probability = float(torch.stack([q[i, token] for i, token in enumerate(drafted)]).prod())
        choices: list[Choice] | None = []
        while choices is not None and probability > 0:
            script = Script(choices)
            verdict = rule(p, q, torch.tensor(drafted), script)
            path = probability * script.probability(0)
            accepted = int(verdict.accepted)
            first[drafted[0] if accepted else int(verdict.next_token)] += path
            tokens += path * (accepted + 1)
            choices = script.following(0)
    return first, tokens


@pytest.mark.parametrize("name", ALL)
def test_first_token_and_acceptance_are_what_the_enumeration_finds(name: str) -> None:
    torch.manual_seed(1)
    p, q = torch.rand(3, 3).double().softmax(-1), (2 * torch.rand(2, 3)).double().softmax(-1)
    first, tokens = played(ALL[name], p, q)
    assert first_token(ALL[name], p[0], q[0]).emitted.tolist() == pytest.approx(first, abs=1e-12)
    expected = 0.0
    for drafted in itertools.product(range(3), repeat=2):
        accepted = acceptance_by_position(ALL[name], p, q, torch.tensor(drafted)).cumprod(-1).sum()
        expected += float(q[0, drafted[0]] * q[1, drafted[1]] * (1 + accepted))
    assert tokens == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_after_all_tokens_are_accepted_the_target_itself_is_sampled(name: str) -> None:
    """p = q = certain: everything is accepted, and the bonus token has p's last distribution."""
    certain = torch.eye(3).double()[[0, 1]]
    p = torch.cat([certain, P[None]])

    class Accepting(RecordingRandomness):
        def accept(self, probability: Tensor) -> Tensor:
            return probability > 0.5

    recorded = Accepting()
    verdict = ALL[name](p, certain, torch.tensor([0, 1]), recorded)
    assert int(verdict.accepted) == 2
    assert recorded.replacement.tolist() == pytest.approx(P.tolist(), abs=1e-12)


@pytest.mark.parametrize("rule", [*ALL.values(), partial(ensemble, weight=1.0)], ids=[*ALL, "ensemble 1"])
def test_a_token_that_was_not_drafted_is_never_accepted_and_replaced_by_the_target(rule: Verify) -> None:
    recorded = RecordingRandomness()
    rule(P.expand(2, 3), torch.zeros(1, 3).double(), torch.tensor([0]), recorded)
    assert float(recorded.acceptance[0]) == 0
    assert residual(recorded.replacement, torch.zeros(3)).tolist() == pytest.approx(P.tolist(), abs=1e-12)


@pytest.mark.parametrize("rule", ALL.values(), ids=ALL)
def test_rows_of_a_batch_are_decided_on_their_own(rule: Verify) -> None:
    p, q = torch.stack([P, Q])[:, None].expand(2, 2, 3), torch.stack([Q, P])[:, None]
    drafted = torch.tensor([[2], [0]])
    together = RecordingRandomness()
    rule(p, q, drafted, together)
    for row in range(2):
        alone = RecordingRandomness()
        rule(p[row], q[row], drafted[row], alone)
        assert torch.equal(together.acceptance[row], alone.acceptance)
        assert torch.equal(together.replacement[row], alone.replacement)


# In the whole loop


@pytest.mark.parametrize("name", ALL)
def test_the_proof_refutes_the_loop_with_a_lossy_rule_and_holds_with_an_exact_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VERIFICATIONS, "token", ALL[name])
    proof = exact(random_table(3, 1), ModelDrafter(random_table(3, 2)), [0], k=2, max_new_tokens=3)
    assert proof.holds is (name in EXACT)
    assert (proof.tv > 0.01) is (name in LOSSY)


# Measured on a pair

TEXTS = ["the rest of the sentence is not here", "another one, and that is the end of it"]


def test_the_tradeoff_of_the_exact_rule_is_distance_0_and_the_overlap_of_p_and_q(pair: Pair) -> None:
    blocks = draft_blocks(pair, positions=6, k=3, texts=TEXTS)
    assert blocks.p.shape == (6, 4, 64)
    assert blocks.q.shape == (6, 3, 64)
    assert blocks.drafted.shape == (6, 3)
    found = tradeoff(RULES[0], blocks)
    assert found.largest_tv < 1e-6
    assert found.acceptance == pytest.approx(float(torch.minimum(blocks.p[:, 0], blocks.q[:, 0]).sum(-1).mean()))
    assert 1 < found.tokens_per_round < 4


def test_several_drafts_at_each_position_change_the_means_over_drafted_tokens_only(pair: Pair) -> None:
    once = draft_blocks(pair, positions=3, k=2, texts=TEXTS)
    often = draft_blocks(pair, positions=3, k=2, texts=TEXTS, drafts=4)
    assert often.drafted.shape == (12, 2)
    assert len({tuple(block) for block in often.drafted.tolist()}) > 3
    torch.testing.assert_close(often.p[::4, 0], once.p[:, 0], rtol=0, atol=1e-5)
    for rule in (RULES[0], RULES[2]):
        assert tradeoff(rule, often).tv == pytest.approx(tradeoff(rule, once).tv, abs=1e-5)


def test_the_blocks_are_the_models_own(pair: Pair) -> None:
    blocks = draft_blocks(pair, positions=2, k=2, texts=TEXTS[:1])
    ids = pair.tokenizer(TEXTS[0])["input_ids"][:8]  # the first position of all
    text = torch.tensor([[*ids, *blocks.drafted[0].tolist()]])
    with torch.inference_mode():
        p = pair.target(input_ids=text, use_cache=False).logits[0, 7:].softmax(-1)
        assert pair.draft is not None
        q = pair.draft(input_ids=text, use_cache=False).logits[0, 7:-1].softmax(-1)
    torch.testing.assert_close(blocks.p[0], p, rtol=0, atol=1e-5)
    torch.testing.assert_close(blocks.q[0], q, rtol=0, atol=1e-5)


def test_more_lenience_gives_more_tokens_and_more_distance(pair: Pair) -> None:
    blocks = draft_blocks(pair, positions=6, k=3, texts=TEXTS)
    points = [tradeoff(rule, blocks) for rule in RULES if rule.family == "lenience"]
    assert len(points) > 3
    for strict, loose in itertools.pairwise(points):
        assert strict.tokens_per_round <= loose.tokens_per_round
        assert strict.tv < loose.tv
    assert points[0].tokens_per_round < points[-1].tokens_per_round


def test_the_figure_names_every_rule(pair: Pair) -> None:
    blocks = draft_blocks(pair, positions=2, k=2, texts=TEXTS)
    figure = tradeoff_figure([tradeoff(rule, blocks) for rule in RULES], 2)
    axes = figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    words = [text.get_text() for text in (*axes.texts, *legend.get_texts())]
    for rule in RULES:
        assert any(rule.family in word for word in words), rule.family
        assert any(rule.setting in word for word in words), rule.setting


# FLy: a rejection is overridden if the target is uncertain and the next tokens are accepted

UNCERTAIN = torch.tensor([0.4, 0.3, 0.3])  # entropy 1.09 nats
CERTAIN = torch.tensor([0.98, 0.01, 0.01])  # entropy 0.11


class Scripted(RecordingRandomness):
    """A `Randomness` with given decisions."""

    def __init__(self, decisions: Sequence[bool]):
        self.decisions = torch.tensor(decisions)

    def accept(self, probability: Tensor) -> Tensor:
        return self.decisions


def decisions_by_fly(native: Sequence[bool], p: Tensor, **options: Any) -> int:
    """How many tokens `fly` accepts if the exact rule decides as given. p: the same at every position."""
    k = len(native)
    q = torch.full((k, 3), 1 / 3)
    drafted = torch.zeros(k, dtype=torch.int64)
    return int(fly(p.expand(k + 1, 3), q, drafted, Scripted(native), **options).accepted)


@pytest.mark.parametrize(
    ("native", "window", "accepted"),
    [
        ((True, True, True, True), 1, 4),
        ((False, True, True, True), 1, 4),
        ((False, True, True, True), 3, 4),
        ((False, True, True, False), 3, 0),  # the window is not accepted
        ((False, True, True, False), 2, 3),
        ((False, False, True, True), 1, 0),  # an overridden token does not count in a window
        ((True, False, True, False), 1, 3),
        ((True, True, True, False), 1, 3),  # no window fits after the last token
        ((True, True, False, True), 2, 2),
    ],
)
def test_fly_overrides_a_rejection_before_accepted_tokens(native: Sequence[bool], window: int, accepted: int) -> None:
    assert decisions_by_fly(native, UNCERTAIN, window=window) == accepted
    plain = list(itertools.takewhile(bool, native))
    assert decisions_by_fly(native, CERTAIN, window=window) == len(plain)  # a certain target is never overridden


def test_fly_measures_the_entropy_of_the_most_likely_tokens() -> None:
    native = (False, True)
    assert decisions_by_fly(native, UNCERTAIN, entropy=1.08) == 2
    assert decisions_by_fly(native, UNCERTAIN, entropy=1.10) == 0
    assert decisions_by_fly(native, UNCERTAIN, entropy=0.37, top_k=1) == 0  # −0.4·ln 0.4 = 0.367
    assert decisions_by_fly(native, UNCERTAIN, entropy=0.36, top_k=1) == 2


def test_fly_never_overrides_a_token_that_the_target_excludes() -> None:
    assert decisions_by_fly((False, True), torch.tensor([0.0, 0.5, 0.5])) == 0


def test_the_distance_of_fly_is_the_probability_of_an_override() -> None:
    """Against an enumeration of all blocks of two tokens and of all decisions."""
    p, q = torch.stack([P, P, P]), torch.stack([Q, Q])
    first, tokens = played(fly, p, q)
    overridden, accepted = 0.0, 0.0
    for drafted in itertools.product(range(3), repeat=2):
        block = p, q, torch.tensor(drafted)
        number, first_accepted = expected_by_block(fly, *block)
        probability = float(q[0, drafted[0]] * q[1, drafted[1]])
        overridden += probability * (first_accepted - float(acceptance_by_position(verify, *block)[0]))
        accepted += probability * number
    assert overridden == pytest.approx(0.3 * 0.7, abs=1e-12)  # token 0 is rejected, token 1 is accepted
    assert sum(abs(x - y) for x, y in zip(first, P.tolist(), strict=True)) / 2 == pytest.approx(overridden, abs=1e-12)
    assert tokens == pytest.approx(1 + accepted, abs=1e-12)


def test_the_proof_refutes_the_loop_with_fly(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = random_table(3, 1), ModelDrafter(random_table(3, 2))
    monkeypatch.setitem(VERIFICATIONS, "token", fly)
    assert exact(*tables, [0], k=2, max_new_tokens=3).tv > 0.01
    monkeypatch.setitem(VERIFICATIONS, "token", partial(fly, entropy=1.1))  # above ln 3: never overrides
    assert exact(*tables, [0], k=2, max_new_tokens=3).holds


def test_over_all_decisions_a_rule_without_overrides_accepts_what_its_probabilities_say(pair: Pair) -> None:
    never = partial(fly, entropy=2.0)  # three tokens have at most ln 3
    blocks = draft_blocks(pair, positions=3, k=3, texts=TEXTS)
    by_position = acceptance_by_position(verify, blocks.p, blocks.q, blocks.drafted)
    for i, block in enumerate(zip(blocks.p, blocks.q, blocks.drafted, strict=True)):
        accepted, first = expected_by_block(never, *block)
        assert accepted == pytest.approx(float(by_position[i].cumprod(-1).sum()), abs=1e-6)
        assert first == pytest.approx(float(by_position[i, 0]), abs=1e-6)


def test_on_record_fly_gives_no_more_tokens_than_an_ensemble_at_the_same_distance() -> None:
    """Lesson 10 says so. The ensemble's curve is read off between its recorded points."""
    rules = json.loads((ROOT / "benchmarks/results/lossy.json").read_text(encoding="utf-8"))["rules"]
    points = {
        name: [(r["tv"], r["tokens_per_round"]) for r in rules if r["rule"] == name] for name in ("fly", "ensemble")
    }
    distances, tokens = zip(*points["ensemble"], strict=True)
    assert len(points["fly"]) == 3
    for distance, gained in points["fly"]:
        assert distances[0] < distance < distances[-1]
        assert gained <= np.interp(distance, distances, tokens)


# Bad input

ONE = torch.ones(1, 1)
TOKEN = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lenient(ONE, ONE, TOKEN, RecordingRandomness(), lenience=0),
            "lenience=0: takes a number, 0 < lenience ≤ 1",
        ),
        (
            lambda: lenient(ONE, ONE, TOKEN, RecordingRandomness(), lenience=float("nan")),
            "lenience=nan: takes a number",
        ),
        (
            lambda: ensemble(ONE, ONE, TOKEN, RecordingRandomness(), weight=1.5),
            "weight=1.5: takes a number, 0 ≤ weight ≤ 1",
        ),
        (lambda: typical_acceptance(ONE, ONE, TOKEN, RecordingRandomness(), epsilon=0), "epsilon=0: takes a number"),
        (lambda: typical_acceptance(ONE, ONE, TOKEN, RecordingRandomness(), alpha=-1), "alpha=-1: takes a number"),
        (lambda: fly(ONE, ONE, TOKEN, RecordingRandomness(), window=0), "window=0: takes a whole number"),
        (lambda: fly(ONE, ONE, TOKEN, RecordingRandomness(), top_k=1.5), "top_k=1.5: takes a whole number"),
        (lambda: fly(ONE, ONE, TOKEN, RecordingRandomness(), entropy=-1), "entropy=-1: takes a number"),
        *[
            (
                lambda rule=rule: rule(ONE, ONE, TOKEN, RecordingRandomness()),
                "p [1, 1], q [1, 1], drafted [1]: do not fit",
            )
            for rule in ALL.values()
        ],
        (lambda: first_token(verify, P, Q[:2]), "p [3], q [2]: take two distributions, [V]"),
        (lambda: first_token(verify, P[None], Q[None]), "p [1, 3], q [1, 3]: take two distributions"),
    ],
)
def test_wrong_use_is_reported_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecdecError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_positions_that_the_texts_do_not_have_are_refused(pair: Pair) -> None:
    with pytest.raises(SpecdecError, match="positions=500: the texts have"):
        draft_blocks(pair, positions=500, texts=TEXTS)
    with pytest.raises(SpecdecError, match="k=0: takes a whole number"):
        draft_blocks(pair, positions=2, k=0, texts=TEXTS)
    with pytest.raises(SpecdecError, match="pair: has no draft model"):
        draft_blocks(Pair(pair.target, None, pair.tokenizer), positions=2, texts=TEXTS)
