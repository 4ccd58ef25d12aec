"""The promises of `minimal`: exactly the target's distribution, and the same tokens as the package."""

import itertools
from collections import defaultdict
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from specdec_ref import GREEDY, Pair, Sampling, SeededRandomness, generate_speculative
from specdec_ref.minimal import Model, generate

PROMPT = [5, 9, 2]


def table_model(vocab_size: int, seed: int) -> Model:
    """Probabilities that depend on the last two tokens, in float64; one token of each row is impossible."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(vocab_size, vocab_size, vocab_size, generator=generator, dtype=torch.float64)
    table.scatter_(2, table.argmin(2, keepdim=True), 0)
    table = table / table.sum(2, keepdim=True)

    def model(tokens: list[int]) -> Tensor:
        before = [tokens[0], *tokens[:-1]]
        return table[before, tokens]

    return model


class EveryOutcome:
    """Randomness that replays decisions, and takes the first possible one where none is left. It notes the others."""

    def __init__(self, decisions: list[object]):
        self.decisions = list(decisions)
        self.probability = 1.0
        self.taken: list[object] = []
        self.alternatives: list[list[object]] = []

    def draw(self, probabilities: Tensor) -> Tensor:
        options = {token: p for token, p in enumerate(probabilities.tolist()) if p > 0}
        return torch.tensor(self._decide(options))

    def accept(self, probability: Tensor) -> Tensor:
        options = {}
        for answers in itertools.product([True, False], repeat=len(probability)):
            factors = [p if answer else 1 - p for p, answer in zip(probability.tolist(), answers, strict=True)]
            if all(p > 0 for p in factors):
                options[answers] = float(torch.tensor(factors, dtype=torch.float64).prod())
        return torch.tensor(self._decide(options))

    def _decide(self, options: dict[object, float]) -> object:
        decision = self.decisions.pop(0) if self.decisions else next(iter(options))
        self.probability *= options[decision]
        self.taken.append(decision)
        self.alternatives.append(list(options))
        return decision


def every_text(target: Model, draft: Model, k: int, n: int) -> dict[tuple[int, ...], float]:
    """The probability of every text that `generate` can return: all outcomes of all random decisions."""
    texts: dict[tuple[int, ...], float] = defaultdict(float)
    to_play: list[list[object]] = [[]]
    while to_play:
        decisions = to_play.pop()
        randomness = EveryOutcome(decisions)
        texts[tuple(generate(target, draft, [0], k, n, randomness))] += randomness.probability
        for place in range(len(decisions), len(randomness.taken)):
            others = [o for o in randomness.alternatives[place] if o != randomness.taken[place]]
            to_play += [[*randomness.taken[:place], other] for other in others]
    return texts


def by_the_chain_rule(target: Model, n: int) -> Iterator[tuple[tuple[int, ...], float]]:
    vocabulary = range(target([0]).shape[1])
    for text in itertools.product(vocabulary, repeat=n):
        rows = target([0, *text[:-1]])
        yield text, float(rows[range(n), text].prod())


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_text_has_exactly_the_targets_probability(k: int, seed: int) -> None:
    target, draft = table_model(3, seed), table_model(3, seed + 10)
    found = every_text(target, draft, k, n=3)
    for text, probability in by_the_chain_rule(target, 3):
        assert found.get(text, 0.0) == pytest.approx(probability, abs=1e-9)
    assert sum(found.values()) == pytest.approx(1, abs=1e-9)


def test_the_proof_sees_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec_ref.minimal.residual", lambda p, q: p)
    target, draft = table_model(3, 0), table_model(3, 10)
    found = every_text(target, draft, 2, n=3)
    assert any(abs(found.get(text, 0.0) - p) > 0.01 for text, p in by_the_chain_rule(target, 3))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=9), GREEDY], ids=str)
@pytest.mark.parametrize("k", [0, 1, 4])
def test_it_emits_the_tokens_of_the_package(k: int, sampling: Sampling, pair: Pair) -> None:
    def without_cache(model: object) -> Model:
        def scored(tokens: list[int]) -> Tensor:
            with torch.inference_mode():
                logits: Tensor = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]  # type: ignore[operator]
            return sampling.probabilities(logits)

        return scored

    target, draft = without_cache(pair.target), without_cache(pair.draft)
    for seed in range(3):
        ours = generate(target, draft, PROMPT, k, 30, SeededRandomness(seed))
        package = generate_speculative(pair, PROMPT, k=k, max_new_tokens=30, sampling=sampling, seed=seed)
        assert tuple(ours) == package.tokens
