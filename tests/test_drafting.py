"""The promises of `drafting`: every token comes with the very distribution that it was drawn from, which is the draft
model's own after the true text, whatever was rejected before; and a round of k tokens costs k steps of the draft model.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

import specdec_ref as sd
from specdec_ref import (
    GREEDY,
    Draft,
    FixedK,
    ModelDrafter,
    Pair,
    PromptLookupDrafter,
    Round,
    Sampling,
    SeededRandomness,
    TransformersModel,
    generate_speculative,
)
from specdec_ref.decoding import Row, speculate

WARM = Sampling(temperature=0.8, top_k=30)
PROMPTS = [[5, 9, 33, 2, 60, 7, 1], [8], [40, 3, 12, 12]]


def plain_distribution(model: PreTrainedModel, tokens: list[int], sampling: Sampling) -> Tensor:
    """What the model itself draws from after these tokens: one pass, no cache."""
    with torch.inference_mode():
        return sampling.probabilities(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1])


def assert_sampled_from_the_model(
    draft: Draft, model: PreTrainedModel, sequences: list[list[int]], sampling: Sampling = WARM
) -> None:
    assert draft.probabilities is not None
    for row, sequence in enumerate(sequences):
        for i, token in enumerate(draft.tokens[row].tolist()):
            expected = plain_distribution(model, sequence + draft.tokens[row, :i].tolist(), sampling)
            torch.testing.assert_close(draft.probabilities[row, i], expected, rtol=0, atol=1e-5)
            assert expected[token] > 0


class Recorder:
    """A seeded `Randomness` that records each token with the distribution that it was sampled from."""

    def __init__(self, seed: int = 0):
        self.seeded = SeededRandomness(seed)
        self.samples: list[tuple[Tensor, Tensor]] = []

    def draw(self, probabilities: Tensor) -> Tensor:
        token = self.seeded.draw(probabilities)
        self.samples.append((probabilities.clone(), token))
        return token

    def accept(self, probability: Tensor) -> Tensor:
        return self.seeded.accept(probability)


class Counter:
    """A language model that counts its steps: how many tokens each `extend` fed, how many prefills there were."""

    def __init__(self, model: TransformersModel):
        self.model, self.fed, self.prefills = model, list[int](), 0

    def extend(self, tokens: Tensor) -> Tensor:
        self.fed.append(tokens.shape[1])
        return self.model.extend(tokens)

    def prefill(self, tokens: list[list[int]]) -> None:
        self.prefills += 1
        self.model.prefill(tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def test_the_distributions_are_those_that_the_tokens_were_drawn_from(pair: Pair) -> None:
    drafter, randomness = ModelDrafter(TransformersModel(pair.draft)), Recorder()
    drafter.start(3, 40)
    draft = drafter.propose(PROMPTS, 5, WARM, randomness)
    assert draft.tokens.shape == (3, 5)
    for i, (probabilities, token) in enumerate(randomness.samples):
        assert torch.equal(draft.probabilities[:, i], probabilities)
        assert torch.equal(draft.tokens[:, i], token)


@pytest.mark.parametrize("sampling", [Sampling(), WARM, GREEDY], ids=str)
def test_the_distributions_are_the_draft_models_own(pair: Pair, sampling: Sampling) -> None:
    drafter = ModelDrafter(TransformersModel(pair.draft))
    drafter.start(3, 40)
    draft = drafter.propose(PROMPTS, 5, sampling, SeededRandomness(0))
    assert_sampled_from_the_model(draft, pair.draft, PROMPTS, sampling)


def rounds(drafter: ModelDrafter, accepted: list[list[int]], k: int) -> list[tuple[Draft, list[list[int]]]]:
    """Rounds in which row r keeps accepted[round][r] drafted tokens and gets another one after them."""
    rng, sequences, seen = random.Random(0), [list(prompt) for prompt in PROMPTS], []
    drafter.start(3, 80)
    for kept in accepted:
        draft = drafter.propose([list(s) for s in sequences], k, WARM, SeededRandomness(len(seen)))
        seen.append((draft, [list(s) for s in sequences]))
        for row, n in enumerate(kept):
            tokens = draft.tokens[row].tolist()
            other = [t for t in range(64) if n == k or t != tokens[n]]
            sequences[row] += [*tokens[:n], rng.choice(other)]
    return seen


ACCEPTED = [[3, 3, 3], [0, 0, 0], [3, 0, 2], [1, 3, 3], [2, 2, 0], [3, 3, 1], [0, 3, 0]]


def test_they_still_are_after_any_acceptances_in_a_ragged_batch(pair: Pair) -> None:
    for draft, sequences in rounds(ModelDrafter(TransformersModel(pair.draft)), ACCEPTED, k=3):
        assert_sampled_from_the_model(draft, pair.draft, sequences)


def test_k_tokens_cost_k_steps_also_after_a_fully_accepted_round(pair: Pair) -> None:
    model = Counter(TransformersModel(pair.draft))
    rounds(ModelDrafter(model), ACCEPTED, k=3)
    assert len(model.fed) == 3 * len(ACCEPTED)
    assert model.prefills == 1


def test_the_missing_token_of_a_fully_accepted_round_is_fed_with_the_next_step(pair: Pair) -> None:
    model = Counter(TransformersModel(pair.draft))
    rounds(ModelDrafter(model), [[2, 2, 2], [1, 1, 1], [0, 0, 0], [1, 0, 1]], k=2)
    assert model.fed == [1, 1, 2, 1, 1, 1, 1, 1]


def test_a_whole_generation_runs_the_draft_model_k_times_a_round_and_once_for_the_prompt(pair: Pair) -> None:
    calls: list[object] = []
    hook = pair.target.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        twins = Pair(pair.target, pair.target, pair.tokenizer)  # draft and target at once, all accepted
        result = generate_speculative(twins, PROMPTS[0], k=4, max_new_tokens=20, sampling=GREEDY)
    finally:
        hook.remove()
    assert [r.accepted for r in result.rounds] == [4, 4, 4, 4]
    assert len(calls) == (1 + 4 * 4) + (1 + 4)


class Sometimes:
    """A controller that leaves rounds without a draft between others."""

    def __init__(self, *ks: int):
        self.max_k, self.ks = max(ks), list(ks)

    def next_k(self) -> int:
        self.ks.append(self.ks.pop(0))
        return self.ks[-1]

    def observe(self, rounds: list[Round]) -> None:
        pass


class Checked:
    """A drafter each of whose drafts is compared with the plain model's."""

    def __init__(self, model: PreTrainedModel):
        self.plain, self.drafter, self.drafts = model, ModelDrafter(TransformersModel(model)), 0
        self.start, self.keep = self.drafter.start, self.drafter.keep

    def propose(self, sequences: list[list[int]], k: int, *arguments: Any) -> Draft:
        draft = self.drafter.propose(sequences, k, *arguments)
        if k > 0:
            assert_sampled_from_the_model(draft, self.plain, sequences, Sampling())
            self.drafts += 1
        return draft


@pytest.mark.parametrize("ks", [(4, 0), (4, 0, 0, 1), (3, 0, 2, 0, 0, 0)])
def test_they_still_are_after_rounds_without_a_draft(ks: tuple[int, ...], pair: Pair) -> None:
    drafter = Checked(pair.draft)
    rows = [Row(tuple(prompt), 16) for prompt in PROMPTS]
    for _ in speculate(TransformersModel(pair.target), drafter, rows, Sometimes(*ks), Sampling(), SeededRandomness(3)):
        pass
    assert drafter.drafts > 3
    assert any(r.accepted < len(r.drafted) for row in rows for r in row.rounds)


def test_they_still_are_after_a_neighbour_reached_the_end_of_the_context(pair: Pair) -> None:
    drafter = Checked(pair.draft)
    for seed in range(40):
        text = random.Random(seed)
        rows = [Row(tuple(text.choices(range(64), k=n)), 12) for n in (38, 4)]
        randomness = SeededRandomness(seed)
        for _ in speculate(
            TransformersModel(pair.target), drafter, rows, FixedK(3), Sampling(), randomness, context=40
        ):
            pass
        assert [row.finish for row in rows] == ["context", "length"]
        # The hard case: of two drafted tokens the first was rejected, then a round had no room for a draft.
        first, second = rows[1].rounds[:2]
        if (len(first.drafted), first.accepted, len(second.drafted)) == (2, 0, 0):
            return
    raise AssertionError("the hard case never happened")


def test_rows_that_are_kept_go_on_with_their_own_text(pair: Pair) -> None:
    drafter = ModelDrafter(TransformersModel(pair.draft))
    drafter.start(3, 60)
    first = drafter.propose(PROMPTS, 3, WARM, SeededRandomness(0)).tokens.tolist()
    drafter.keep([2, 0])
    sequences = [PROMPTS[2] + first[2] + [9], PROMPTS[0] + first[0][:1] + [(first[0][1] + 1) % 64]]
    draft = drafter.propose(sequences, 3, WARM, SeededRandomness(1))
    assert_sampled_from_the_model(draft, pair.draft, sequences)


@pytest.mark.parametrize("confidence", [0.05, 0.3, 0.9, 1.0])
def test_an_early_stop_keeps_the_token_it_stopped_at(confidence: float, pair: Pair) -> None:
    drafter = ModelDrafter(TransformersModel(pair.draft), min_confidence=confidence)
    for seed in range(5):
        drafter.start(3, 60)
        draft = drafter.propose(PROMPTS, 6, Sampling(), SeededRandomness(seed))
        assert_sampled_from_the_model(draft, pair.draft, PROMPTS, Sampling())
        for row, tokens in enumerate(draft.tokens.tolist()):
            likelihoods = [
                float(plain_distribution(pair.draft, PROMPTS[row] + tokens[:i], Sampling())[token])
                for i, token in enumerate(tokens)
            ]
            first = next((i + 1 for i, q in enumerate(likelihoods) if q < confidence), 6)
            assert draft.num_drafted[row] == first


@pytest.mark.parametrize("rows", [60, 72])
def test_a_draft_with_other_padding_rows_gives_distributions_over_the_targets_vocabulary(
    rows: int, pair: Pair, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    model = tiny_model("llama", vocab_size=rows)
    drafter = ModelDrafter(TransformersModel(model, vocab_size=64))
    prompts = [[t % 60 for t in prompt] for prompt in PROMPTS]
    drafter.start(3, 60)
    draft = drafter.propose(prompts, 8, Sampling(2.0), SeededRandomness(0))
    q = draft.distribution(64, torch.zeros(1))
    assert q.shape == (3, 8, 64)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor(prompts[:1]), use_cache=False).logits[0, -1, :64]
    expected = torch.nn.functional.pad((logits / 2).softmax(-1), (0, 64 - len(logits)))
    torch.testing.assert_close(q[0, 0], expected, rtol=0, atol=1e-5)
    assert draft.tokens.max() < min(rows, 64)


@pytest.mark.parametrize("rows", [60, 72])
def test_a_drafter_of_ones_own_may_have_other_padding_rows(
    rows: int, pair: Pair, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    drafter = ModelDrafter(TransformersModel(tiny_model("llama", vocab_size=rows)))
    prompt = [t % 60 for t in PROMPTS[0]]
    drafted = generate_speculative(pair, prompt, k=4, max_new_tokens=16, sampling=GREEDY, drafter=drafter)
    assert drafted.tokens == generate_speculative(pair, prompt, k=0, max_new_tokens=16, sampling=GREEDY).tokens


def test_a_point_mass_is_a_one_hot_of_the_targets_width_and_number_type() -> None:
    q = Draft(torch.tensor([[2, 0]])).distribution(3, torch.zeros(1, dtype=torch.float64))
    assert q.dtype == torch.float64
    assert q.tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_tokens_that_are_not_meant_have_no_distribution() -> None:
    probabilities = torch.full((2, 3, 4), 0.25)
    lengths = torch.tensor([1, 3])
    for draft in (Draft(torch.zeros(2, 3, dtype=torch.int64), q, lengths) for q in (probabilities, None)):
        assert draft.distribution(4, probabilities).sum(-1).tolist() == [[1, 0, 0], [1, 1, 1]]
        assert draft.num_drafted.tolist() == [1, 3]


def test_without_lengths_every_token_is_meant() -> None:
    assert Draft(torch.zeros(2, 3, dtype=torch.int64)).num_drafted.tolist() == [3, 3]


def continuation(sequence: list[int], k: int, largest: int, smallest: int) -> list[int]:
    """The definition: of all earlier n-grams equal to the ending the longest, of those the latest; what followed it."""
    matches = [
        (n, start)
        for n in range(smallest, largest + 1)
        for start in range(len(sequence) - n)
        if sequence[start : start + n] == sequence[len(sequence) - n :]
    ]
    if not matches:
        return []
    n, start = max(matches)
    return sequence[start + n :][:k]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=3),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_prompt_lookup_proposes_what_followed_the_longest_then_latest_match(
    sequences: list[list[int]], k: int, smallest: int, more: int
) -> None:
    drafter = PromptLookupDrafter(max_ngram=smallest + more, min_ngram=smallest)
    draft = drafter.propose(sequences, k, Sampling(), SeededRandomness(0))
    expected = [continuation(s, k, smallest + more, smallest) for s in sequences]
    meant = draft.num_drafted.tolist()
    assert [tokens[:n] for tokens, n in zip(draft.tokens.tolist(), meant, strict=True)] == expected
    assert draft.probabilities is None


def test_prompt_lookup_prefers_a_longer_match_to_a_later_one() -> None:
    draft = PromptLookupDrafter(max_ngram=3).propose([[1, 2, 3, 9, 3, 8, 1, 2, 3]], 2, GREEDY, SeededRandomness(0))
    assert draft.tokens.tolist() == [[9, 3]]


def test_prompt_lookup_prefers_the_later_of_equally_long_matches() -> None:
    draft = PromptLookupDrafter(max_ngram=2).propose([[5, 6, 1, 5, 6, 2, 5, 6]], 3, GREEDY, SeededRandomness(0))
    assert draft.tokens.tolist() == [[2, 5, 6]]


def test_prompt_lookup_proposes_nothing_where_there_is_no_match() -> None:
    draft = PromptLookupDrafter().propose([[1, 2, 3, 4], [7]], 4, GREEDY, SeededRandomness(0))
    assert draft.tokens.shape == (2, 0)
    assert draft.num_drafted.tolist() == [0, 0]


def test_prompt_lookup_proposes_for_each_row_what_that_row_has() -> None:
    draft = PromptLookupDrafter().propose([[1, 2, 1], [3, 4], [5, 5, 5, 5]], 2, GREEDY, SeededRandomness(0))
    assert draft.num_drafted.tolist() == [2, 0, 1]
    q = draft.distribution(6, torch.zeros(1))
    assert q.argmax(-1)[0].tolist() == [2, 1]
    assert q.sum(-1).tolist() == [[1, 1], [0, 0], [1, 0]]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_prompt_lookup_runs_beside_a_target_on_a_gpu() -> None:
    prompt, settings = "a = 1\nb = 2\na = 1\nb =", {"k": 3, "max_new_tokens": 16, "sampling": sd.GREEDY}
    found = [
        sd.generate_speculative(
            sd.load_pair(device=device, dtype="float32"), prompt, drafter=sd.PromptLookupDrafter(), **settings
        ).tokens
        for device in ("cpu", "cuda")
    ]
    assert found[0] == found[1]


def test_nothing_in_the_padding_of_a_draft_matters() -> None:
    """A drafter may leave rows that it did not fill uninitialized."""
    q = torch.tensor([[[0.5, 0.5], [float("nan"), float("inf")]], [[0.5, 0.5], [0.25, 0.75]]])
    draft = sd.Draft(torch.tensor([[0, 1], [1, 0]]), q, torch.tensor([1, 2]))
    assert draft.distribution(2, q).tolist() == [[[0.5, 0.5], [0.0, 0.0]], [[0.5, 0.5], [0.25, 0.75]]]


def test_lengths_may_be_elsewhere_than_the_tokens() -> None:
    """As prompt lookup makes them: on the host, with the target on 'meta' standing for a GPU."""
    draft = Draft(torch.zeros(2, 3, dtype=torch.int64, device="meta"), lengths=torch.tensor([1, 3]))
    assert draft.distribution(5, torch.empty(0, device="meta")).shape == (2, 3, 5)
