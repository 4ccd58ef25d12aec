"""The exact proof: it holds for the loop as it is, in every case of the suite; it refutes wrong loops by just as much
as they are wrong; and what it enumerates is what a plain enumeration without any merging finds.

Nothing is random: tables and examples come from fixed seeds. About two minutes of CPU time.
"""

import importlib
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specdec_lab import equivalence
from specdec_lab.equivalence.exact import Proof, exact
from specdec_lab.equivalence.proof_suite import CONTROLLERS, METHODS, ProofCase, UpAndDown, cases, prove_all
from specdec_lab.equivalence.tables import TableModel, constant_table, markov_table, random_table
from specdec_ref import acceptance, beyond, control, decoding, drafting
from specdec_ref.api import TREE_DRAFTERS, VERIFICATIONS
from specdec_ref.beyond.trees import SCHEMES
from specdec_ref.control import as_controller
from specdec_ref.decoding import Controller
from specdec_ref.drafting import Draft, Drafter, ModelDrafter, NoDrafter, PromptLookupDrafter
from specdec_ref.errors import SpecdecError
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import GREEDY, Randomness, Sampling
from specdec_ref.theory import expected_tokens

CASES = {case.name: case for case in cases()}
TOKEN_CASES = [name for name, case in CASES.items() if case.settings.get("verification", "token") == "token"]
QUICK_BLOCK_CASES = {
    f"block, {name}" for name in ("V=2 k=2", "V=2 k=3", "V=3 k=2", "two rows", "two rows, eos", "two eos")
}
EXACT = 1e-9
Outcomes = dict[tuple[Any, ...], float]


def each_of(names: Iterable[str]) -> list[Any]:
    """These cases as parameters: most of block verification are `slow`, since token verification has the same."""
    quick = {*TOKEN_CASES, *QUICK_BLOCK_CASES}
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@cache
def proof_of(name: str) -> Proof:
    return CASES[name].prove()


def of_first_token(outcomes: Outcomes) -> dict[int, float]:
    """The distribution of the first token alone."""
    first: dict[int, float] = defaultdict(float)
    for outcome, probability in outcomes.items():
        first[outcome[0]] += probability
    return first


# The loop as it is


@pytest.mark.parametrize("name", each_of(CASES))
def test_the_loop_is_exact(name: str) -> None:
    proof = proof_of(name)
    assert proof.holds, proof.explain()
    assert sum(proof.emitted.values()) == pytest.approx(1, abs=EXACT)
    assert sum(proof.expected.values()) == pytest.approx(1, abs=EXACT)
    assert proof.difference <= EXACT >= proof.tv
    assert proof.explain().startswith("Exact: over ")


@pytest.mark.parametrize("name", each_of(n for n, case in CASES.items() if isinstance(case.drafter, ModelDrafter)))
def test_the_first_draft_is_accepted_with_the_overlap_of_p_and_q(name: str) -> None:
    """Also with block verification, which gains from the second drafted token on."""
    case, proof = CASES[name], proof_of(name)
    sampling = case.settings.get("sampling", Sampling())
    assert isinstance(case.drafter, ModelDrafter)
    target, draft = case.target, case.drafter.model
    assert isinstance(target, TableModel)
    assert isinstance(draft, TableModel)
    prompts = case.prompt if isinstance(case.prompt[0], tuple) else [case.prompt]
    wanted = case.settings.get("max_new_tokens", 2)
    lengths = wanted if isinstance(wanted, tuple) else [wanted] * len(prompts)
    overlaps = []
    for prompt, length in zip(prompts, lengths, strict=True):
        if length == 1:
            continue  # a row with one token to go drafts nothing
        p = target.distribution(prompt, sampling)
        q = draft.distribution([min(token, draft.vocab_size - 1) for token in prompt], sampling)
        overlaps.append(float(torch.minimum(p[: len(q)], q).sum()))
    if math.isnan(proof.acceptance_rate):
        drafts_nothing_first = "one token", "k by CostModelSpeculation, timed"  # timing begins with k = 0
        assert name.removeprefix("block, ") in drafts_nothing_first
    else:
        assert proof.acceptance_rate == pytest.approx(sum(overlaps) / len(overlaps), abs=EXACT)


def test_the_suite_covers_every_drafting_method_and_both_verification_rules() -> None:
    drafters = {type(case.drafter) for case in CASES.values() if case.drafter is not None}
    modules = drafting, beyond.heads, beyond.suffix, beyond.trees
    classes = {cls for module in modules for cls in vars(module).values() if isinstance(cls, type)}
    assert drafters == {cls for cls in classes if hasattr(cls, "propose")} - {Drafter, NoDrafter}
    chains = {METHODS[cls] for cls in drafters if cls not in TREE_DRAFTERS} | {"autoregressive"}
    trees = {f"tree, {scheme}" for scheme in (*SCHEMES, "best first")}
    assert {case.method for case in CASES.values()} == chains | {f"{m}, block verification" for m in chains} | trees


def test_the_suite_covers_every_size_and_has_no_name_twice() -> None:
    assert len(CASES) == len(cases())
    assert {f"V={v} k={k}" for v in (2, 3, 4, 5) for k in (1, 2, 3, 4)} <= set(CASES)


@pytest.mark.parametrize("name", each_of(name for name in CASES if name not in TOKEN_CASES))
def test_block_verification_gives_no_fewer_tokens_in_a_round(name: str) -> None:
    by_token, by_block = proof_of(name.removeprefix("block, ")), proof_of(name)
    assert by_block.tokens_per_round >= by_token.tokens_per_round - EXACT
    if isinstance(CASES[name].drafter, PromptLookupDrafter) or "greedy" in name:
        assert by_block.tokens_per_round == pytest.approx(by_token.tokens_per_round, abs=EXACT)


def test_block_verification_is_proven_wherever_token_verification_is_but_for_the_largest_sizes() -> None:
    sizes_and_trees = re.compile(r"V=\d k=\d|tree.*")  # a tree brings its own decision
    by_token = {name for name in TOKEN_CASES if not sizes_and_trees.fullmatch(name)}
    by_block = {name.removeprefix("block, ") for name in CASES if name not in TOKEN_CASES}
    assert by_token < by_block
    assert {name for name in by_block - by_token if "k=1" not in name} >= {"V=2 k=2", "V=2 k=3", "V=2 k=4", "V=3 k=3"}


@pytest.mark.parametrize("name", [name for name in CASES if re.fullmatch(r"V=\d k=\d", name)])
def test_every_size_has_several_rounds_and_both_kinds_of_ending(name: str) -> None:
    """A rejection as well as a bonus token after k accepted ones, 3 to 5 tokens in all."""
    settings, proof = CASES[name].settings, proof_of(name)
    assert 3 <= settings["max_new_tokens"] <= 5
    assert proof.rounds >= 2
    assert 0 < proof.acceptance_rate < 1
    assert settings["max_new_tokens"] > settings["k"]


def test_every_controller_of_the_package_is_in_the_suite() -> None:
    choosers = {one for one in vars(control).values() if isinstance(one, type) and "next_k" in vars(one)}
    assert choosers - {Controller} <= {type(make()) for make in CONTROLLERS.values()}


def test_the_suite_reports_every_case_as_it_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [CASES["p = q"], CASES["greedy"]]
    monkeypatch.setattr("specdec_lab.equivalence.proof_suite.cases", lambda: few)
    reported: list[tuple[ProofCase, Proof]] = []
    assert prove_all(lambda case, proof: reported.append((case, proof))) == reported
    assert [case for case, _ in reported] == few


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    vocab_size=st.integers(2, 3),
    seeds=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    zeros=st.sampled_from([0.0, 0.4]),
    sharpness=st.floats(0, 4),
    k=st.integers(1, 3),
    tokens=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 2]),
    top_p=st.sampled_from([None, 0.5, 0.9]),
    eos=st.sampled_from([frozenset(), frozenset({1})]),
    confidence=st.sampled_from([0.0, 0.5]),
    verification=st.sampled_from(["token", "block"]),
)
def test_the_loop_is_exact_whatever_the_tables(
    vocab_size: int,
    seeds: tuple[int, int],
    zeros: float,
    sharpness: float,
    k: int,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    eos: frozenset[int],
    confidence: float,
    verification: str,
) -> None:
    target, draft = (random_table(vocab_size, seed, zeros=zeros, sharpness=sharpness) for seed in seeds)
    sampling = Sampling(temperature, top_k, top_p)
    drafter = ModelDrafter(draft, confidence)
    settings = {"k": k, "max_new_tokens": tokens, "sampling": sampling, "eos": eos}
    proof = exact(target, drafter, [0, 1], **settings, verification=verification)
    assert proof.holds, proof.explain()
    if tokens > 1:
        overlap = torch.minimum(target.distribution([0, 1], sampling), draft.distribution([0, 1], sampling)).sum()
        assert proof.acceptance_rate == pytest.approx(float(overlap), abs=EXACT)


# What it says about speed


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_tokens_per_round_are_those_of_the_formula_where_alpha_is_constant(k: int) -> None:
    p, q = [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]  # α = 0.6
    proof = exact(constant_table(p), ModelDrafter(constant_table(q)), [0], k=k, max_new_tokens=k + 1)
    assert proof.acceptance_rate == pytest.approx(0.6, abs=EXACT)
    assert proof.tokens_per_round == pytest.approx(expected_tokens(0.6, k), abs=EXACT)


def test_tokens_per_round_add_up_the_overlaps_of_every_path_where_alpha_varies() -> None:
    target, draft, k = random_table(3, 5), random_table(3, 6), 3
    accepted = 0.0
    for n in range(1, k + 1):  # P(the first n are all accepted)
        for path in itertools.product(range(3), repeat=n):
            prefixes = [(0, *path[:i]) for i in range(n)]
            overlaps = [
                min(target.probabilities(s)[x], draft.probabilities(s)[x]) for s, x in zip(prefixes, path, strict=True)
            ]
            accepted += math.prod(map(float, overlaps))
    proof = exact(target, ModelDrafter(draft), [0], k=k, max_new_tokens=k + 1)
    assert proof.tokens_per_round == pytest.approx(1 + accepted, abs=EXACT)


def test_a_looked_up_token_is_accepted_with_its_probability_under_p() -> None:
    target = random_table(3, 7)
    proof = exact(target, PromptLookupDrafter(), [0, 1, 2, 0, 1])
    assert proof.acceptance_rate == pytest.approx(float(target.probabilities([0, 1, 2, 0, 1])[2]), abs=EXACT)


def test_without_a_draft_there_is_no_acceptance_rate() -> None:
    proof = exact(random_table(3, 7), None, [0], k=0)
    assert math.isnan(proof.acceptance_rate)
    assert proof.tokens_per_round == pytest.approx(1, abs=EXACT)
    assert proof.rounds == 4


def test_a_batch_is_a_tuple_for_each_row_even_of_one() -> None:
    p = constant_table([0.25, 0.75])
    assert exact(p, None, [0], k=0, max_new_tokens=1).expected == pytest.approx({(0,): 0.25, (1,): 0.75})
    assert exact(p, None, [[0]], k=0, max_new_tokens=1).expected == pytest.approx({((0,),): 0.25, ((1,),): 0.75})


# Wrong loops: p = [.6, .4], two tokens of which the second is right, so the distance is that of the first, by hand


def residual_is_p(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acceptance, "residual", lambda p, q: p)


def all_is_accepted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(acceptance, "acceptance_probability", lambda p, q: (q > 0).to(p))


def bonus_of_the_draft(patch: pytest.MonkeyPatch) -> None:
    right = decoding.verify

    def wrong(p: Tensor, q: Tensor, drafted: Tensor, randomness: Randomness) -> acceptance.Verdict:
        last = q[:, -1:] if q.shape[1] else p[:, -1:]
        return right(torch.cat([p[:, :-1], last], 1), q, drafted, randomness)

    patch.setitem(VERIFICATIONS, "token", wrong)


def q_at_another_temperature(patch: pytest.MonkeyPatch) -> None:
    right = Draft.distribution

    def wrong(self: Draft, vocab_size: int, like: Tensor) -> Tensor:
        q = right(self, vocab_size, like).sqrt()  # temperature 2
        return q / q.sum(-1, keepdim=True)

    patch.setattr(Draft, "distribution", wrong)


def draft_is_greedy(patch: pytest.MonkeyPatch) -> None:
    right = ModelDrafter.propose

    class Largest:
        def draw(self, probabilities: Tensor) -> Tensor:
            return probabilities.argmax(-1)

    def wrong(self: ModelDrafter, sequences: Any, k: int, sampling: Sampling, randomness: Randomness) -> Draft:
        return right(self, sequences, k, sampling, Largest())  # type: ignore[arg-type]

    patch.setattr(ModelDrafter, "propose", wrong)


@pytest.mark.parametrize(
    ("install", "q", "first", "tv"),
    [
        (residual_is_p, [0.5, 0.5], 0.56, 0.04),  # min(p, q) + (1 − α)·p, α = 0.9
        (all_is_accepted, [0.5, 0.5], 0.5, 0.1),  # q itself
        (bonus_of_the_draft, [0.5, 0.5], 0.6, 0.09),  # α·TV(p, q), in the second token
        (q_at_another_temperature, [0.8, 0.2], 0.72, 0.12),  # 0.8·0.6/(2/3); 0.2 + what was rejected
        (draft_is_greedy, [0.8, 0.2], 0.75, 0.15),  # transformers #32867: [.6, .4] came out as [.75, .25]
    ],
)
def test_a_wrong_loop_is_refuted_with_its_distance(
    install: Callable[[pytest.MonkeyPatch], None],
    q: list[float],
    first: float,
    tv: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch)
    proof = exact(constant_table([0.6, 0.4]), ModelDrafter(constant_table(q)), [0], k=1, max_new_tokens=2)
    assert not proof.holds
    assert proof.tv == pytest.approx(tv, abs=EXACT)
    assert of_first_token(proof.emitted)[0] == pytest.approx(first, abs=EXACT)
    assert of_first_token(proof.expected)[0] == pytest.approx(0.6, abs=EXACT)
    assert re.match(r"Not exact: \(\d, \d\) comes out with probability .* too (often|rarely)\.", proof.explain())
    assert f"{tv:.6f}" in proof.explain()


def test_wrong_sampling_is_refuted_though_target_and_draft_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Sampling.probabilities
    monkeypatch.setattr(Sampling, "probabilities", lambda self, logits: right(self, logits / 2))
    proof = exact(constant_table([0.8, 0.2]), ModelDrafter(constant_table([0.5, 0.5])), [0], k=1, max_new_tokens=1)
    assert proof.tv == pytest.approx(0.8 - 2 / 3, abs=EXACT)  # √0.8 : √0.2 = 2 : 1


def test_tokens_after_the_end_are_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    right = decoding.Row.add

    def wrong(self: decoding.Row, tokens: list[int], eos: frozenset[int], limit: int) -> tuple[int, ...]:
        return right(self, tokens, frozenset(), limit)

    monkeypatch.setattr(decoding.Row, "add", wrong)
    proof = exact(constant_table([0.5, 0.5]), None, [0], k=0, max_new_tokens=2, eos=frozenset({1}))
    assert proof.expected == pytest.approx({(0, 0): 0.25, (0, 1): 0.25, (1,): 0.5})
    assert proof.tv == pytest.approx(0.5, abs=EXACT)


def test_weights_that_do_not_sum_to_one_are_drawn_from_as_production_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual that was not divided by its mass is harmless, for a draw that scales."""

    def unscaled(p: Tensor, q: Tensor) -> Tensor:
        rest = (p - q).clamp(min=0)
        return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)

    monkeypatch.setattr(acceptance, "residual", unscaled)
    assert exact(random_table(3, 1), ModelDrafter(random_table(3, 2)), [0], max_new_tokens=3).holds


def test_a_loop_that_may_emit_nothing_is_followed_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first token 0 is discarded and sampled again, without end: 0.4·(1 + 0.6 + 0.36 + …) = 1."""
    right = decoding.Row.add

    def wrong(self: decoding.Row, tokens: list[int], eos: frozenset[int], limit: int) -> tuple[int, ...]:
        return right(self, tokens if self.new or tokens[0] else [], eos, limit)

    monkeypatch.setattr(decoding.Row, "add", wrong)
    proof = exact(constant_table([0.6, 0.4]), None, [0], k=0, max_new_tokens=2)
    assert proof.emitted == pytest.approx({(1, 0): 0.6, (1, 1): 0.4}, abs=EXACT)


def test_a_loop_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding.Row, "add", lambda self, tokens, eos, limit: ())
    with pytest.raises(SpecdecError, match=r"limit=100: .* the loop hangs"):
        exact(constant_table([0.6, 0.4]), None, [0], k=0, limit=100)


# Merging: the same as a plain enumeration without it, also where a wrong loop's text depends on what is remembered


class Question(Exception):
    """The next random decision: options with their probabilities."""

    def __init__(self, options: list[tuple[int, float]]):
        self.options = options


class Answers:
    """A `Randomness` that gives the answers it has, then asks."""

    def __init__(self, answers: tuple[int, ...]):
        self.answers = iter(answers)

    def decide(self, options: list[tuple[int, float]]) -> int:
        answer = next(self.answers, None)
        if answer is None:
            raise Question([option for option in options if option[1] > 0])
        return answer

    def draw(self, probabilities: Tensor) -> Tensor:
        sampled = [self.decide(list(enumerate(row))) for row in probabilities.flatten(0, -2).tolist()]
        return torch.tensor(sampled).reshape(probabilities.shape[:-1])

    def accept(self, probability: Tensor) -> Tensor:
        decisions = [self.decide([(1, p), (0, 1 - p)]) for p in probability.flatten().tolist()]
        return torch.tensor(decisions, dtype=torch.bool).reshape(probability.shape)


def brute_force(
    make: Callable[[], tuple[TableModel, Drafter, Controller]], prompts: list[list[int]], lengths: list[int]
) -> Outcomes:
    """Every whole generation by itself: ask, try each answer, start again."""
    found: Outcomes = defaultdict(float)
    open_paths: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while open_paths:
        answers, probability = open_paths.pop()
        rows = [decoding.Row(tuple(prompt), n) for prompt, n in zip(prompts, lengths, strict=True)]
        target, drafter, controller = make()
        try:
            for _ in decoding.speculate(target, drafter, rows, controller, Sampling(), Answers(answers)):
                pass
        except Question as question:
            open_paths += [((*answers, option), probability * p) for option, p in question.options]
        else:
            found[tuple(tuple(row.new) for row in rows)] += probability
    return found


class NeverRewinds(TableModel):
    """Its cache keeps everything, rejected tokens included."""

    def rewind(self, lengths: list[int]) -> None:
        pass


class RewindsOneTooFew(TableModel):
    """Its cache keeps one token too many, where it has one."""

    def rewind(self, lengths: list[int]) -> None:
        super().rewind([min(n + 1, len(row)) for n, row in zip(lengths, self.rows, strict=True)])


def like(table: TableModel, kind: type[TableModel]) -> TableModel:
    return kind(table.vocab_size, table.rule)


P, Q = random_table(2, 1), random_table(2, 2)


@pytest.mark.parametrize(
    ("make", "prompts", "lengths", "wrong_residual"),
    [
        (lambda: (P, ModelDrafter(Q), as_controller(2)), [[0]], [3], True),
        (lambda: (P, ModelDrafter(Q), UpAndDown(2)), [[0]], [5], True),
        (lambda: (P, ModelDrafter(Q), as_controller(1)), [[0], [1, 0]], [2, 2], True),
        (lambda: (like(P, NeverRewinds), ModelDrafter(Q), as_controller(1)), [[0]], [4], False),
        (lambda: (like(P, RewindsOneTooFew), ModelDrafter(Q), as_controller(2)), [[0]], [3], False),
        (lambda: (P, ModelDrafter(like(Q, RewindsOneTooFew)), as_controller(2)), [[0]], [4], True),
    ],
    ids=["fixed k", "k with a memory", "two rows", "never rewinds", "rewinds too little", "draft rewinds too little"],
)
def test_merging_changes_nothing(
    make: Callable[[], tuple[TableModel, Drafter, Controller]],
    prompts: list[list[int]],
    lengths: list[int],
    wrong_residual: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a loop that is wrong, since a right one has the same distribution whatever is mistaken for equal."""
    if wrong_residual:
        residual_is_p(monkeypatch)
    target, drafter, controller = make()
    proof = exact(target, drafter, prompts, k=controller, max_new_tokens=lengths)
    assert proof.emitted == pytest.approx(brute_force(make, prompts, lengths), abs=1e-12)
    assert not proof.holds


def test_what_is_given_is_not_changed() -> None:
    target, draft, controller = random_table(2, 1), random_table(2, 2), UpAndDown(2)
    exact(target, ModelDrafter(draft), [0], k=controller, max_new_tokens=3)
    assert (target.rows, draft.rows, controller.k) == ([], [], 1)


def test_chance_from_elsewhere_is_noticed() -> None:
    class OwnDice(ModelDrafter):
        def propose(self, sequences: Any, k: int, sampling: Sampling, randomness: Randomness) -> Draft:
            tokens = torch.randint(3, (len(sequences), k))
            return Draft(tokens, torch.full((len(sequences), k, 3), 1 / 3))

    with pytest.raises(SpecdecError, match="not all its randomness is Randomness"):
        exact(random_table(3, 1), OwnDice(random_table(3, 2)), [0])


# Tables


def test_a_random_table_says_the_same_in_any_order() -> None:
    one, other = random_table(3, 9), random_table(3, 9)
    prefixes = [(0,), (0, 0), (0, 0, 0), (1, 2), (2, 1)]
    forward = [one.probabilities(prefix) for prefix in prefixes]
    backward = [other.probabilities(prefix) for prefix in reversed(prefixes)]
    torch.testing.assert_close(torch.stack(forward), torch.stack(backward[::-1]), rtol=0, atol=0)
    assert len({tuple(p.tolist()) for p in forward}) == len(prefixes)
    assert not torch.equal(random_table(3, 10).probabilities((0,)), forward[0])


def test_zeros_and_sharpness_do_what_they_say() -> None:
    prefixes = list(itertools.product(range(4), repeat=4))
    p = torch.stack([random_table(4, 1, zeros=0.5).probabilities(prefix) for prefix in prefixes])
    share = (p == 0).double().mean().item()  # 3/4·1/2: one of four stays; standard deviation under 0.02 for 256 rows
    assert share == pytest.approx(0.375, abs=0.08)
    assert (p.sum(-1) - 1).abs().max() < 1e-12
    flat = random_table(4, 1, sharpness=0).probabilities((0,))
    torch.testing.assert_close(flat, torch.full((4,), 0.25, dtype=torch.float64))


def test_a_table_scores_each_row_after_all_that_it_holds() -> None:
    table = random_table(3, 2)
    table.start(2, 9)
    table.prefill([[1], [0, 2]])
    logits = table.extend(torch.tensor([[0, 1], [2, 2]]))
    for row, prefixes in enumerate([[(1, 0), (1, 0, 1)], [(0, 2, 2), (0, 2, 2, 2)]]):
        for i, prefix in enumerate(prefixes):
            torch.testing.assert_close(logits[row, i].exp(), table.probabilities(prefix))
    table.rewind([1, 2])
    table.keep([1])
    torch.testing.assert_close(table.extend(torch.tensor([[1]]))[0, 0].exp(), table.probabilities((0, 2, 1)))


def test_a_table_gives_minus_infinity_for_the_impossible_and_processes_on_request() -> None:
    table = constant_table([0.5, 0.3, 0.2, 0.0])
    table.start(1, 2)
    assert table.extend(torch.tensor([[0]]))[0, 0, 3] == -math.inf
    torch.testing.assert_close(
        table.distribution([0], Sampling(top_k=2)), torch.tensor([0.625, 0.375, 0, 0], dtype=torch.float64)
    )
    assert table.distribution([0], GREEDY).tolist() == [1, 0, 0, 0]


def test_a_markov_table_looks_at_the_last_token() -> None:
    table = markov_table([[0.1, 0.9], [0.8, 0.2]])
    assert table.probabilities((1, 0)).tolist() == [0.1, 0.9]
    assert table.probabilities((0, 0, 1)).tolist() == [0.8, 0.2]


# Bad input

NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TableModel(0, lambda prefix: torch.ones(1)), "vocab_size=0"),
        (lambda: TableModel(2, [0.5, 0.5]), "rule=[0.5, 0.5]"),
        (lambda: TableModel(3, lambda prefix: torch.ones(2) / 2).probabilities([0]), "rule: gave 2 probabilities"),
        (lambda: TableModel(2, lambda prefix: torch.ones(2)).probabilities([0]), "rule=[1.0, 1.0]"),
        (lambda: TableModel(2, lambda prefix: "even").probabilities([0]), "rule='even'"),
        (lambda: P.probabilities([]), "prefix: is empty"),
        (lambda: P.probabilities([2]), "tokens: id 2 is not in the vocabulary, 0 … 1"),
        (lambda: constant_table([0.5, 0.4]), "probabilities=[0.5, 0.4]"),
        (lambda: constant_table([1.5, -0.5]), "probabilities=[1.5, -0.5]"),
        (lambda: constant_table([NAN, 1.0]), "probabilities=[nan, 1.0]"),
        (lambda: constant_table([]), "probabilities=[]"),
        (lambda: markov_table([[0.5, 0.5]]), "matrix: rows of [2]"),
        (lambda: markov_table([]), "matrix: rows of []"),
        (lambda: random_table(2, -1), "seed=-1"),
        (lambda: random_table(2, 0, zeros=1.0), "zeros=1.0"),
        (lambda: random_table(2, 0, sharpness=NAN), "sharpness=nan"),
        (lambda: exact(Q.rule, None, [0], k=0), "target="),
        (lambda: exact(P, PromptLookupDrafter, [0]), "drafter="),
        (lambda: exact(P, None, []), "prompt=[]"),
        (lambda: exact(P, None, "text"), "prompt='text'"),
        (lambda: exact(P, None, [0, 2]), "prompt=[0, 2]"),
        (lambda: exact(P, None, [[0], []]), "prompt=[]"),
        (lambda: exact(P, None, [0] * 65), "takes 1 … 64 token ids"),
        (lambda: exact(P, None, [0], context=0), "context=0"),
        (lambda: exact(P, None, [0], max_new_tokens=0), "max_new_tokens=0"),
        (lambda: exact(P, None, [[0], [1]], max_new_tokens=[2]), "max_new_tokens=[2]"),
        (lambda: exact(P, None, [0], max_new_tokens=None), "max_new_tokens=None"),
        (lambda: exact(P, None, [0], k=-1), "k=-1"),
        (lambda: exact(P, None, [0], sampling=0.7), "sampling=0.7"),
        (lambda: exact(P, None, [0], limit=0), "limit=0"),
        (lambda: exact(P, None, [0], verification="blocks"), "verification='blocks'"),
        (lambda: exact(P, ModelDrafter(Q), [0], limit=5), "limit=5: there are more paths than that; make k"),
        (lambda: exact(P, None, [0], k=(one for one in ())), "k="),
    ],
)
def test_wrong_use_raises_an_error_of_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecdecError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [[NAN, 1.0], [-0.5, 1.5], [0.0, 0.0], [math.inf, 1.0]])
def test_a_draw_from_no_distribution_is_refused(weights: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "residual", lambda p, q: torch.tensor(weights, dtype=torch.float64).expand_as(p))
    with pytest.raises(SpecdecError, match=r"draw: \[.*\] is no distribution"):
        exact(P, None, [0], k=0)


@pytest.mark.parametrize("value", [NAN, -0.1])
def test_a_chance_that_is_none_is_refused(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "acceptance_probability", lambda p, q: torch.full_like(p, value))
    with pytest.raises(SpecdecError, match=r"accept: .* negative or NaN"):
        exact(P, ModelDrafter(Q), [0])


def test_a_table_cannot_be_rewound_forward() -> None:
    table = random_table(2, 1)
    table.start(1, 4)
    table.prefill([[0, 1]])
    with pytest.raises(SpecdecError, match="only goes back"):
        table.rewind([3])


def test_real_models_are_sent_to_the_experiment(tiny_model: Callable[..., Any]) -> None:
    real = TransformersModel(tiny_model())
    with pytest.raises(SpecdecError, match="takes a TableModel; for real models there is `empirical`"):
        exact(real, None, [0], k=0)
    with pytest.raises(SpecdecError, match="drafter: its model is a transformers model"):
        exact(P, ModelDrafter(real), [0])


def test_the_package_names_the_functions_even_after_their_files_were_loaded() -> None:
    for name in ("empirical", "exact"):
        importlib.import_module(f"specdec_lab.equivalence.{name}")

    assert equivalence.exact is exact
    assert equivalence.empirical.__module__ == "specdec_lab.equivalence.empirical"
    assert callable(equivalence.empirical)
    assert equivalence.TableModel is TableModel
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        equivalence.nothing  # noqa: B018
