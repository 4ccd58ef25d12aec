"""The promises of the empirical test: right samplers pass as often as stated, wrong ones do not, nothing is lost.

Statistical tests have fixed seeds; FALSE_ALARM is the probability to fail for a correct sampler with another seed.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import specdec_ref as sd
from specdec_lab.cli import main as cli
from specdec_lab.equivalence import proof_suite as suite
from specdec_lab.equivalence.empirical import COARSEST, SamplingPlan, carry_out, empirical, prepare, with_fewer
from specdec_lab.equivalence.engines import OurLoop, autoregressive
from specdec_lab.equivalence.greedy import greedy_agreement
from specdec_lab.equivalence.mutants import mutant
from specdec_lab.equivalence.outcome_tree import MINIMUM, grow_tree, pool
from specdec_lab.equivalence.result import Equivalence
from specdec_lab.equivalence.sampler import SamplerError
from specdec_lab.equivalence.statistics import chance_tv, detectable_tv, fit, holm, total_variation, tv_interval
from specdec_lab.equivalence.tiny import random_head
from specdec_ref import decoding
from specdec_ref.acceptance import acceptance_probability
from specdec_ref.api import VERIFICATIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

FALSE_ALARM = 0.001
PROMPTS = [[3, 7, 12, 9, 30], [5, 5, 8, 2, 40, 33, 1]]
LENGTH = 4
CUTS = sd.Sampling(temperature=0.8, top_k=12, top_p=0.9)


@pytest.fixture(scope="module")
def plan(pair: sd.Pair) -> SamplingPlan:
    return prepare(pair, PROMPTS, samples=8_000, false_alarm=FALSE_ALARM)


@pytest.fixture(scope="module")
def small(pair: sd.Pair) -> SamplingPlan:
    return prepare(pair, PROMPTS, samples=1_000, false_alarm=FALSE_ALARM)


# The outcomes.


@torch.inference_mode()
def joint(model: "PreTrainedModel", prompt: list[int], sampling: sd.Sampling) -> Tensor:
    """Probability of every pair of next tokens, [V, V], by whole forward passes and our own `Sampling`."""
    first = sampling.probabilities(model(torch.tensor([prompt])).logits[0, -1].double())
    every = torch.tensor([[*prompt, token] for token in range(len(first))])
    return first[:, None] * sampling.probabilities(model(every).logits[:, -1].double())


@pytest.mark.parametrize("sampling", [sd.Sampling(), CUTS], ids=["temperature 1", "cut"])
@pytest.mark.parametrize("least", [0.2, 0.01, 1e-4])
def test_outcomes_have_the_probabilities_of_whole_forward_passes(
    pair: sd.Pair, sampling: sd.Sampling, least: float
) -> None:
    p = joint(pair.target, PROMPTS[0], sampling)
    tree = grow_tree(pair.target, tuple(PROMPTS[0]), 2, sampling, least)
    truth = dict.fromkeys(tree.own, 0.0)
    for a in range(p.shape[0]):
        for b in range(p.shape[1]):
            name = next(name for name in ((a, b), (a,), ()) if name in truth)
            truth[name] += float(p[a, b])
    assert tree.own == pytest.approx(truth, abs=1e-6)
    assert sum(tree.own.values()) == pytest.approx(1, abs=1e-12)
    assert tree.rounding < 1e-5


@pytest.mark.parametrize("samples", [1, 50, 1_000, 20_000])
def test_pooled_outcomes_are_expected_often_enough_and_sum_to_one(pair: sd.Pair, samples: int) -> None:
    tree = grow_tree(pair.target, tuple(PROMPTS[0]), LENGTH, sd.Sampling(), 1e-3)
    bins = pool(tree, samples)
    assert bins.probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert len(bins.names) == 1 or bins.probabilities.min() * samples >= MINIMUM
    sums = np.zeros(len(bins.names))
    for tokens, own in tree.own.items():
        sums[bins.index[tokens]] += own
    assert sums == pytest.approx(bins.probabilities, abs=1e-12)


def test_what_follows_an_end_token_is_one_outcome(pair: sd.Pair) -> None:
    tree = grow_tree(pair.target, tuple(PROMPTS[0]), 2, sd.Sampling(), 1e-6, end=(3, 9))
    p = joint(pair.target, PROMPTS[0], sd.Sampling())
    ends = [name for name in tree.own if set(name) & {3, 9}]
    assert all(name[-1] == 3 and not {3, 9} & set(name[:-1]) for name in ends)
    assert tree.own[(3,)] == pytest.approx(float(p[[3, 9]].sum()), abs=1e-6)


def test_the_truth_does_not_run_the_code_under_test(pair: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> Any:
        raise AssertionError

    for owner, name in (
        (sd.TransformersModel, "extend"),
        (sd.RewindableCache, "update"),
        (sd.Sampling, "probabilities"),
        (decoding, "speculate"),
    ):
        monkeypatch.setattr(owner, name, broken)
    tree = grow_tree(pair.target, tuple(PROMPTS[0]), 3, CUTS, 0.01)
    assert sum(tree.own.values()) == pytest.approx(1)


# Right samplers and wrong ones.


def test_our_loop_is_consistent(pair: sd.Pair, plan: SamplingPlan) -> None:
    result = carry_out(plan, OurLoop(pair, k=LENGTH - 2))
    assert result.consistent, result.explain()
    assert result.samples == 8_000
    assert result.tv_interval[0] == 0 < result.tv < result.tv_interval[1]


@pytest.mark.parametrize("k", [0, 1, 3])
def test_cuts_leave_nothing_impossible(pair: sd.Pair, k: int) -> None:
    result = empirical(pair, OurLoop(pair, k, CUTS), PROMPTS, samples=4_000, sampling=CUTS, length=k + 2)
    assert result.consistent, result.explain()
    assert result.impossible == 0


def leaky(pair: sd.Pair, share: float) -> Callable[..., Tensor]:
    """Right samples, but some rows come from nowhere."""
    right = autoregressive(pair)

    def sample(prompt: list[int], number: int, length: int, seed: int) -> Tensor:
        rows = right.sample(prompt, number, length, seed)
        generator = torch.Generator().manual_seed(seed)
        leaks = torch.rand(number, 1, generator=generator) < share
        return torch.where(leaks, torch.randint(64, rows.shape, generator=generator), rows)

    return sample


def residual_is_target(p: Tensor, q: Tensor, drafted: Tensor, randomness: sd.Randomness) -> sd.Verdict:
    k = drafted.shape[-1]
    ratio = acceptance_probability(*(x[..., :k, :].gather(-1, drafted[..., None])[..., 0] for x in (p, q)))
    accepted = randomness.accept(ratio).long().cumprod(-1).sum(-1)
    return sd.Verdict(accepted, randomness.draw(p[torch.arange(len(p)), accepted]))


def test_a_leak_of_5_percent_is_refuted(pair: sd.Pair, plan: SamplingPlan) -> None:
    assert not carry_out(plan, leaky(pair, 0.05)).consistent


def test_a_wrong_rule_in_our_loop_is_refuted(
    pair: sd.Pair, plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VERIFICATIONS, "token", residual_is_target)
    result = carry_out(plan, OurLoop(pair, k=LENGTH - 2))
    assert not result.consistent
    assert "NOT the target" in result.explain()
    assert "Furthest off" in result.explain()


def test_the_drafts_own_samples_are_refuted_and_their_tv_is_in_the_interval(pair: sd.Pair, plan: SamplingPlan) -> None:
    draft = sd.Pair(pair.draft, None, pair.tokenizer)
    result = carry_out(plan, autoregressive(draft))
    assert not result.consistent
    truth = 0.0
    for p in result.prompts:
        theirs = grow_tree(pair.draft, p.prompt, LENGTH, sd.Sampling(), 1e-5)
        sums = dict.fromkeys(p.names, 0.0)
        known = pool(plan.trees[PROMPTS.index(list(p.prompt))], p.samples).index
        for tokens, own in theirs.own.items():
            while tokens not in known:
                tokens = tokens[:-1]
            sums[p.names[known[tokens]]] += own
        truth += sum(abs(sums[n] - q) for n, q in zip(p.names, p.probabilities, strict=True)) / 2 / len(result.prompts)
    low, high = result.tv_interval
    assert 0 < low <= truth <= high


def test_what_the_sampling_rules_out_refutes_by_itself(pair: sd.Pair) -> None:
    hard = sd.Sampling(top_k=12)
    result = empirical(pair, OurLoop(pair, 2, sd.Sampling(top_k=14)), PROMPTS, samples=1_000, sampling=hard)
    assert result.impossible > 0
    assert result.p_value == 0
    assert not result.consistent
    assert "Impossible under this sampling" in result.explain()


def test_p_values_of_a_right_sampler_are_uniform(pair: sd.Pair, small: SamplingPlan) -> None:
    """Kolmogorov and Smirnov over 40 seeds."""
    p_values = [carry_out(small, OurLoop(pair, k=LENGTH - 2), seed=seed).p_value for seed in range(40)]
    assert stats.kstest(p_values, "uniform").pvalue > FALSE_ALARM
    assert len(set(p_values)) == 40


# What the statistics promise.


def multinomial(probabilities: list[np.ndarray], samples: int, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.multinomial(samples, p) for p in probabilities]


def shifted(p: np.ndarray, tv: float, chosen: np.ndarray) -> np.ndarray:
    """p moved by `tv` from what is not chosen to what is, in proportion."""
    return np.where(chosen, p * (1 + tv / p[chosen].sum()), p * (1 - tv / p[~chosen].sum()))


@pytest.fixture(scope="module")
def synthetic() -> list[np.ndarray]:
    """Two prompts, 60 and 25 outcomes, the rarest expected 20 times in 2,500."""
    rng = np.random.default_rng(1)
    raw = [rng.dirichlet(np.full(n, 0.7)) for n in (60, 25)]
    return [(r + 0.01) / (r + 0.01).sum() for r in raw]


@pytest.mark.parametrize("alarm", [0.05, 0.01])
def test_false_alarms_come_as_often_as_stated(synthetic: list[np.ndarray], alarm: float) -> None:
    """2,000 simulations; the count is binomial, and this fails once in 1,000 times."""
    rng = np.random.default_rng(0)
    alarms = sum(fit(multinomial(synthetic, 2_500, rng), synthetic).p_value < alarm for _ in range(2_000))
    assert stats.binomtest(alarms, 2_000, alarm).pvalue > FALSE_ALARM


def test_the_detectable_difference_is_found_99_times_in_100_in_the_worst_direction(synthetic: list[np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    freedom = sum(len(p) - 1 for p in synthetic)
    tv = detectable_tv(5_000, freedom, FALSE_ALARM)
    found = 0
    for _ in range(1_000):
        wrong = [shifted(p, tv, rng.permutation(len(p)) < len(p) // 2) for p in synthetic]
        found += fit(multinomial(wrong, 2_500, rng), synthetic).p_value < FALSE_ALARM
    assert stats.binomtest(found, 1_000, 0.99, alternative="less").pvalue > FALSE_ALARM


def test_more_samples_detect_less_and_more_outcomes_need_more() -> None:
    assert detectable_tv(40_000, 50) == pytest.approx(detectable_tv(10_000, 50) / 2, rel=1e-4)
    assert detectable_tv(10_000, 500) > detectable_tv(10_000, 50)
    assert detectable_tv(0, 50) == detectable_tv(10, 0) == detectable_tv(1, 50) == 1
    with pytest.raises(sd.SpecdecError, match="false_alarm"):
        detectable_tv(10, 10, 1.5)


@pytest.mark.parametrize("tv", [0.0, 0.05, 0.2])
def test_the_interval_holds_the_true_tv(synthetic: list[np.ndarray], tv: float) -> None:
    """It promises 95 of 100 and is cautious: 20 failures of 200 would come once in 400 times."""
    rng = np.random.default_rng(3)
    misses = 0
    for _ in range(200):
        wrong = [shifted(p, tv, rng.permutation(len(p)) < len(p) // 2) for p in synthetic]
        low, high = tv_interval(multinomial(wrong, 1_250, rng), multinomial(wrong, 1_250, rng), synthetic)
        misses += not low - 1e-12 <= tv <= high
    assert misses < 20


def test_chance_alone_makes_the_tv_that_is_stated(synthetic: list[np.ndarray]) -> None:
    rng = np.random.default_rng(4)
    seen = [total_variation(multinomial(synthetic, 2_500, rng), synthetic) for _ in range(200)]
    assert chance_tv([2_500, 2_500], synthetic) == pytest.approx(np.mean(seen), rel=0.03)


def test_holms_correction() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


# What it says before it starts.


def test_the_plan_says_what_it_will_find(plan: SamplingPlan) -> None:
    said = plan.explain()
    assert f"{plan.detectable:.3f}" in said
    assert "once in 1,000 tests" in said
    assert "8,000 samples of the first 4 tokens after 2 prompts" in said


def test_too_few_samples_are_refused_with_the_number_that_would_do(pair: sd.Pair) -> None:
    with pytest.raises(sd.SpecdecError, match=r"samples=20: too few") as refused:
        prepare(pair, PROMPTS, samples=20)
    enough = int(str(refused.value).split(";")[1].split()[0].replace(",", ""))
    plan = prepare(pair, PROMPTS, samples=enough)
    assert plan.detectable <= COARSEST


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": sd.GREEDY}, "temperature=0"),
        ({"sampling": sd.Sampling(top_k=1)}, "certain of what follows"),
        ({"sampling": "warm"}, "sampling='warm'"),
        ({"samples": 0}, "samples=0"),
        ({"samples": 2.5}, r"samples=2\.5"),
        ({"length": 0}, "length=0"),
        ({"length": 125}, "one has 5 tokens; takes 1 to 3"),
        ({"length": 200}, "length=200: the target holds 128 tokens"),
        ({"false_alarm": 0.0}, r"false_alarm=0\.0"),
        ({"prompts": []}, r"prompts=\[\]"),
        ({"prompts": "text"}, "prompts='text'"),
        ({"prompts": [[]]}, "one has 0 tokens"),
        ({"prompts": [[64]]}, "token id 64 is not in the vocabulary"),
        ({"prompts": [[1.5]]}, "takes text, or a list of token ids"),
    ],
    ids=str,
)
def test_wrong_use_is_a_clear_error(pair: sd.Pair, changes: dict[str, Any], words: str) -> None:
    arguments = {"prompts": PROMPTS, "samples": 1_000} | changes
    with pytest.raises(sd.SpecdecError, match=words):
        prepare(pair, arguments.pop("prompts"), **arguments)


@pytest.mark.parametrize("samples", [1_000, 1_001, 8_000])
def test_a_plan_for_fewer_samples_is_the_one_made_for_them(pair: sd.Pair, plan: SamplingPlan, samples: int) -> None:
    fresh, smaller = prepare(pair, PROMPTS, samples=samples), with_fewer(plan, samples)
    assert smaller.samples == fresh.samples
    assert (smaller.outcomes, smaller.detectable) == (fresh.outcomes, fresh.detectable)
    assert smaller.uncounted == pytest.approx(fresh.uncounted, abs=1e-9)
    for one, other, n in zip(smaller.trees, fresh.trees, fresh.samples, strict=True):
        ours, theirs = pool(one, n), pool(other, n)
        assert ours.names == theirs.names
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-9)


def test_a_plan_for_more_samples_has_to_be_made(plan: SamplingPlan) -> None:
    with pytest.raises(sd.SpecdecError, match=r"samples=8001: takes a whole number, 1 … 8000"):
        with_fewer(plan, 8_001)


def test_text_prompts_are_tokenized_and_a_model_alone_will_do(pair: sd.Pair, small: SamplingPlan) -> None:
    text = pair.tokenizer.decode(PROMPTS[0])
    ids = tuple(pair.tokenizer(text)["input_ids"])
    assert prepare(pair, [text], samples=1_000).trees[0].prompt == ids
    assert prepare(pair.target, PROMPTS, samples=1_000).detectable == small.detectable
    with pytest.raises(sd.SpecdecError, match="is text"):
        prepare(pair.target, [text], samples=1_000)


# Samplers that fail, and the samples that are kept.


class After:
    """A right sampler whose later calls go wrong. batch: rows to a call."""

    batch = 100

    def __init__(self, pair: sd.Pair, wrong: Callable[[Tensor], Any], good: int = 3):
        self.right, self.wrong, self.good = autoregressive(pair), wrong, good

    def sample(self, prompt: list[int], number: int, length: int, seed: int) -> Any:
        rows = self.right.sample(prompt, number, length, seed)
        self.good -= 1
        return rows if self.good >= 0 else self.wrong(rows)


def interrupt(rows: Tensor) -> Any:
    raise KeyboardInterrupt


def crash(rows: Tensor) -> Any:
    raise RuntimeError("the engine fell over")


def crash_at_length(rows: Tensor) -> Any:
    raise RuntimeError("CUDA error: device-side assert triggered\n" * 50)


def with_token(token: float) -> Callable[[Tensor], Any]:
    return lambda rows: [*rows[:-1].tolist(), [token, *rows[-1, 1:].tolist()]]


BAD: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "too few rows": (lambda rows: rows[:40], "gave 40 rows where 100 were asked for"),
    "no rows": (lambda rows: [], "gave 0 rows where 100 were asked for"),
    "too many rows": (lambda rows: torch.cat([rows, rows]), "gave 200 rows where 100"),
    "too few columns": (lambda rows: rows[:, :2], "row 0 has 2 tokens; takes 4"),
    "with the prompt": (lambda rows: torch.cat([rows, rows], 1), "without the prompt"),
    "ragged": (lambda rows: [*rows[:50].tolist(), [1, 2], *rows[51:].tolist()], "row 50 has 2 tokens"),
    "id too large": (with_token(64), "row 99 holds 64, not in the vocabulary, 0 … 63"),
    "negative id": (with_token(-1), "row 99 holds -1, not in the vocabulary"),
    "not a number": (with_token(float("nan")), "row 99 holds nan"),
    "floats": (lambda rows: rows.float() / 2, "takes token ids, which are whole numbers"),
    "text": (lambda rows: ["abcd"] * 100, "row 0 is 'abcd'"),
    "nothing": (lambda rows: None, "gave None"),
    "a number": (lambda rows: torch.tensor(3), "gave array"),
    "one row": (lambda rows: rows[0], "row 0 is"),
    "a generator": (lambda rows: (row for row in rows.tolist()), "gave <generator object"),
    "a dictionary": (lambda rows: {"sequences": rows}, "gave {'sequences'"),
    "whole numbers as floats": (lambda rows: rows.double(), "row 0 holds .*, which are whole numbers"),
    "booleans": (lambda rows: rows > 3, "which are whole numbers"),
    "a crash": (crash, "RuntimeError: the engine fell over"),
    "a crash of many lines": (crash_at_length, "RuntimeError: CUDA error: device-side assert triggered CUDA"),
}


@pytest.mark.parametrize(("wrong", "words"), BAD.values(), ids=BAD)
def test_a_bad_sampler_is_a_clear_error_that_keeps_what_was_drawn(
    pair: sd.Pair, small: SamplingPlan, wrong: Callable[[Tensor], Any], words: str
) -> None:
    with pytest.raises(SamplerError, match=words) as failed:
        carry_out(small, After(pair, wrong))
    samples_drawn = 340 if words.startswith("gave 40") else 300
    assert "\n" not in str(failed.value)
    assert len(str(failed.value)) < 300
    assert f"after {samples_drawn} of 1,000 samples, which are kept" in str(failed.value)
    assert failed.value.partial is not None
    assert failed.value.partial.samples == samples_drawn
    assert failed.value.partial.partial
    assert failed.value.partial.consistent


def test_a_sampler_bad_from_the_start_has_nothing_to_keep(pair: sd.Pair, small: SamplingPlan) -> None:
    with pytest.raises(SamplerError, match="before the first sample") as failed:
        carry_out(small, After(pair, crash, good=0))
    assert failed.value.partial is None


def test_an_interrupt_keeps_what_was_drawn(pair: sd.Pair, small: SamplingPlan) -> None:
    result = carry_out(small, After(pair, interrupt, good=5))
    assert result.partial
    assert (result.samples, result.asked) == (500, 1_000)
    assert [p.samples for p in result.prompts] == [300, 200]
    assert result.detectable > small.detectable
    assert "after 500 of 1,000 samples" in result.explain()


def test_an_interrupt_before_the_first_sample_is_an_interrupt(pair: sd.Pair, small: SamplingPlan) -> None:
    with pytest.raises(KeyboardInterrupt):
        carry_out(small, After(pair, interrupt, good=0))


def test_a_sampler_that_ignores_its_seed_is_found_out(pair: sd.Pair, small: SamplingPlan) -> None:
    right = autoregressive(pair, batch=100)

    def stuck(prompt: list[int], number: int, length: int, seed: int) -> Tensor:
        return right.sample(prompt, number, length, 0)

    stuck.batch = 100  # type: ignore[attr-defined]
    with pytest.raises(SamplerError, match="the same rows for two seeds"):
        carry_out(small, stuck)


@pytest.mark.parametrize("sampler", [None, 3, OurLoop, object()], ids=["nothing", "a number", "a class", "an object"])
def test_what_is_no_sampler_is_refused(pair: sd.Pair, small: SamplingPlan, sampler: Any) -> None:
    with pytest.raises(sd.SpecdecError, match="sampler"):
        carry_out(small, sampler)


@pytest.mark.parametrize("batch", [0, -3, 2.5, "many", None, True])
def test_a_batch_that_is_no_number_of_rows_is_refused(pair: sd.Pair, small: SamplingPlan, batch: Any) -> None:
    right = autoregressive(pair)
    right.batch = batch
    with pytest.raises(sd.SpecdecError, match="sampler: its batch is"):
        carry_out(small, right)


def test_lists_and_functions_are_accepted_and_progress_is_reported(pair: sd.Pair, small: SamplingPlan) -> None:
    heard: list[tuple[int, int]] = []
    right = autoregressive(pair)
    result = carry_out(
        small, lambda *arguments: right.sample(*arguments).tolist(), on_progress=lambda *now: heard.append(now)
    )
    assert result.consistent
    assert heard[-1] == (1_000, 1_000)


class Ending:
    """Our loop, which stops at some ids and fills the rest with rubbish, or not at all."""

    eos = frozenset({9, 3})

    def __init__(self, pair: sd.Pair, padded: bool):
        self.loop, self.padded = OurLoop(pair, 2), padded

    def sample(self, prompt: list[int], number: int, length: int, seed: int) -> list[list[int]]:
        rows = self.loop.sample(prompt, number, length, seed).tolist()
        ends = [next((i + 1 for i, token in enumerate(row) if token in self.eos), length) for row in rows]
        return [row[:end] + [-7] * (length - end) * self.padded for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("padded", [True, False])
def test_samplers_may_stop_at_end_tokens(pair: sd.Pair, padded: bool) -> None:
    result = empirical(pair, Ending(pair, padded), PROMPTS, samples=2_000)
    assert result.consistent, result.explain()
    assert any(name and name[-1] == 3 and len(name) < LENGTH for p in result.prompts for name in p.names)


def test_a_plan_for_other_end_tokens_is_refused(pair: sd.Pair, small: SamplingPlan) -> None:
    with pytest.raises(sd.SpecdecError, match=r"stops at \[3, 9\]"):
        carry_out(small, Ending(pair, True))


# The verdict.


@pytest.fixture(scope="module")
def verdict(pair: sd.Pair, small: SamplingPlan) -> Equivalence:
    return carry_out(small, OurLoop(pair, k=2))


def test_the_verdict_is_json(verdict: Equivalence) -> None:
    facts = json.loads(json.dumps(verdict.to_dict()))
    assert facts["consistent"]
    assert facts["samples"] == sum(p["samples"] for p in facts["prompts"]) == 1_000
    assert facts["outcomes"] - 2 == facts["degrees_of_freedom"]
    assert facts["p_value"] == verdict.p_value


def test_the_figure_shows_every_outcome_and_its_title_the_verdict(verdict: Equivalence) -> None:
    (axes,) = verdict.figure().axes
    assert "consistent with the target" in axes.get_title(loc="left")
    points = sum(len(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "None")
    assert points == verdict.outcomes
    assert axes.get_xlabel()
    assert axes.get_ylabel()


# Greedy decoding.


def test_greedy_decoding_is_token_by_token_the_targets(pair: sd.Pair) -> None:
    result = greedy_agreement(pair, PROMPTS, 24)
    assert result.differences == ()
    assert result.tokens == 48
    assert "all identical" in result.explain()


@pytest.fixture(scope="module")
def twins(pair: sd.Pair, tiny_model: "Callable[..., PreTrainedModel]") -> sd.Pair:
    """Tokens 2i and 2i + 1 have the same logit always."""
    model = tiny_model("llama")
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight[1::2] = weight[::2]
    return sd.Pair(model, None, pair.tokenizer)


def changed(pair: sd.Pair, token: Callable[[int], int], at: int) -> Callable[..., list[list[int]]]:
    """Greedy decoding with another token put in at one place, going on from there."""
    right = autoregressive(pair, sd.GREEDY)

    def sample(prompt: list[int], number: int, length: int, seed: int) -> list[list[int]]:
        before = right.sample(prompt, 1, at + 1, seed)[0].tolist()
        before[at] = token(before[at])
        return [before + right.sample([*prompt, *before], 1, length - at - 1, seed)[0].tolist()]

    return sample


def test_where_rounding_decides_a_difference_is_a_tie(twins: sd.Pair) -> None:
    result = greedy_agreement(twins, PROMPTS, 12, changed(twins, lambda token: token ^ 1, at=5))
    assert {(d.prompt, d.position) for d in result.differences} >= {(0, 5), (1, 5)}
    assert result.consistent
    assert "numerical tie" in result.explain()


def test_where_it_does_not_a_difference_is_a_bug(pair: sd.Pair) -> None:
    result = greedy_agreement(pair, PROMPTS, 12, changed(pair, lambda token: (token + 1) % 64, at=5))
    first = result.differences[0]
    assert (first.prompt, first.position) == (0, 5)
    assert first.margin > 0.01 > first.rounding
    assert not result.consistent
    assert "a bug" in result.explain()


# The command line, on a tiny pair of its own.


@pytest.fixture(scope="module")
def folders(pair: sd.Pair, tokenizer: "PreTrainedTokenizerFast", tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("pair")
    for name, model in (("target", pair.target), ("draft", pair.draft)):
        model.save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    return ["--target", str(home / "target"), "--draft", str(home / "draft"), "--device", "cpu"]


@pytest.fixture
def specdec(folders: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["specdec", "equivalence", *folders, "--prompts", "2", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return (exit.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run


def draft_alone(pair: sd.Pair, sampling: sd.Sampling) -> OurLoop:
    """An engine by name, and a wrong one."""
    return autoregressive(sd.Pair(pair.draft, None, pair.tokenizer), sampling)


def interrupted(pair: sd.Pair, sampling: sd.Sampling) -> After:
    return After(pair, interrupt)


def failing(pair: sd.Pair, sampling: sd.Sampling) -> After:
    return After(pair, crash)


def test_the_command_says_first_what_it_can_find_and_ends_with_0(specdec: Any, tmp_path: Path) -> None:
    picture = tmp_path / "verdict.svg"
    status, out, err = specdec("--samples", "2000", "--figure", str(picture))
    assert status == 0, err
    assert 0 < out.index("99 times in 100") < out.index("consistent with the target")
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


def test_the_command_prints_json_and_ends_with_1_for_a_wrong_engine(specdec: Any) -> None:
    status, out, _ = specdec("--samples", "4000", "--engine", f"{__name__}:draft_alone", "--json")
    assert status == 1
    assert json.loads(out)["p_value"] < FALSE_ALARM


@pytest.mark.parametrize("drafter", ["lookup", "tree-without-replacement"])
def test_the_command_takes_other_drafting_methods(drafter: str, specdec: Any) -> None:
    status, out, err = specdec("--samples", "1000", "--drafter", drafter)
    assert status == 0, err
    assert f"our loop, k = 2, {drafter}: consistent with the target" in out


def test_the_command_takes_the_folder_of_a_head(specdec: Any, pair: sd.Pair, tmp_path: Path) -> None:
    sd.save_head(random_head(pair.target, "feature"), tmp_path)
    status, out, err = specdec("--samples", "1000", "--drafter", str(tmp_path))
    assert status == 0, err
    assert "consistent with the target" in out.replace("\n", " ")


def test_an_interrupted_command_tells_what_was_drawn(specdec: Any) -> None:
    status, out, _ = specdec("--samples", "1000", "--engine", f"{__name__}:interrupted")
    assert status == 130
    assert "300 of 1,000 samples" in out


def test_an_engine_that_fails_is_one_line_after_what_was_drawn(specdec: Any) -> None:
    status, out, err = specdec("--samples", "1000", "--engine", f"{__name__}:failing")
    assert status == 2
    assert "300 of 1,000 samples" in out
    assert len(err.strip().splitlines()) == 1
    assert "the engine fell over" in err


def test_the_exact_command_proves_every_case_and_ends_with_0(specdec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [case for case in suite.cases() if case.name in ("k by CostModelSpeculation, timed", "top-p", "eos")]
    monkeypatch.setattr(suite, "cases", lambda: few)
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = specdec("--exact")
    assert status == 0, err
    lines = [line for line in out.splitlines() if re.search(r"\de[+-]\d\d +✓", line)]
    assert len(lines) == 3 + 1  # three cases and their one method; a narrow terminal leaves out no difference
    assert re.search(r"draft model +3 ", out)
    assert "3 proofs, no sampling, tolerance 1e-9: each of them exactly the target's distribution" in out
    assert specdec("--exact", "--json")[0] == 0


def test_the_exact_command_ends_with_1_for_a_wrong_loop(specdec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [case for case in suite.cases() if case.name in ("p = q", "V=2 k=1")]
    monkeypatch.setattr(suite, "cases", lambda: few)
    with mutant("residual-is-target").installed():
        status, out, _ = specdec("--exact", "--json")
    assert status == 1
    assert [(fact["case"], fact["holds"]) for fact in json.loads(out)["proofs"]] == [
        ("V=2 k=1", False),
        ("p = q", True),
    ]


def test_the_greedy_command(specdec: Any) -> None:
    status, out, err = specdec("--greedy", "--json")
    assert status == 0, err
    assert json.loads(out)["tokens"] == 128


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", "0"), "--greedy"),
        (("--engine", "nonsense"), "nonsense"),
        (("--engine", "no_such_module:thing"), "cannot be imported"),
        (("--samples", "10"), "would do"),
        (("--k", "3"), "--k 3 with --length 4"),
        (("--k", "2", "--engine", "transformers"), "--k 2: changes nothing with --engine transformers"),
        (("--length", "2"), "--length 2"),
        (("--prompts", "0"), "--prompts 0"),
        (("--greedy", "--exact"), "one of them at a time"),
        (("--drafter", "nonsense"), "takes one of draft, head, parallel-head, tree"),
        (("--drafter", "suffix", "--exact"), "changes nothing with --exact, which covers every method"),
        (("--drafter", "suffix", "--engine", "transformers"), "changes nothing with --engine transformers"),
        (("--drafter", "tree-iid", "--verification", "block"), "a tree of candidates has a rule of its own"),
        (("--figure", "picture.txt"), ".png"),
        (("--figure", "no/such/folder/a.png"), "folder that exists"),
        (("--exact", "--figure", "a.png"), "--exact has none"),
        (("--seed", "-1"), "seed=-1"),
    ],
    ids=" ".join,
)
def test_wrong_use_of_the_command_is_one_line_and_status_2(
    specdec: Any, arguments: tuple[str, ...], words: str
) -> None:
    status, _, err = specdec(*arguments)
    assert status == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
