"""The promises of the diagnosis: each fault, put in for real, gives its finding and no other; a healthy pair none.

60 s of CPU time in all. Random models have fixed seeds, so that what is not timed comes out the same every time. Timed
faults are gross (a draft as large as its target), so that no noise of the machine hides them: a finding needs the whole
99 % interval on the wrong side.
"""

import copy
import json
import math
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

import specdec_ref as sd
from specdec_lab.cli.doctor_command import doctor
from specdec_lab.measurement import diagnostics
from specdec_lab.measurement.budget import Budget, OutOfTime
from specdec_lab.measurement.checks_drafting import lookup_overlap
from specdec_lab.measurement.checks_models import compare_vocabularies, judge_memory
from specdec_lab.measurement.checks_speed import blame, judge_speed, speed_ratios, terms_of
from specdec_lab.measurement.costs import Costs
from specdec_lab.measurement.diagnosis_setup import LEVEL, RecordedGeneration, Setup, prepare_setup
from specdec_lab.measurement.diagnostics import CHECKS, DoctorCheck, diagnose, examine
from specdec_lab.measurement.findings import CheckOutcome, Examination, Finding
from specdec_lab.measurement.intervals import quantile_interval
from specdec_lab.measurement.memory_profile import memory_profile
from specdec_lab.measurement.parts import Models
from specdec_lab.monitoring.monitor import SpeculativeDecodingMonitor
from specdec_ref import decoding
from specdec_ref.api import VERIFICATIONS

MEASUREMENT = Path(diagnostics.__file__).parent
PROMPTS = ["the rest is in the list ", "a tree, and on the stone ", "as is the start, so is the end ", "not one "]
QUICK: dict[str, Any] = {"prompts": PROMPTS, "max_new_tokens": 24}
LAYERS = 6


def shorten(target: PreTrainedModel, alike: float, seed: int = 1) -> PreTrainedModel:
    """A draft of the target's first layer, a little disturbed."""
    torch.manual_seed(seed)
    draft = copy.deepcopy(target)
    draft.model.layers = draft.model.layers[:1]
    draft.config.num_hidden_layers = 1
    with torch.no_grad():
        for weight in draft.model.layers.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * alike)
    return draft


def faint(target: PreTrainedModel, share: float) -> PreTrainedModel:
    """All layers but the first add little: what the first says is nearly what the model says."""
    with torch.no_grad():
        for layer in target.model.layers[1:]:
            layer.self_attn.o_proj.weight.mul_(share)
            layer.mlp.down_proj.weight.mul_(share)
        target.lm_head.weight.mul_(0.3)  # scores as even as a trained model's
    return target


@pytest.fixture(scope="module")
def healthy(tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> sd.Pair:
    """A target of six layers and a draft of one, which knows most of it: about 0.9 accepted, a third of the time."""
    target = faint(tiny_model("llama", num_hidden_layers=LAYERS), 0.01)
    return sd.Pair(target, shorten(target, 0.02), tokenizer)


def codes(findings: list[Finding]) -> list[str]:
    """All but those that judge times: whether a fault costs speed as well, and whether k is the best one for models as
    small as these, is up to the machine and how busy it is. Tests that are timed look at `all_codes`."""
    return [code for code in all_codes(findings) if code not in ("slower-than-without", "k-not-best")]


def all_codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


def renamed(tokenizer: PreTrainedTokenizerFast, swaps: dict[int, int]) -> PreTrainedTokenizerFast:
    """The same tokenizer with some ids exchanged."""
    facts = json.loads(tokenizer.backend_tokenizer.to_str())
    there = {**swaps, **{b: a for a, b in swaps.items()}}
    facts["model"]["vocab"] = {s: there.get(i, i) for s, i in facts["model"]["vocab"].items()}
    backend = tokenizer.backend_tokenizer.from_str(json.dumps(facts))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token)


# Nothing to find


@pytest.mark.parametrize("sampling", [sd.Sampling(), sd.Sampling(temperature=0.7, top_k=20)], ids=["T=1", "T=0.7"])
def test_a_healthy_pair_gives_no_finding(healthy: sd.Pair, sampling: sd.Sampling) -> None:
    assert codes(diagnose(healthy, sampling=sampling, draft_tokenizer=healthy.tokenizer, **QUICK)) == []


@pytest.mark.timed
def test_a_healthy_pair_is_not_called_slow(healthy: sd.Pair) -> None:
    assert "slower-than-without" not in all_codes(diagnose(healthy, **QUICK))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_runs_alone(healthy: sd.Pair, check: Any) -> None:
    """None: this check does not apply (here: load, which needs a batch, and thresholds, which need windows). Steps take
    long enough for the machine's noise not to matter, and seven of eight tokens are accepted, so that no other k is
    much better."""
    pair = sd.Pair(taking(healthy.target, 0.005), taking(shorten(healthy.target, 0.2), 0.0005), healthy.tokenizer)
    setup = prepare_setup(Models.of(pair, pair.tokenizer), **QUICK)
    assert check.run(setup) == (None if check.name in ("load", "thresholds") else [])


@pytest.mark.slow
def test_the_pair_that_ships_is_healthy() -> None:
    pair = sd.load_pair(device="cpu")
    prompts = list(sd.held_out_prompts().values())[:3]
    assert codes(diagnose(pair, prompts=prompts, max_new_tokens=24)) == []


# Faults that are found before anything is loaded


def test_permuted_ids_are_found_though_sizes_and_strings_are_the_same(healthy: sd.Pair) -> None:
    other = renamed(healthy.tokenizer, {7: 8, 20: 30})
    found = diagnose(healthy, draft_tokenizer=other, **QUICK)
    assert codes(found) == ["vocabulary-mismatch"]
    assert found[0].numbers["different"] == 4
    assert found[0].numbers["target_tokens"] == found[0].numbers["draft_tokens"]
    assert "id 7 is 'g' in the target and 'h' in the draft" in found[0].evidence


def test_padding_rows_are_reported_as_harmless(healthy: sd.Pair) -> None:
    """The draft gets 16 rows more in embedding and head, for ids that no text has."""
    draft = copy.deepcopy(healthy.draft)
    assert draft is not None
    draft.resize_token_embeddings(80, mean_resizing=False)
    padded = sd.Pair(healthy.target, draft, healthy.tokenizer)
    found = diagnose(padded, draft_tokenizer=healthy.tokenizer, **QUICK)
    assert codes(found) == ["vocabulary-padding"]
    assert found[0].severity == "note"
    assert (found[0].numbers["target_rows"], found[0].numbers["draft_rows"]) == (64, 80)


def test_a_tokenizer_with_more_tokens_than_its_model_is_found(healthy: sd.Pair) -> None:
    found = compare_vocabularies(healthy.tokenizer, healthy.tokenizer, 64, 60)
    assert codes(found) == ["vocabulary-rows-missing"]
    assert "draft" in found[0].title


def test_a_tokenizer_with_added_tokens_is_found_end_to_end(healthy: sd.Pair) -> None:
    facts = json.loads(healthy.tokenizer.backend_tokenizer.to_str())
    facts["model"]["vocab"] |= {"<new>": 64, "<newer>": 65}
    backend = healthy.tokenizer.backend_tokenizer.from_str(json.dumps(facts))
    longer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=healthy.tokenizer.eos_token)
    found = diagnose(healthy, draft_tokenizer=longer, **QUICK)
    assert codes(found) == ["vocabulary-rows-missing"]
    assert found[0].numbers == {"largest_id": 65, "rows": 64}


def test_too_little_memory_is_found(healthy: sd.Pair) -> None:
    found = diagnose(healthy, available=100_000, **QUICK)
    assert codes(found) == ["memory-too-small"]
    profile = memory_profile(healthy, context=found[0].numbers["context"], k=4)
    assert found[0].numbers["total"] == profile.total > found[0].numbers["available"] == 100_000


def test_memory_that_just_suffices_is_a_warning(healthy: sd.Pair) -> None:
    profile = memory_profile(healthy, context=60)
    assert codes(judge_memory(profile, round(profile.total * 1.05))) == ["memory-tight"]
    assert judge_memory(profile, round(profile.total * 1.2)) == []
    assert codes(judge_memory(profile, profile.total - 1)) == ["memory-too-small"]


def test_tight_memory_is_warned_of_and_nothing_else(healthy: sd.Pair) -> None:
    setup = prepare_setup(Models.of(healthy), **QUICK)
    longest = max(map(len, setup.prompts)) + setup.max_new_tokens
    needed = memory_profile(healthy, context=longest, k=setup.k).total
    found = diagnose(healthy, available=round(needed * 1.05), **QUICK)
    assert codes(found) == ["memory-tight"]
    assert found[0].severity == "warning"


# Faults of the loop


@pytest.mark.parametrize("role", ["draft", "target"])
def test_a_cache_that_is_not_rewound_is_found(healthy: sd.Pair, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache's number of layers identifies its model: the draft has one layer, the target six."""
    layers = 1 if role == "draft" else LAYERS
    rewind = sd.RewindableCache.rewind

    def broken(cache: sd.RewindableCache, lengths: list[int]) -> None:
        if len(cache.slots) != layers or cache.lengths == lengths:
            rewind(cache, lengths)

    monkeypatch.setattr(sd.RewindableCache, "rewind", broken)
    found = diagnose(healthy, **QUICK)
    assert codes(found) == [f"{role}-cache-stale"]
    assert found[0].numbers["largest_distance"] > 100 * found[0].numbers["noise"]


def test_a_draft_whose_last_token_is_never_fed_is_found(healthy: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM #4212 and others: when all are accepted the draft's cache lacks the last; it reads the next at its place."""

    class Forgetful(sd.ModelDrafter):
        def _catch_up(self, sequences: list[list[int]]) -> Tensor:
            if self._cached[0] == len(sequences[0]) - 2:  # all accepted: one sampled, one more emitted
                self.model.rewind(self._cached)
                return torch.tensor([sequences[0][-1:]])
            return super()._catch_up(sequences)

    drafter = Forgetful(sd.TransformersModel(healthy.draft))
    assert codes(diagnose(healthy, drafter=drafter, **QUICK)) == ["draft-cache-stale"]


def test_a_wrong_greedy_loop_is_found(healthy: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every drafted token is accepted. At a wrong one, the margin between the two tokens is far above rounding."""

    def keep_all(p: Tensor, q: Tensor, drafted: Tensor, randomness: sd.Randomness) -> sd.Verdict:
        all_accepted = torch.full(drafted.shape[:-1], drafted.shape[-1])
        return sd.Verdict(all_accepted, randomness.draw(p[..., -1, :]))

    monkeypatch.setitem(VERIFICATIONS, "token", keep_all)
    found = diagnose(healthy, **QUICK)
    assert codes(found) == ["greedy-differs"]
    assert found[0].numbers["margin"] > 100 * found[0].numbers["rounding"]


def test_a_comparison_with_the_row_before_is_found(healthy: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = decoding.verify

    def off_by_one(p: Tensor, q: Tensor, drafted: Tensor, randomness: sd.Randomness) -> sd.Verdict:
        return verify(p.roll(1, dims=1) if drafted.shape[1] else p, q, drafted, randomness)

    monkeypatch.setitem(VERIFICATIONS, "token", off_by_one)
    assert codes(diagnose(healthy, **QUICK)) == ["greedy-differs"]


def test_a_numerical_tie_is_distinguished_from_a_bug(healthy: sd.Pair) -> None:
    """Two tokens equally likely but for rounding, and a head that rounds otherwise for one token than for five."""
    target = copy.deepcopy(healthy.target)
    weight = target.lm_head.weight
    with torch.no_grad():
        weight[32:] = weight[:32] * (1 + 2e-7)  # each of the lower half has a twin, by an ulp or two larger
        weight[32:] *= 1.0

    def rounds_otherwise(module: torch.nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        if logits.shape[1] == 1:
            logits = logits.clone()
            logits[..., 32:] *= 1 - 8 * torch.finfo(logits.dtype).eps
        return logits

    target.lm_head.register_forward_hook(rounds_otherwise)
    found = diagnose(sd.Pair(target, healthy.draft, healthy.tokenizer), **QUICK)
    assert codes(found) == ["greedy-tie"]
    assert found[0].severity == "note"


def test_a_rule_that_accepts_too_much_is_found(healthy: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """vllm-ascend #13730: u fixed at 0. Greedy decoding does not show it."""
    monkeypatch.setattr(sd.SeededRandomness, "accept", lambda self, probability: probability > 0)
    worse = sd.Pair(healthy.target, shorten(healthy.target, 1.0), healthy.tokenizer)
    assert codes(diagnose(worse, prompts=PROMPTS, max_new_tokens=64)) == ["acceptance-too-high"]


def test_a_draft_that_is_drawn_at_another_temperature_is_found(healthy: sd.Pair) -> None:
    """transformers #40976: the assistant silently at temperature 1. Exact, since it says so, but less is accepted."""

    class Hot(sd.ModelDrafter):
        def propose(self, sequences: Any, k: int, sampling: sd.Sampling, randomness: sd.Randomness) -> sd.Draft:
            return super().propose(sequences, k, sd.Sampling(temperature=1.0), randomness)

    drafter = Hot(sd.TransformersModel(healthy.draft))
    found = diagnose(healthy, drafter=drafter, sampling=sd.Sampling(temperature=0.4), **QUICK)
    assert codes(found) == ["acceptance-lost"]
    assert found[0].numbers["own_accepted"] == found[0].numbers["own_examined"]  # not the loop: the drafter


def test_a_self_draft_that_is_rejected_is_found(healthy: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """q of a ModelDrafter is sharper than the distribution that it sampled from: tokens are rejected, or accepted too
    often."""
    propose = sd.ModelDrafter.propose

    def too_sure(self: sd.ModelDrafter, *arguments: Any) -> sd.Draft:
        draft = propose(self, *arguments)
        if draft.probabilities is None or draft.probabilities.shape[1] < 2:
            return draft
        sharper = draft.probabilities**2
        return sd.Draft(draft.tokens, sharper / sharper.sum(-1, keepdim=True))

    monkeypatch.setattr(sd.ModelDrafter, "propose", too_sure)
    found = diagnose(healthy, **QUICK)
    assert codes(found) in (["acceptance-lost"], ["greedy-differs"])


# Faults of the draft


def test_a_draft_that_knows_nothing_is_found(
    healthy: sd.Pair, tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    stranger = tiny_model("llama", seed=5, num_hidden_layers=1)
    pair = sd.Pair(healthy.target, stranger, tokenizer)
    found = diagnose(pair, sampling=sd.GREEDY, prompts=PROMPTS, max_new_tokens=48)
    assert codes(found) == ["acceptance-near-zero"]
    assert found[0].numbers["alpha"] < 0.1


def test_a_draft_that_is_the_target_is_found(healthy: sd.Pair) -> None:
    found = diagnose(sd.Pair(healthy.target, healthy.target, healthy.tokenizer), **QUICK)
    assert codes(found) == ["acceptance-always-one"]
    assert found[0].numbers["accepted"] == found[0].numbers["examined"] >= 30


def test_a_drafter_that_ignores_k_is_found(healthy: sd.Pair) -> None:
    class Shy(sd.ModelDrafter):
        def propose(self, sequences: Any, k: int, sampling: sd.Sampling, randomness: sd.Randomness) -> sd.Draft:
            return super().propose(sequences, min(k, 1), sampling, randomness)

    found = diagnose(healthy, drafter=Shy(sd.TransformersModel(healthy.draft)), k=4, **QUICK)
    assert codes(found) == ["k-not-reached"]
    assert found[0].severity == "warning"
    assert found[0].numbers["drafted"] < found[0].numbers["asked"] / 2


def test_a_drafter_that_is_rarely_confident_is_a_note(healthy: sd.Pair) -> None:
    found = diagnose(healthy, drafter=sd.ModelDrafter(sd.TransformersModel(healthy.draft), 0.999), **QUICK)
    assert codes(found) == ["k-not-reached"]
    assert found[0].severity == "note"


def test_a_drafter_that_copies_need_not_reach_k(healthy: sd.Pair) -> None:
    found = diagnose(healthy, drafter=sd.SuffixDrafter(), **QUICK)
    assert "k-not-reached" not in codes(found)


def test_a_context_that_ends_before_the_text_is_a_note(healthy: sd.Pair) -> None:
    """106 tokens of prompt and 24 new ones in models of 128: the last rounds have no room for four drafted tokens."""
    prompts = [[(7 * i + j) % 60 for i in range(106)] for j in range(4)]
    found = diagnose(healthy, prompts=prompts, max_new_tokens=24)
    assert codes(found) == ["k-cut-by-context"]
    assert found[0].severity == "note"
    assert found[0].numbers["cut"] > 0


def test_models_without_numbers_are_found(healthy: sd.Pair) -> None:
    broken = copy.deepcopy(healthy.target)
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    found = diagnose(sd.Pair(broken, healthy.draft, healthy.tokenizer), **QUICK)
    assert codes(found) == ["generation-fails"]
    assert "NaN" in found[0].evidence


# Faults of speed


def astray(target: PreTrainedModel, factor: float) -> PreTrainedModel:
    """A draft as cheap as the healthy one, but surer by that factor of the wrong tokens: its head is one row off."""
    draft = shorten(target, 0.02)
    with torch.no_grad():
        draft.lm_head.weight.copy_(draft.lm_head.weight.roll(1, 0) * factor)
    return draft


def taking(model: PreTrainedModel | None, seconds: float, for_each_token: float = 0.0) -> PreTrainedModel:
    """The same model, whose steps take so much longer: slow hardware, or one that computes all the time already.

    What a step of these small models takes by itself is mostly overhead, and moves with every version of anything.
    """
    assert model is not None
    slow = copy.deepcopy(model)

    def wait(module: torch.nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        tokens = named["input_ids"] if "input_ids" in named else arguments[0]
        time.sleep(seconds + for_each_token * tokens.numel())

    slow.register_forward_pre_hook(wait, with_kwargs=True)
    return slow


@pytest.mark.timed
def test_a_draft_as_slow_as_its_target_is_found(healthy: sd.Pair, disturbed: Callable[..., PreTrainedModel]) -> None:
    """It accepts most, and k of its steps cost k steps of the target: at best 5 tokens for the time of 5."""
    target, draft = (taking(model, 0.01) for model in (healthy.target, disturbed(healthy.target, 0.1)))
    found = diagnose(sd.Pair(target, draft, healthy.tokenizer), **QUICK)
    assert all_codes(found) == ["slower-than-without"]
    numbers = found[0].numbers
    assert numbers["blame"] in ("draft", "k")
    assert numbers["interval"][1] < 1
    assert numbers["c"] > 0.5
    assert numbers["predicted"] < 1


@pytest.mark.timed
def test_a_k_far_too_large_is_found(healthy: sd.Pair) -> None:
    """Half of the drafts accepted, 24 drafted: two tokens a round for 24 steps of the draft."""
    target, draft = taking(healthy.target, 0.01), taking(astray(healthy.target, 3), 0.0005)
    found = diagnose(sd.Pair(target, draft, healthy.tokenizer), k=24, prompts=PROMPTS, max_new_tokens=48)
    assert all_codes(found) in (["slower-than-without"], ["k-not-best"])
    assert found[0].numbers["best_k"] < 12
    assert found[0].numbers.get("blame", "k") == "k"


@pytest.mark.timed
def test_a_k_too_small_is_a_note(healthy: sd.Pair) -> None:
    """Nine of ten accepted, and one drafted: faster than without, but 4 would do more."""
    target, draft = taking(healthy.target, 0.01), taking(healthy.draft, 0.0005)
    found = diagnose(sd.Pair(target, draft, healthy.tokenizer), k=1, prompts=PROMPTS, max_new_tokens=48)
    assert all_codes(found) == ["k-not-best"]
    assert found[0].severity == "note"
    assert found[0].numbers["best_k"] > 1
    assert found[0].numbers["better"][0] > 1


@pytest.mark.timed
@pytest.mark.parametrize("term", ["acceptance", "scoring", "overhead"])
def test_the_term_that_was_spoilt_is_blamed(healthy: sd.Pair, term: str) -> None:
    """One thing each: a draft that knows little, a target for which every token costs a step, a slow controller."""

    class Slow(sd.FixedK):
        def next_k(self) -> int:
            time.sleep(0.03)
            return 4

    target, draft, controller = healthy.target, healthy.draft, None
    if term == "acceptance":
        target, draft = taking(healthy.target, 0.01), taking(astray(healthy.target, 4), 0.004)
    elif term == "scoring":
        target, draft = taking(healthy.target, 0.0, for_each_token=0.01), astray(healthy.target, 2)
    else:
        controller = Slow(4)
    found = diagnose(sd.Pair(target, draft, healthy.tokenizer), controller=controller, **QUICK)
    assert all_codes(found) == ["slower-than-without"]
    assert found[0].numbers["blame"] == term
    assert found[0].numbers["fixed_speedup"] > 1


@pytest.mark.timed
def test_a_batch_past_the_ridge_point_is_found(healthy: sd.Pair) -> None:
    """With 64 rows, 5 tokens of each take four times as long as one of each: nothing is left to gain."""
    target = taking(healthy.target, 0.005, for_each_token=0.0003)
    draft = taking(shorten(healthy.target, 0.4), 0.0008)
    found = diagnose(sd.Pair(target, draft, healthy.tokenizer), batch=64, **QUICK)
    assert all_codes(found) == ["slower-under-load"]
    loads = found[0].numbers["loads"]
    assert [load["batch"] for load in loads] == [1, 4, 16, 64]
    assert loads[-1]["v"] > loads[0]["v"]
    assert found[0].numbers["pays_up_to"] < 64


@pytest.mark.parametrize(
    ("alpha", "k", "c", "v", "o", "term"),
    [
        (0.2, 4, 0.05, 1.1, 0.0, "acceptance"),
        (0.8, 4, 0.9, 1.1, 0.0, "draft"),
        (0.8, 4, 0.1, 6.0, 0.0, "scoring"),
        (0.8, 4, 0.1, 1.1, 5.0, "overhead"),
        (0.6, 20, 0.1, 1.1, 0.0, "k"),
    ],
)
def test_the_term_that_costs_most_is_blamed(alpha: float, k: int, c: float, v: float, o: float, term: str) -> None:
    assert sd.predicted_speedup(alpha, k, c, v, o) < 1
    guilty = blame(alpha, k, c, v, o)
    assert guilty.term == term
    assert guilty.speedup > 1


# Costs that were recorded, so that no clock is asked

STEP = 0.005
"""Seconds of a target step."""
RECORDED = {1: 1.0, 2: 1.05, 3: 1.08, 5: 1.15, 9: 1.4, 65: 4.0}
"""v of a small pair on a CPU, by tokens."""
OUTSIDE_ALONE, OUTSIDE = 0.0002, 0.0004
"""Seconds that a round spends in neither model, without drafts and with them: o is their difference, 0.04 steps."""


def seconds_to_score(n: int) -> float:
    return STEP * Costs(STEP, STEP / 10, {m: STEP * v for m, v in RECORDED.items()}, 200).v(n)


def recorded_round(n: int, scored: int, accepted: int, pace: float) -> sd.Round:
    """A round that drafted n tokens while the machine was `pace` times slower than when the costs were measured."""
    emitted = tuple(range(accepted + 1))
    return sd.Round(tuple(range(n)), accepted, emitted, pace * n * STEP / 10, pace * seconds_to_score(scored))


def recorded_setup(healthy: sd.Pair, k: int, pace: float = 1.0) -> Setup:
    """Rounds of a text of 48 tokens with α = 3/4, as a loop with this k would have made them.

    The number of drafted tokens falls towards the end of the text; the target's steps stay as long. Of every four
    examined tokens three are accepted.
    """
    setup = prepare_setup(Models.of(healthy), prompts=[PROMPTS[0]], max_new_tokens=48, k=k)
    rounds, scored, new = [], [], 0
    while new < 40:
        n = min(k, 47 - new)
        accepted = min(3, n)
        rounds.append(recorded_round(n, k + 1, accepted, pace))
        scored.append(k + 1)
        new += accepted + 1
    durations = [r.draft_seconds + r.verify_seconds + OUTSIDE for r in rounds[1:]]
    prompt = setup.prompts[0]
    text = tuple(range(new))
    generation = sd.Generation(prompt, text, "", tuple(rounds), "length", 1.0)
    alone = [recorded_round(0, 1, 0, pace)] * 48
    plain = sd.Generation(prompt, tuple(range(48)), "", tuple(alone), "length", 1.0)
    waits = [r.verify_seconds + OUTSIDE_ALONE for r in alone[1:]]
    seconds = {n: seconds_to_score(n) for n in sorted({1, 2, 5, 9, k + 1})}
    vars(setup).update(
        recordings=(RecordedGeneration(generation, (k,) * len(rounds), tuple(durations), tuple(scored)),),
        without_drafts=RecordedGeneration(plain, (0,) * 48, tuple(waits), (1,) * 48),
        costs=Costs(STEP, STEP / 10, seconds, 200),
    )
    return setup


@pytest.mark.parametrize("pace", [1.0, 3.0], ids=["quiet", "busy"])
@pytest.mark.parametrize("k", [2, 4, 8, 64])
def test_the_best_k_does_not_depend_on_the_k_that_was_asked_for(healthy: sd.Pair, k: int, pace: float) -> None:
    """Though the machine became three times as slow after the costs were measured, and though the padded steps at the
    end of a text cost more than the tokens that they drafted."""
    setup = recorded_setup(healthy, k, pace)
    terms = terms_of(setup)
    assert terms.o == pytest.approx((OUTSIDE - OUTSIDE_ALONE) / STEP)
    v = {n + 1: seconds_to_score(n + 1) / STEP for n in range(9)}
    expected = sd.best_k(setup.alpha, 0.1, v.__getitem__, terms.o, max_k=8)
    best, speedup = terms.best()
    assert abs(best - expected) <= 1  # v between 2, 5 and 9 tokens is on straight lines
    assert speedup == pytest.approx(
        sd.predicted_speedup(setup.alpha, expected, 0.1, v[expected + 1], terms.o), rel=0.01
    )
    assert speedup > 1.4


@pytest.mark.parametrize("pace", [1.0, 3.0], ids=["quiet", "busy"])
def test_a_k_too_long_is_said_in_one_line_with_the_best_k(healthy: sd.Pair, pace: float) -> None:
    setup = recorded_setup(healthy, 64, pace)
    terms = terms_of(setup)
    best, speedup = terms.best()
    found = judge_speed(setup, terms, [0.5, 0.52, 0.55, 0.5, 0.51, 0.49, 0.5, 0.6])
    assert all_codes(found) == ["slower-than-without"]
    assert found[0].title == f"k = 64 is too long here: best k = {best}, predicted {speedup:.2f}×"
    assert 2 <= best <= 8
    numbers = found[0].numbers
    assert (numbers["k"], numbers["blame"]) == (64, "k")
    # E[tokens] / (n·c + v + o) of what was recorded: the speed that these rounds really had.
    rounds = setup.recordings[0].generation.rounds[:-1]
    spent = sum(len(r.drafted) * 0.1 + RECORDED[65] + terms.o for r in rounds)
    tokens = sum(sd.expected_tokens(setup.alpha, len(r.drafted)) for r in rounds)
    assert numbers["predicted"] == pytest.approx(tokens / spent)


def test_what_rounds_scored_is_what_the_target_was_given(healthy: sd.Pair) -> None:
    """Also in the last rounds, which draft less than k and are padded, and where the context ends."""
    target = copy.deepcopy(healthy.target)
    given: list[int] = []
    target.model.embed_tokens.register_forward_hook(lambda module, inputs, output: given.append(inputs[0].shape[1]))
    pair = sd.Pair(target, healthy.draft, healthy.tokenizer)
    for prompt, tokens in (([5, 6, 7], 20), ([(7 * i) % 60 for i in range(106)], 22)):
        setup = prepare_setup(Models.of(pair), prompts=[prompt], max_new_tokens=tokens, k=7)
        given.clear()
        recorded = setup.generate(prompt)
        assert min(len(r.drafted) for r in recorded.generation.rounds) < 7
        assert given[-len(recorded.scored) :] == list(recorded.scored)


@pytest.mark.parametrize("context", [12, 128])
def test_a_k_as_long_as_the_models_allow_is_examined(
    healthy: sd.Pair, tiny_model: Callable[..., PreTrainedModel], context: int
) -> None:
    """The steps are timed as far as they fit into the models, from a k of half the context on."""
    target, draft = (
        tiny_model("llama", seed=seed, num_hidden_layers=1, max_position_embeddings=context) for seed in (0, 0)
    )
    pair = sd.Pair(target, draft, healthy.tokenizer)
    k = context - 10  # leaves two tokens of prompt and eight new ones
    setup = prepare_setup(Models.of(pair), max_new_tokens=8, k=k)
    assert setup.costs.v(k + 1) > 0
    assert setup.costs.v(2) > 0


# Little time


class Ticking:
    """A clock that goes on by a second whenever it is looked at, so that a budget is a number of looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_without_time_only_what_needs_no_weights_is_checked(healthy: sd.Pair) -> None:
    setup = prepare_setup(Models.of(healthy, healthy.tokenizer), seconds=0, **QUICK)
    examination = examine(setup)
    states = {outcome.check: outcome.state for outcome in examination.outcomes}
    assert {check for check, state in states.items() if state == "healthy"} == {"vocabulary", "memory"}
    measured = [check.name for check in CHECKS if check.weight and check.name not in ("load", "thresholds")]
    assert examination.left_out == measured  # load does not apply to a batch of one
    assert "pair" not in vars(setup)  # never loaded
    assert examination.healthy
    for text in shown(examination):
        flat = " ".join(text.split())
        assert f"left out: {'; '.join(measured)}; run with --seconds 120" in flat
    assert examination.to_dict()["left_out"] == measured


def test_with_time_enough_nothing_is_left_out(healthy: sd.Pair) -> None:
    examination = examine(prepare_setup(Models.of(healthy), seconds=3600, batch=2, **QUICK))
    assert examination.left_out == []
    assert examination.omissions == ""
    assert all("left out" not in text for text in shown(examination))


def test_models_too_slow_for_the_time_are_checked_in_part(healthy: sd.Pair) -> None:
    """Each step of the target sleeps 20 ms, so all checks would take 30 s at least. In three seconds the first of the
    prompts are compared, and the report names the rest."""
    slow = sd.Pair(taking(healthy.target, 0.02), healthy.draft, healthy.tokenizer)
    examination = examine(prepare_setup(Models.of(slow), seconds=3, **QUICK))
    assert examination.left_out
    assert "run with --seconds 120" in examination.omissions
    outcomes = {outcome.check: outcome for outcome in examination.outcomes}
    assert outcomes["speed"].why or outcomes["speed"].left_out


@pytest.mark.timed
@pytest.mark.parametrize("slower", [1, 2])
def test_the_time_is_kept_whatever_the_models_take(healthy: sd.Pair, slower: int) -> None:
    slow = sd.Pair(taking(healthy.target, 0.02 * slower), healthy.draft, healthy.tokenizer)
    began = time.perf_counter()
    examine(prepare_setup(Models.of(slow), seconds=4, **QUICK))
    assert time.perf_counter() - began < 6


def test_a_prompt_is_compared_whole_or_left_out(healthy: sd.Pair) -> None:
    """The time ends inside one of the four prompts, whose two generations are then not compared."""
    for seconds in range(8, 80, 7):
        setup = prepare_setup(Models.of(healthy), **QUICK)
        setup = replace(setup, budget=Budget(seconds, Ticking()))
        setup.budget.start()
        greedy = next(check for check in CHECKS if check.name == "greedy")
        try:
            assert greedy.run(setup) == []
        except OutOfTime:
            assert "greedy" not in setup.measurements
            continue
        compared = setup.measurements["greedy"].numbers["prompts"]
        assert setup.measurements["greedy"].numbers["tokens"] == compared * 24
        assert setup.left_out == ([f"{4 - compared} of 4 prompts"] if compared < 4 else [])
    assert compared > 0


def test_a_new_check_takes_one_line(healthy: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in CHECKS: it gets a share of the time, is left out without any, and an error that it raises is a finding
    which ends the examination."""

    def refuse(setup: Setup) -> list[Finding]:
        raise sd.SpecdecError(f"target: does not agree with itself after {len(setup.pair.tokenizer)} tokens")

    checks = (*CHECKS[:2], DoctorCheck("itself", "each model agrees with itself?", refuse), *CHECKS[2:])
    monkeypatch.setattr("specdec_lab.measurement.diagnostics.CHECKS", checks)
    examination = examine(prepare_setup(Models.of(healthy), seconds=3600, **QUICK))
    assert codes(examination.findings) == ["generation-fails"]
    assert "does not agree with itself after 64 tokens" in examination.findings[0].evidence
    assert [outcome.state for outcome in examination.outcomes[3:]] == ["skipped"] * len(CHECKS[2:])
    assert "itself" in examine(prepare_setup(Models.of(healthy), seconds=0, **QUICK)).left_out


def test_what_a_check_does_not_need_is_left_to_the_next_ones() -> None:
    clock = Ticking()
    budget = Budget(100, clock)
    budget.start()
    with budget.part(0.5):
        first = budget.left
    with budget.part(0.5):
        assert budget.left < first
        clock.now += 60
        with pytest.raises(OutOfTime):
            budget.check()
    assert 0 < budget.left < 40
    budget.check()


def test_loading_does_not_count() -> None:
    clock = Ticking()
    budget = Budget(10, clock)
    budget.start()
    with budget.part(0.5):
        with budget.paused():
            clock.now += 1000
        budget.check()
    budget.check()


def test_without_a_limit_time_never_runs_out() -> None:
    clock = Ticking()
    budget = Budget(None, clock)
    budget.start()
    with budget.part(0.01):
        clock.now += 1e9
        budget.check()
    assert budget.left == math.inf


# Look-up


def seen_before(tokens: list[int], at: int, longest: int = 3) -> int | None:
    """What followed the latest earlier place of the last tokens, the longest match first; by text search."""
    text = "".join(chr(65 + t) for t in tokens[:at])
    for n in range(min(longest, at - 1), 0, -1):
        place = text.rfind(text[-n:], 0, at - 1)
        if place >= 0 and place + n < at:
            return tokens[place + n]
    return None


@pytest.mark.parametrize("seed", range(5))
def test_overlap_counts_the_positions_that_a_look_up_would_get_right(seed: int) -> None:
    tokens = torch.randint(4, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    found = [seen_before(tokens, at) for at in range(10, 40)]
    overlap = lookup_overlap(tokens, 10)
    assert overlap.positions == 30
    assert overlap.proposed == sum(token is not None for token in found)
    assert overlap.right == sum(token == tokens[at] for at, token in enumerate(found, 10))


def test_a_look_up_in_a_text_without_repetition_is_warned_of(
    tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Nearly uniform over 2,000 ids: the token that followed the last time follows again once in 2,000."""
    target = tiny_model("llama", vocab_size=2000)
    pair = sd.Pair(target, None, tokenizer)
    prompts = [list(range(i, i + 10)) for i in (0, 10, 20, 30)]
    setup = prepare_setup(Models.of(pair), prompts=prompts, max_new_tokens=64, sampling=sd.Sampling(temperature=1e4))
    lookup = next(check for check in CHECKS if check.name == "lookup")
    found = lookup.run(setup)
    assert found is not None
    assert codes(found) == ["lookup-finds-nothing"]


def test_a_text_that_runs_in_circles_is_said_to_need_no_draft_model(
    tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    """A target that sees its last token only, greedy, is soon in a cycle: whatever the draft is worth, a look-up is
    right from its second turn on."""
    target = faint(tiny_model("llama", num_hidden_layers=LAYERS), 0.01)
    with torch.no_grad():
        for layer in target.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    pair = sd.Pair(target, shorten(target, 0.1), tokenizer)
    found = diagnose(pair, sampling=sd.GREEDY, prompts=PROMPTS, max_new_tokens=64)
    assert codes(found) == ["lookup-would-do"]
    assert found[0].severity == "note"
    numbers = found[0].numbers
    assert numbers["positions"] == 4 * 64
    assert numbers["interval"][0] >= 0.9 * numbers["alpha"]


def test_a_look_up_in_a_text_without_repetition_is_warned_of_end_to_end(
    tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    pair = sd.Pair(tiny_model("llama", vocab_size=2000), None, tokenizer)
    prompts = [list(range(i, i + 10)) for i in (0, 10, 20, 30)]
    found = diagnose(pair, prompts=prompts, max_new_tokens=64, sampling=sd.Sampling(temperature=1e4))
    assert codes(found) == ["lookup-finds-nothing"]
    assert found[0].numbers["share"] < 0.05


# How findings are shown


def test_a_problem_ends_the_examination(healthy: sd.Pair) -> None:
    setup = prepare_setup(Models.of(healthy), available=0, **QUICK)
    heard: list[str] = []
    examination = examine(setup, heard.append)
    after = ["skipped"] * (len(CHECKS) - 2)
    assert [outcome.state for outcome in examination.outcomes] == ["skipped", "problem", *after]
    assert len(heard) == 2
    assert not examination.healthy
    assert "pair" not in vars(setup)  # never loaded


def test_a_healthy_pair_shows_its_figures(healthy: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speedup, best k and the α from which it pays are there whether or not something is wrong."""
    figures = tuple(check for check in CHECKS if check.name in ("memory", "acceptance", "speed"))
    monkeypatch.setattr("specdec_lab.measurement.diagnostics.CHECKS", figures)
    setup = prepare_setup(Models.of(healthy), **QUICK)
    outcomes = {outcome.check: outcome for outcome in examine(setup).outcomes}
    speed, acceptance = outcomes["speed"].numbers, outcomes["acceptance"].numbers
    k, costs = speed["k"], (speed["c"], speed["v"], speed["o"])
    assert speed["break_even_alpha"] == sd.break_even_alpha(k, *costs)
    assert speed["alpha"] == acceptance["accepted"] / acceptance["examined"]
    assert acceptance["examined"] == setup.accepted[1]
    for figure in ("actual", "predicted", "best_speedup"):
        assert f"{speed[figure]:.2f}" in outcomes["speed"].evidence
    assert f"best k = {speed['best_k']}" in outcomes["speed"].evidence
    assert (
        outcomes["memory"].numbers["total"]
        == memory_profile(healthy, context=outcomes["memory"].numbers["context"]).total
    )
    for check in ("memory", "acceptance"):  # which find nothing here, whatever the machine
        assert outcomes[check].state == "healthy"
        words = " ".join(outcomes[check].evidence.split()[:4])
        assert all(words in text for text in shown(Examination((outcomes[check],))))


def test_what_json_does_not_have_is_null(healthy: sd.Pair) -> None:
    """A pair that cannot pay even at α = 1 has no break-even: infinity in Python, null in JSON."""
    numbers = {"break_even_alpha": math.inf, "interval": (0.5, math.nan), "k": 4}
    finding = Finding("slower-than-without", "problem", "", "", "", "", numbers)
    report = Examination((CheckOutcome("speed", "?", (finding,), numbers=numbers),)).to_dict()
    assert report["checks"][0]["numbers"] == {"break_even_alpha": None, "interval": [0.5, None], "k": 4}
    json.dumps(report, allow_nan=False)


def test_room_is_asked_for_the_context_that_is_meant(healthy: sd.Pair) -> None:
    """The check of memory counts a context longer than the generations; a shorter one changes nothing."""
    asked = {}
    for context in (None, 30, 120):
        setup = prepare_setup(Models.of(healthy), context=context, available=0, **QUICK)
        asked[context] = examine(setup).findings[0].numbers["context"]
    assert asked[None] == asked[30] == max(map(len, setup.prompts)) + 24
    assert asked[120] == 120


@pytest.mark.parametrize("prompts", [1, 2, 4])
def test_few_prompts_are_repeated_until_a_speed_has_an_interval(healthy: sd.Pair, prompts: int) -> None:
    setup = prepare_setup(Models.of(healthy), prompts=PROMPTS[:prompts], max_new_tokens=24)
    ratios = speed_ratios(setup, 0, None)
    assert len(ratios) == {1: 8, 2: 8, 4: 12}[prompts]
    assert quantile_interval(ratios, 0.5, LEVEL) is not None


def test_controllers_and_monitors_hear_of_what_is_played(healthy: sd.Pair) -> None:
    class Two:
        max_k = 2

        def __init__(self) -> None:
            self.rounds = 0

        def next_k(self) -> int:
            return 2

        def observe(self, rounds: list[sd.Round]) -> None:
            self.rounds += len(rounds)

    controller, monitor = Two(), SpeculativeDecodingMonitor()
    setup = prepare_setup(Models.of(healthy), controller=controller, monitor=monitor, **QUICK)
    rounds = sum(len(recorded.generation.rounds) for recorded in setup.recordings)
    assert controller.rounds == monitor.get_statistics().rounds == rounds
    assert {len(r.drafted) for recorded in setup.recordings for r in recorded.generation.rounds} <= {0, 1, 2}


def shown(result: object) -> list[str]:
    out = StringIO()
    Console(file=out, width=100).print(result)
    return [out.getvalue(), result._repr_html_()]  # type: ignore[attr-defined]


def test_findings_and_examinations_show_themselves(healthy: sd.Pair) -> None:
    examination = examine(prepare_setup(Models.of(healthy), available=0, **QUICK))
    finding = examination.findings[0]
    for text in (*shown(finding), *shown(examination)):
        assert finding.title in text
        assert "✗" in text
        assert "evidence" in text
        assert "remedy" in text
    for text in shown(examination):
        assert "not checked" in text
    json.dumps(examination.to_dict())


ISSUES = (Path(__file__).parents[1] / "docs" / "common_issues.md").read_text(encoding="utf-8")


def test_the_page_of_common_issues_names_findings_that_exist() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in MEASUREMENT.glob("checks_*.py"))
    known = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', sources)) | {"draft-cache-stale", "target-cache-stale"}
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", ISSUES))
    assert len(named) > 8
    assert named <= known


def test_remedies_name_nothing_that_vllm_has_dropped() -> None:
    for gone in ("speculative_disable_by_batch_size", "use_v2_block_manager", "speculative_model"):
        assert gone not in ISSUES


def test_numbers_on_the_page_of_common_issues_are_the_formulas() -> None:
    page = " ".join(ISSUES.split())
    assert f"α = 0.5 gives {sd.predicted_speedup(0.5, 3, 0.05):.2f}× at k = 3" in page
    assert sd.predicted_speedup(0.5, 1, 0.5) <= 1  # with c = 0.5 it never gains
    assert f"gives {sd.predicted_speedup(0.9, 4, 1 / 3):.2f}× at k = 4" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, "k=0"),
        ({"max_new_tokens": 7}, "max_new_tokens=7"),
        ({"max_new_tokens": 200}, "max_new_tokens=200"),
        ({"k": 100}, "k=100, max_new_tokens=48: leave no room"),
        ({"batch": 0}, "batch=0"),
        ({"available": -1}, "available=-1"),
        ({"context": 0}, "context=0"),
        ({"context": 129}, "from 1 to the models' 128"),
        ({"sampling": 0.7}, "sampling=0.7"),
        ({"prompts": "text"}, "prompts="),
        ({"prompts": []}, "prompts="),
        ({"prompts": [[1] * 200]}, "200 tokens"),
    ],
)
def test_wrong_arguments_are_named(healthy: sd.Pair, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(sd.SpecdecError, match=words):
        diagnose(healthy, **arguments)


# The command


@pytest.fixture(scope="module")
def folders(healthy: sd.Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The healthy pair on disk, and its draft with a tokenizer of permuted ids."""
    assert healthy.draft is not None
    stranger = renamed(healthy.tokenizer, {7: 8})
    parts = {"target": (healthy.target, healthy.tokenizer), "draft": (healthy.draft, healthy.tokenizer)}
    parts["stranger"] = (healthy.draft, stranger)
    paths = {}
    for name, (model, tokenizer) in parts.items():
        path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        paths[name] = str(path)
    return paths


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, [*arguments, "--device", "cpu"])


def test_doctor_ends_with_0_for_a_healthy_pair(folders: dict[str, str]) -> None:
    done = run("--target", folders["target"], "--draft", folders["draft"], "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["healthy"]) == (0, True), done.stdout
    assert [check["check"] for check in report["checks"]] == [c.name for c in CHECKS]
    speed = next(check for check in report["checks"] if check["check"] == "speed")
    for name in ("actual", "predicted", "best_k", "alpha", "break_even_alpha"):
        assert name in speed["numbers"]
    assert f"{speed['numbers']['actual']:.2f}×" in speed["evidence"]


def permuted(healthy: sd.Pair) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    assert healthy.draft is not None
    return healthy.draft, renamed(healthy.tokenizer, {7: 8})


def itself(healthy: sd.Pair) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return healthy.target, healthy.tokenizer


def of_another_family(healthy: sd.Pair) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Its vocabulary lacks the target's last 14 tokens, and its model scores no more."""
    draft = copy.deepcopy(healthy.draft)
    assert draft is not None
    draft.resize_token_embeddings(50)
    facts = json.loads(healthy.tokenizer.backend_tokenizer.to_str())
    facts["model"]["vocab"] = {s: i for s, i in facts["model"]["vocab"].items() if i < 50}
    facts["model"]["merges"] = [m for m in facts["model"]["merges"] if "".join(m) in facts["model"]["vocab"]]
    backend = healthy.tokenizer.backend_tokenizer.from_str(json.dumps(facts))
    return draft, PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=healthy.tokenizer.eos_token)


BROKEN = {
    "permuted ids": (permuted, "vocabulary-mismatch", "id 7 is 'g' in the target and 'h' in the draft"),
    "the target as its own draft": (itself, "acceptance-always-one", "parameters: target"),
    "another vocabulary": (of_another_family, "vocabulary-mismatch", "(target 64 tokens, draft 50,"),
}


@pytest.mark.parametrize(("broken", "code", "words"), BROKEN.values(), ids=BROKEN)
def test_doctor_names_what_is_wrong_with_a_broken_set_up(
    healthy: sd.Pair, folders: dict[str, str], tmp_path: Path, broken: Callable[..., Any], code: str, words: str
) -> None:
    for part in broken(healthy):
        part.save_pretrained(tmp_path)
    arguments = "--target", folders["target"], "--draft", str(tmp_path)
    done = run(*arguments, "--json")
    assert done.exit_code == 1, done.output
    found = [finding for check in json.loads(done.stdout)["checks"] for finding in check["findings"]]
    assert [finding["code"] for finding in found] == [code]
    assert words in found[0]["evidence"]
    done = run(*arguments)
    assert done.exit_code == 1
    assert found[0]["title"] in done.stdout
    assert "a problem was found" in done.stdout


def test_a_model_that_scores_long_texts_differently_in_steps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Phi-3 whose rotary scaling changes at 32 tokens: right with one length for every row, wrong without."""
    from test_architectures import scaled_model

    from specdec_lab.measurement.checks_models import check_thresholds, has_thresholds

    model = scaled_model(("phi3", "longrope"))
    setup = prepare_setup(Models.of(sd.Pair(model, None, sd.load_pair().tokenizer)), prompts=[[5, 6, 7]], k=2)
    assert has_thresholds(setup)
    assert check_thresholds(setup) == []
    assert setup.measurements["thresholds"].numbers["longest"] == 48
    monkeypatch.setattr("specdec_ref.models.fixed_lengths", lambda modules, lengths: nullcontext())
    (finding,) = check_thresholds(setup)
    assert finding.code == "target-inconsistent"
    assert "48 tokens" in finding.evidence


def test_a_pair_without_windows_and_length_dependent_scaling_has_no_thresholds() -> None:
    from specdec_lab.measurement.checks_models import has_thresholds

    assert not has_thresholds(prepare_setup(Models.of(sd.load_pair())))


def test_doctor_hands_on_what_it_is_asked(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[Setup] = []

    def looked_at(setup: Setup, on_check: Any) -> Examination:
        cases.append(setup)
        return Examination(())

    monkeypatch.setattr("specdec_lab.measurement.diagnostics.examine", looked_at)
    pair = "--target", folders["target"], "--draft", folders["draft"]
    settings = "--temperature 0.7 --top-k 20 --top-p 0.9 --context 100 --batch 3 --k 2 --seconds 7".split()
    done = run(*pair, *settings, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--json")
    assert done.exit_code == 0, done.output
    run(*pair)
    asked, usual = cases
    ids = [tuple(usual.models.target_tokenizer(text)["input_ids"]) for text in PROMPTS[:2]]
    assert asked.prompts == tuple(ids)
    assert asked.sampling == sd.Sampling(0.7, 20, 0.9)
    assert (asked.context, asked.batch, asked.k, asked.budget.seconds) == (100, 3, 2, 7)
    assert (len(usual.prompts), usual.sampling, usual.context) == (4, sd.Sampling(), None)


def test_doctor_ends_with_1_for_a_pair_that_load_pair_refuses(folders: dict[str, str]) -> None:
    with pytest.raises(sd.SpecdecError, match="vocabulary"):
        sd.load_pair(folders["target"], folders["stranger"], device="cpu")
    done = run("--target", folders["target"], "--draft", folders["stranger"])
    assert done.exit_code == 1
    assert "The draft's vocabulary is not the target's" in done.stdout
    assert "not checked" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--k", "0"), "k=0"),
        (("--temperature", "-1"), "temperature"),
        (("--target", "no/such/x"), "target="),
        (("--prompt", ""), "prompts: one is empty"),
        (("--context", "0"), "context=0"),
        (("--top-k", "0"), "top_k=0"),
        (("--top-p", "2"), "top_p=2"),
        (("--seconds", "-1"), "seconds=-1"),
        (("--seconds", "nan"), "seconds=nan"),
    ],
)
def test_doctor_refuses_bad_usage(folders: dict[str, str], arguments: tuple[str, ...], words: str) -> None:
    """The command line turns a SpecdecError into one line and status 2."""
    done = run("--target", folders["target"], "--draft", folders["draft"], *arguments)
    assert isinstance(done.exception, sd.SpecdecError)
    assert words in str(done.exception)


def test_doctor_tells_what_it_left_out_and_ends_with_0(folders: dict[str, str]) -> None:
    arguments = "--target", folders["target"], "--draft", folders["draft"], "--seconds", "0"
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert "left out: caches; greedy;" in words
    assert "run with --seconds 120" in words
    assert "no problem in what was checked" in words
    assert done.stderr == ""  # no terminal, no progress
    done = run(*arguments, "--json")
    assert done.exit_code == 0
    assert "speed" in json.loads(done.stdout)["left_out"]


def test_a_case_asks_for_nothing_until_it_is_needed(healthy: sd.Pair) -> None:
    setup = prepare_setup(Models.of(healthy), **QUICK)
    assert isinstance(setup, Setup)
    assert not {"pair", "recordings", "costs"} & set(vars(setup))
    assert isinstance(Examination(()).findings, list)
