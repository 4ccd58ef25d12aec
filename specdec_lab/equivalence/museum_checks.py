"""The museum's tests. Each runs on every wrong version and on the correct code, and reports whether it fails.

They run the package as it is when they are called: inside `with mutant.installed()` that is the wrong version. Seeds
are fixed. Where a test is statistical, the correct code would fail it with another seed once in a million times.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from specdec_lab.equivalence.exact import Proof, exact
from specdec_lab.equivalence.statistics import fit
from specdec_lab.equivalence.tables import TableModel, constant_table, random_table
from specdec_lab.equivalence.tiny import OnCache, fresh_logits, tiny_pair
from specdec_ref import decoding
from specdec_ref.beyond.trees import SCHEMES, TreeDrafter
from specdec_ref.control import as_controller
from specdec_ref.decoding import Controller, Round
from specdec_ref.drafting import Draft, ModelDrafter, PromptLookupDrafter
from specdec_ref.models import LanguageModel, TransformersModel
from specdec_ref.sampling import GREEDY, Randomness, Sampling, SeededRandomness

TOLERANCE = 1e-9
SIGMAS = 5.0  # of a normal distribution: exceeded with probability 6e-7
FALSE_ALARM = 1e-6
COLD = Sampling(temperature=0.5, top_k=2)
PROMPTS = [[5, 9, 3, 2, 7, 1], [8], [4, 3, 12, 12], [11, 30, 2]]


@dataclass(frozen=True)
class Observation:
    """The result of one test. caught: whether it failed. evidence: what it observed, in a sentence."""

    caught: bool
    evidence: str


def exact_proof() -> Observation:
    """The exact distribution of the loop's output is the target's, in every case of `proofs`."""
    n = 0
    for name, prove in proofs():
        n, proof = n + 1, prove()
        if not proof.holds:
            return Observation(True, f"{name}: {proof.explain()}")
    return Observation(False, f"exact in {n} of {n} cases")


def proofs() -> Iterator[tuple[str, Callable[[], Proof]]]:
    """Small cases, at least one of which fails for each wrong version: the name and a function that proves it."""
    p, q = random_table(3, 1), random_table(3, 2)
    two, small_q = random_table(2, 1), random_table(2, 2)
    draft, end = ModelDrafter(q), frozenset([1])
    apart = constant_table([0.5, 0.5, 0, 0]), ModelDrafter(constant_table([0, 0.3, 0.4, 0.3]))
    yield "little in common", partial(exact, *apart, [0], k=1, max_new_tokens=2)
    yield "greedy", partial(exact, p, draft, [0], k=2, max_new_tokens=3, sampling=GREEDY)
    yield "temperature and top-k", partial(exact, p, draft, [0], k=2, max_new_tokens=3, sampling=COLD)
    yield "end token", partial(exact, two, ModelDrafter(two), [0], k=2, max_new_tokens=3, eos=end)
    yield "low confidence", partial(exact, p, ModelDrafter(q, min_confidence=0.4), [0], k=2, max_new_tokens=3)
    yield "three tokens, k = 2", partial(exact, p, draft, [0], k=2, max_new_tokens=4)
    yield "two tokens, k = 3", partial(exact, two, ModelDrafter(small_q), [0], k=3, max_new_tokens=5)
    yield "two rows", partial(exact, two, ModelDrafter(small_q), [[0], [1, 0]], k=1, max_new_tokens=2)
    by_block = partial(exact, k=2, max_new_tokens=3, verification="block")
    yield "block verification, three tokens", partial(by_block, p, draft, [0])
    yield "block verification, two rows", partial(by_block, two, ModelDrafter(small_q), [[0], [1, 0]])
    yield "block verification, prompt lookup", partial(by_block, p, PromptLookupDrafter(), [0, 1, 2, 0, 1])
    rising, falling = constant_table([0.1, 0.2, 0.3, 0.4]), constant_table([0.4, 0.3, 0.2, 0.1])
    for scheme in SCHEMES:
        siblings = TreeDrafter(falling, (2,), scheme)
        yield f"two siblings, {scheme}", partial(exact, rising, siblings, [0], k=1, max_new_tokens=2)
    yield "a tree of two levels", partial(exact, p, TreeDrafter(q, (2, 1)), [0], k=2, max_new_tokens=4)
    real, small = (OnCache(model) for model in tiny_pair(vocab_size=2, width=8, layers=1))
    tree = TreeDrafter(small, (2, 1))
    yield "a transformer, trees in two rows", partial(exact, real, tree, [[0], [1, 0, 1]], k=2, max_new_tokens=3)
    yield "a transformer, two rows", partial(exact, real, ModelDrafter(small), [[0], [1, 0, 1]], k=1, max_new_tokens=2)


def self_draft() -> Observation:
    """The target as its own draft: every token has to be accepted. On a table and on a small transformer."""
    model, _ = tiny_pair()
    table = random_table(4, 3)
    pairs: list[tuple[LanguageModel, LanguageModel]] = [
        (table, random_table(4, 3)),
        (TransformersModel(model), TransformersModel(model)),
    ]
    accepted = examined = 0
    for target, twin in pairs:
        for row in _run(target, ModelDrafter(twin), [[t % 4 for t in prompt] for prompt in PROMPTS], 3, 13):
            accepted += sum(r.accepted for r in row.rounds)
            examined += sum(len(r.drafted) for r in row.rounds)
    return Observation(accepted < examined, f"{accepted} of {examined} tokens accepted")


def cache_is_fresh() -> Observation:
    """After every rewind, target and draft give the logits of a forward pass over the whole text without a cache."""
    models = tiny_pair()
    rows = [decoding.Row(tuple(prompt), 24) for prompt in PROMPTS]
    target, drafter = _WatchedTarget(models[0], rows), _WatchedDrafter(models[1])
    for _ in decoding.speculate(target, drafter, rows, as_controller(3), Sampling(), SeededRandomness(0)):
        pass
    worst = {"target": target.worst, "draft": drafter.watched.worst}
    name = max(worst, key=worst.__getitem__)
    return Observation(worst[name] > TOLERANCE, f"logits of the {name} differ by up to {worst[name]:.1g}")


def acceptance() -> Observation:
    """Acceptance is Σ min(p, q): exactly on tables, at two temperatures, and by counting on a small transformer."""
    p, q = random_table(3, 1), random_table(3, 2)
    for sampling in (Sampling(), COLD):
        proof = exact(p, ModelDrafter(q), [0], k=1, max_new_tokens=2, sampling=sampling)
        expected = float(torch.minimum(p.distribution([0], sampling), q.distribution([0], sampling)).sum())
        if not abs(proof.acceptance_rate - expected) <= TOLERANCE:
            where = f"temperature {sampling.temperature:g}"
            return Observation(True, f"{where}: {proof.acceptance_rate:.6f} instead of Σ min(p, q) = {expected:.6f}")
    z, rate, expected = _counted_acceptance()
    evidence = f"{rate:.3f}, Σ min(p, q) = {expected:.3f} on average; {z:+.1f} standard errors"
    return Observation(abs(z) > SIGMAS, evidence)


def _counted_acceptance() -> tuple[float, float, float]:
    """(accepted − expected) / standard error over all examined tokens, the rate, and the expected rate.

    Given the text before it, a token is accepted with probability Σ min(p, q), whatever happened before.
    """
    models = tiny_pair()
    target, draft = (TransformersModel(model) for model in models)
    rows = _run(target, ModelDrafter(draft), PROMPTS * 24, 3, 12)
    texts = [row.sequence for row in rows]
    p, q = ([Sampling().probabilities(x) for x in fresh_logits(model, texts)] for model in models)
    gained = variance = expected = 0.0
    examined = accepted = 0
    for i, row in enumerate(rows):
        alpha = torch.minimum(p[i], q[i]).sum(-1).tolist()
        at = len(row.prompt) - 1
        for r in row.rounds:
            for j in range(min(r.accepted + 1, len(r.drafted), len(alpha) - at)):  # the length may cut a round
                a, is_accepted = alpha[at + j], j < r.accepted
                gained, variance, expected = gained + is_accepted - a, variance + a * (1 - a), expected + a
                examined, accepted = examined + 1, accepted + is_accepted
            at += len(r.emitted)
    return gained / math.sqrt(variance), accepted / examined, expected / examined


def tokens_per_round() -> Observation:
    """A round emits as many tokens as the formula says, for both verification rules, and k + 1 where all drafts are
    accepted."""
    k, p, q = 2, random_table(3, 1), random_table(3, 2)
    got = exact(p, ModelDrafter(q), [0], k=k, max_new_tokens=k + 1).tokens_per_round
    expected = _expected_tokens(p, q, (0,), k)
    if not abs(got - expected) <= TOLERANCE:
        return Observation(True, f"{got:.6f} tokens in a round instead of {expected:.6f}")
    block = exact(p, ModelDrafter(q), [0], k=k, max_new_tokens=k + 1, verification="block").tokens_per_round
    optimum = 1 + _most_accepted(p, q, (0,), k)
    if not abs(block - optimum) <= TOLERANCE:
        return Observation(
            True, f"block verification: {block:.6f} tokens in a round, where {optimum:.6f} is the optimum"
        )
    rounds = [r for row in _run(p, ModelDrafter(q), [[0]] * 32, k, 16) for r in row.rounds[:-1]]
    short = [r for r in rounds if len(r.emitted) != r.accepted + 1]
    if short:
        emitted, accepted = len(short[0].emitted), short[0].accepted
        return Observation(
            True, f"{emitted} tokens emitted in a round that accepted {accepted}, in {len(short)} rounds"
        )
    return Observation(False, f"{got:.6f} tokens in a round, as predicted")


def _expected_tokens(p: TableModel, q: TableModel, text: tuple[int, ...], k: int) -> float:
    """The expected tokens of a round with k drafted tokens after `text`, by recursion over the first of them."""
    if k == 0:
        return 1.0
    both = torch.minimum(p.probabilities(text), q.probabilities(text)).tolist()
    return 1.0 + float(sum(a * _expected_tokens(p, q, (*text, token), k - 1) for token, a in enumerate(both) if a > 0))


def _most_accepted(
    p: TableModel, q: TableModel, text: tuple[int, ...], k: int, accepted: float = 1.0, drafted: float = 1.0
) -> float:
    """The most drafted tokens per round that an exact rule can accept: the sum, over all drafts of 1 … k tokens after
    `text`, of min(drafted, accepted before · p).

    accepted, drafted: probability that the drafted tokens in `text` are drafted and accepted, and that they are
    drafted. Sun et al. 2024 (arXiv 2403.10444).
    """
    if k == 0:
        return 0.0
    total = 0.0
    for token, (a, b) in enumerate(zip(p.probabilities(text).tolist(), q.probabilities(text).tolist(), strict=True)):
        now_drafted = drafted * b
        now_accepted = min(now_drafted, accepted * a)
        total += now_accepted + _most_accepted(p, q, (*text, token), k - 1, now_accepted, now_drafted)
    return total


def joint_distribution(texts: int = 20_000) -> Observation:
    """Texts of three tokens, sampled with `SeededRandomness`, are distributed as the target's: a χ² test.

    Of the quick tests only this one compares joint distributions that are sampled with the real random numbers. So only
    this one sees whether they are independent; the exact proof replaces them.
    """
    p, q, n = random_table(3, 1), random_table(3, 2), 3
    probabilities: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(n):
        probabilities = {
            (*text, token): probability * float(p.probabilities((0, *text))[token])
            for text, probability in probabilities.items()
            for token in range(p.vocab_size)
        }
    seen = Counter(tuple(row.new) for row in _run(p, ModelDrafter(q), [[0]] * texts, 2, n))
    counts = np.array([seen[text] for text in probabilities])
    p_value = fit([counts], [np.array(list(probabilities.values()))]).p_value
    return Observation(p_value < FALSE_ALARM, f"p = {p_value:.2g} over {texts:,} texts of {n} tokens")


def ending() -> Observation:
    """A text ends with its first end token or at its length, not earlier and not later."""
    table, n = constant_table([0.5, 0.15, 0.35]), 9
    rows = _run(table, ModelDrafter(constant_table([0.5, 0.15, 0.35])), [[0]] * 200, 4, n, eos=frozenset([1]))
    for row in rows:
        expected = row.new.index(1) + 1 if 1 in row.new else n
        if len(row.new) != expected or row.finish != ("eos" if 1 in row.new else "length"):
            return Observation(True, f"{row.new} ends by {row.finish!r}; 1 is the end token, the length {n}")
    return Observation(False, f"{len(rows)} of {len(rows)} texts end where they should")


def boundary() -> Observation:
    """At u = 0, a token of probability 0 is never accepted nor sampled, and one of probability 1 is always accepted."""
    many = 2**22
    impossible = int(SeededRandomness(_seed_of_a_zero(many)).accept(torch.zeros(many)).sum())
    rejected = int((~SeededRandomness(0).accept(torch.ones(many))).sum())
    samples = SeededRandomness(0).draw(torch.tensor([0, 0.5, 0.5, 0]).expand(2**18, 4))
    wrong = impossible + rejected + int(((samples == 0) | (samples == 3)).sum())
    seen = f"{impossible} of {many} tokens of probability 0 accepted, {rejected} of probability 1 rejected"
    return Observation(wrong > 0, seen)


@cache
def _seed_of_a_zero(many: int) -> int:
    """The first seed whose first `many` uniform numbers in float32 hold an exact 0, which 1 in 2²⁴ is."""
    seed = 0
    while not (torch.rand(many, generator=torch.Generator().manual_seed(seed)) == 0).any():
        seed += 1
    return seed


def k_takes_effect() -> Observation:
    """Every round drafts the number of tokens that the controller chooses."""
    asked = [4, 1, 3, 0, 2, 5]
    table = random_table(4, 3)
    (row,) = _run(table, ModelDrafter(random_table(4, 3)), [[0]], _Plan(asked), 60)
    drafted = [len(r.drafted) for r in row.rounds[: len(asked)]]
    return Observation(drafted != asked, f"asked for {asked}, drafted {drafted}")


class _Plan:
    """A controller that chooses these k in turn, then 1."""

    def __init__(self, asked: list[int]):
        self.max_k = max(asked)
        self._asked = iter(asked)

    def next_k(self) -> int:
        return next(self._asked, 1)

    def observe(self, rounds: list[Round]) -> None:
        """The plan is fixed."""


class _WatchedTarget(TransformersModel):
    """Compares all logits that the loop receives with a fresh forward pass."""

    def __init__(self, model: object, rows: list[decoding.Row]):
        super().__init__(model)  # type: ignore[arg-type]
        self.worst = 0.0
        self._all = rows

    def extend(self, tokens: Tensor) -> Tensor:
        logits = super().extend(tokens)
        texts = [row.sequence[:-1] for row in self._all if not row.finish]
        self.compare([[*text, *new] for text, new in zip(texts, tokens.tolist(), strict=True)], logits)
        return logits

    def compare(self, texts: list[list[int]], logits: Tensor) -> None:
        for mine, fresh in zip(logits, fresh_logits(self.model, texts), strict=True):
            self.worst = max(self.worst, float((mine - fresh[-len(mine) :]).abs().max()))


class _WatchedDraft(_WatchedTarget):
    """The same for a draft model: only the last logits matter, from which a token is sampled."""

    def __init__(self, model: object):
        super().__init__(model, [])
        self.texts: list[list[int]] = []
        self.first = True

    def extend(self, tokens: Tensor) -> Tensor:
        logits = TransformersModel.extend(self, tokens)
        if not self.first:
            self.texts = [[*text, *new] for text, new in zip(self.texts, tokens.tolist(), strict=True)]
        self.first = False
        self.compare(self.texts, logits[:, -1:])
        return logits


class _WatchedDrafter(ModelDrafter):
    """Gives its model the accepted texts at the start of each round."""

    def __init__(self, model: object):
        self.watched = _WatchedDraft(model)
        super().__init__(self.watched)

    def propose(self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness) -> Draft:
        self.watched.texts, self.watched.first = [list(s) for s in sequences], True
        return super().propose(sequences, k, sampling, randomness)


def _run(
    target: LanguageModel,
    drafter: ModelDrafter,
    prompts: list[list[int]],
    k: int | Controller,
    max_new_tokens: int,
    eos: frozenset[int] = frozenset(),
) -> list[decoding.Row]:
    """One batch through the loop, from seed 0."""
    rows = [decoding.Row(tuple(prompt), max_new_tokens) for prompt in prompts]
    for _ in decoding.speculate(target, drafter, rows, as_controller(k), Sampling(), SeededRandomness(0), eos):
        pass
    return rows
