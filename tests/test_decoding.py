"""The promises of `decoding`: the text that transformers itself generates, with any drafter; exact ends; streams
that say what `generate` says; rounds that add up; and one wait for the device in a round.
"""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from scipy import stats
from transformers import PreTrainedModel

from specdec_ref import (
    GREEDY,
    Drafter,
    FixedK,
    Generation,
    ModelDrafter,
    Pair,
    PromptLookupDrafter,
    RewindableCache,
    Round,
    Sampling,
    SeededRandomness,
    SpecdecError,
    SuffixDrafter,
    TransformersModel,
    Verify,
    generate_autoregressive,
    generate_speculative,
    stream_speculative,
    verify,
    verify_block,
)
from specdec_ref.cache import FIRST_SLOTS
from specdec_ref.decoding import Row, speculate
from specdec_ref.fast.steps import choose_steps

PROMPTS = [[5], [40, 3, 12, 12, 61, 7, 30, 2, 9], [7, 9, 11] * 6]
NEW = 24


def by_transformers(model: PreTrainedModel, prompt: list[int], n: int, eos: int | None = None) -> tuple[int, ...]:
    """What transformers' own greedy `generate` adds to one prompt."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
        )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def expected(pair: Pair) -> list[tuple[int, ...]]:
    texts = [by_transformers(pair.target, prompt, NEW) for prompt in PROMPTS]
    assert all(len(set(text)) > 8 for text in texts), "texts that repeat themselves would hide mistakes"
    return texts


@pytest.fixture(scope="module")
def twins(pair: Pair) -> Pair:
    """The target as its own draft."""
    return Pair(pair.target, pair.target, pair.tokenizer)


def ending_with(pair: Pair, eos: int | list[int]) -> Pair:
    """The same pair, whose target ends at other tokens."""
    target = copy.deepcopy(pair.target)
    target.generation_config.eos_token_id = eos
    return Pair(target, pair.draft, pair.tokenizer)


def tokens_of(generations: list[Generation]) -> list[tuple[int, ...]]:
    return [generation.tokens for generation in generations]


DRAFTERS: dict[str, Callable[[Pair], Drafter]] = {
    "model": lambda pair: ModelDrafter(TransformersModel(pair.draft)),
    "self": lambda pair: ModelDrafter(TransformersModel(pair.target)),
    "min_confidence": lambda pair: ModelDrafter(TransformersModel(pair.draft), min_confidence=0.4),
    "prompt lookup": lambda pair: PromptLookupDrafter(),
    "suffix": lambda pair: SuffixDrafter(),
}


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 5, 6, NEW + 9])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_text_is_transformers_own_for_each_prompt_of_a_ragged_batch(
    drafter: str, k: int, pair: Pair, expected: list[tuple[int, ...]]
) -> None:
    # Under greedy sampling every drafted token has probability 1, so min_confidence needs a sampled draft to stop;
    # it is met in test_drafting. Here it must at least change nothing.
    result = generate_speculative(
        pair, PROMPTS, k=k, max_new_tokens=NEW, sampling=GREEDY, drafter=DRAFTERS[drafter](pair)
    )
    assert tokens_of(result) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_in_every_number_type_a_greedy_token_is_among_the_models_likeliest(dtype: torch.dtype, pair: Pair) -> None:
    """Rounding differs between one token and several, so the token may be another; its logit may not be much lower."""
    target, draft = (copy.deepcopy(model).to(dtype) for model in (pair.target, pair.draft))
    spacing = 0.0 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    for one in generate_speculative(
        Pair(target, draft, pair.tokenizer), PROMPTS, k=4, max_new_tokens=NEW, sampling=GREEDY
    ):
        n = len(one.prompt_tokens)
        with torch.inference_mode():
            logits = target(input_ids=torch.tensor([[*one.prompt_tokens, *one.tokens]])).logits[0, n - 1 : -1].double()
        chosen = logits.gather(-1, torch.tensor(one.tokens)[:, None])[:, 0]
        largest = logits.amax(-1)
        assert (largest - chosen <= spacing * largest.abs() + 1e-12).all()
        assert 0 < one.acceptance_rate < 1


COLD = [Sampling(1e-6), Sampling(1e-40), Sampling(5e-324), Sampling(top_k=1), Sampling(top_p=1e-9)]


@pytest.mark.parametrize("sampling", COLD, ids=str)
def test_sampling_from_next_to_nothing_is_greedy(
    sampling: Sampling, pair: Pair, expected: list[tuple[int, ...]]
) -> None:
    assert tokens_of(generate_speculative(pair, PROMPTS, k=4, max_new_tokens=NEW, sampling=sampling)) == expected


@pytest.mark.parametrize("temperature", [50.0, 1e6, 1e38, 1.7e308])
def test_at_a_high_temperature_every_token_comes_up(temperature: float, pair: Pair) -> None:
    written = generate_speculative(pair, PROMPTS * 10, k=4, max_new_tokens=NEW, sampling=Sampling(temperature), seed=0)
    assert len(set(sum(tokens_of(written), ()))) == 64


@pytest.mark.parametrize("k", [100, 127])
@pytest.mark.parametrize("missing", [1, 2, 5, 60])
def test_k_may_be_larger_than_what_is_left_of_the_context(k: int, missing: int, pair: Pair) -> None:
    prompt = [(7 * i) % 64 for i in range(128 - missing)]
    written = generate_speculative(pair, prompt, k=k, max_new_tokens=500, sampling=GREEDY)
    assert written.finish == "context"
    assert len(written.tokens) == missing + 1
    assert written.tokens[:missing] == by_transformers(pair.target, prompt, missing)


def test_equal_prompts_get_equal_greedy_texts_and_different_samples(
    pair: Pair, expected: list[tuple[int, ...]]
) -> None:
    same = [PROMPTS[1]] * 5
    greedy = generate_speculative(pair, same, k=3, max_new_tokens=NEW, sampling=GREEDY)
    assert set(tokens_of(greedy)) == {expected[1]}
    assert len(set(tokens_of(generate_speculative(pair, same, k=3, max_new_tokens=NEW, seed=0)))) == 5


def test_a_list_of_one_prompt_gets_the_samples_it_would_get_alone(pair: Pair) -> None:
    for seed in range(3):
        (listed,) = generate_speculative(pair, PROMPTS[1:2], k=3, max_new_tokens=NEW, seed=seed)
        assert listed.tokens == generate_speculative(pair, PROMPTS[1], k=3, max_new_tokens=NEW, seed=seed).tokens


def test_texts_begin_as_the_tokenizer_begins_them(pair: Pair) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(pair.tokenizer)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{end} $A", special_tokens=[(end, 0)])
    begun = Pair(pair.target, pair.draft, tokenizer)
    ids = [0, *pair.tokenizer("the end")["input_ids"]]
    written = generate_speculative(begun, "the end", k=3, max_new_tokens=8, sampling=GREEDY)
    assert written.prompt_tokens == tuple(ids)
    assert written.tokens == by_transformers(pair.target, ids, 8)
    assert generate_speculative(begun, "", k=3, max_new_tokens=8, sampling=GREEDY).prompt_tokens == (0,)


def test_the_pair_of_these_tests_accepts_some_tokens_and_rejects_others(pair: Pair) -> None:
    accepted = Counter(
        r.accepted
        for g in generate_speculative(pair, PROMPTS, k=3, max_new_tokens=NEW, sampling=GREEDY)
        for r in g.rounds
    )
    assert set(accepted) == {0, 1, 2, 3}


def test_a_prompt_of_a_list_gets_what_it_would_get_alone(pair: Pair) -> None:
    together = generate_speculative(pair, PROMPTS, k=3, max_new_tokens=NEW, sampling=GREEDY)
    alone = [generate_speculative(pair, prompt, k=3, max_new_tokens=NEW, sampling=GREEDY) for prompt in PROMPTS]
    assert tokens_of(together) == tokens_of(alone)
    assert [g.text for g in together] == [g.text for g in alone]
    assert [[r.emitted for r in g.rounds] for g in together] == [[r.emitted for r in g.rounds] for g in alone]


def test_an_empty_list_gives_an_empty_list(pair: Pair) -> None:
    assert generate_speculative(pair, []) == []


def test_text_ids_tuples_and_tensors_are_the_same_prompt(pair: Pair) -> None:
    text = "the end, and"
    ids = pair.tokenizer(text)["input_ids"]
    prompts = [text, ids, tuple(ids), torch.tensor(ids)]
    alone = [generate_speculative(pair, p, max_new_tokens=8, sampling=GREEDY) for p in prompts]
    listed = generate_speculative(pair, prompts, max_new_tokens=8, sampling=GREEDY)
    assert {g.tokens for g in [*alone, *listed]} == {by_transformers(pair.target, ids, 8)}
    assert {g.prompt_tokens for g in [*alone, *listed]} == {tuple(ids)}


def test_a_draft_equal_to_the_target_is_always_accepted_greedily(twins: Pair) -> None:
    for generation in generate_speculative(twins, PROMPTS, k=4, max_new_tokens=NEW, sampling=GREEDY):
        assert generation.acceptance_rate == 1
        assert [r.accepted for r in generation.rounds] == [4, 4, 4, 4, 3]


def test_a_draft_equal_to_the_target_is_always_accepted_when_sampling(twins: Pair) -> None:
    # p and q differ by the rounding of float32, 1e-6, so that a new seed would fail for 1 in 10,000.
    for generation in generate_speculative(twins, PROMPTS, k=4, max_new_tokens=NEW, seed=0):
        assert generation.acceptance_rate == 1


@pytest.mark.parametrize("sampling", [None, Sampling(0.7, top_k=20, top_p=0.9)], ids=str)
@pytest.mark.parametrize("k", [0, 3])
def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(
    k: int, sampling: Sampling | None, pair: Pair
) -> None:
    def tokens(seed: int) -> list[tuple[int, ...]]:
        return tokens_of(generate_speculative(pair, PROMPTS, k=k, max_new_tokens=NEW, sampling=sampling, seed=seed))

    assert tokens(5) == tokens(5) != tokens(6)


def test_autoregressive_is_speculative_with_k_0(pair: Pair) -> None:
    one_by_one = generate_autoregressive(pair, PROMPTS[1], max_new_tokens=NEW, seed=5)
    assert one_by_one.tokens == generate_speculative(pair, PROMPTS[1], k=0, max_new_tokens=NEW, seed=5).tokens
    assert all(len(r.emitted) == 1 and not r.drafted for r in one_by_one.rounds)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_first_two_tokens_have_the_joint_frequencies_of_the_targets_own_probabilities(k: int, pair: Pair) -> None:
    """2,000 samples in one batch against transformers' logits. A new seed would reject a right loop once in 1,000."""
    sampling, prompt, samples, top = Sampling(top_k=4), PROMPTS[1], 2000, 4

    def most_likely(tokens: list[int]) -> tuple[list[int], list[float]]:
        with torch.inference_mode():
            logits = pair.target(input_ids=torch.tensor([tokens])).logits[0, -1].double()
        largest = logits.topk(top)
        return largest.indices.tolist(), largest.values.softmax(-1).tolist()

    law = {
        (a, b): probability * then
        for a, probability in zip(*most_likely(prompt), strict=True)
        for b, then in zip(*most_likely([*prompt, a]), strict=True)
    }
    result = generate_speculative(pair, [prompt] * samples, k=k, max_new_tokens=2, sampling=sampling, seed=11)
    counts = Counter(tokens_of(result))
    assert counts.keys() <= law.keys()
    # Cells that expect fewer than 5 are taken together, as the test asks for.
    rare = [cell for cell, probability in law.items() if samples * probability < 5]
    cells = [[cell] for cell in law if cell not in rare] + ([rare] if rare else [])
    observed = [sum(counts[cell] for cell in group) for group in cells]
    predicted = [samples * sum(law[cell] for cell in group) for group in cells]
    assert stats.chisquare(observed, predicted).pvalue > 1e-3


@pytest.mark.parametrize("n", [0, 1, 2, 7])
@pytest.mark.parametrize("k", [0, 4])
def test_max_new_tokens_is_exact(n: int, k: int, pair: Pair, expected: list[tuple[int, ...]]) -> None:
    for generation, tokens in zip(
        generate_speculative(pair, PROMPTS, k=k, max_new_tokens=n, sampling=GREEDY), expected, strict=True
    ):
        assert generation.tokens == tokens[:n]
        assert generation.finish == "length"


@pytest.mark.parametrize("at", [0, 1, 3, 4, 7, 12])
def test_an_end_token_inside_a_block_is_the_last_one(at: int, twins: Pair, expected: list[tuple[int, ...]]) -> None:
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        eos = tokens[at]
        result = generate_speculative(ending_with(twins, eos), prompt, k=5, max_new_tokens=NEW, sampling=GREEDY)
        assert result.tokens == by_transformers(twins.target, prompt, NEW, eos)
        assert result.finish == "eos"


def test_any_of_several_end_tokens_ends_and_rows_end_on_their_own(twins: Pair, expected: list[tuple[int, ...]]) -> None:
    ends = [expected[0][2], expected[1][9]]
    results = generate_speculative(ending_with(twins, ends), PROMPTS, k=5, max_new_tokens=NEW, sampling=GREEDY)
    for result, tokens in zip(results, expected, strict=True):
        first = next((i for i, token in enumerate(tokens) if token in ends), None)
        assert result.tokens == (tokens if first is None else tokens[: first + 1])
        assert result.finish == ("length" if first is None else "eos")


def test_the_end_token_is_among_the_tokens_but_not_in_the_text(twins: Pair, expected: list[tuple[int, ...]]) -> None:
    result = generate_speculative(
        ending_with(twins, expected[1][4]), PROMPTS[1], k=5, max_new_tokens=NEW, sampling=GREEDY
    )
    assert result.text == twins.tokenizer.decode(result.tokens[:-1], skip_special_tokens=True)


def first_with(pair: Pair, tokens: tuple[int, ...], stops: tuple[str, ...]) -> int | None:
    """How many tokens it takes until the text holds a stop string."""
    texts = [pair.tokenizer.decode(tokens[:n]) for n in range(len(tokens) + 1)]
    return next((n for n, text in enumerate(texts) if any(stop in text for stop in stops)), None)


@pytest.mark.parametrize("k", [0, 5])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (1, 3), (4, 2), (6, 5), (11, 4), (13, 1)])
def test_a_stop_string_ends_the_text_before_it_also_inside_a_block(
    start: int, length: int, k: int, twins: Pair, expected: list[tuple[int, ...]]
) -> None:
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        whole = twins.tokenizer.decode(tokens)
        stop = whole[start : start + length]
        result = generate_speculative(twins, prompt, k=k, max_new_tokens=NEW, sampling=GREEDY, stop=stop)
        assert result.tokens == tokens[: first_with(twins, tokens, (stop,))]
        assert result.text == whole[: whole.index(stop)]
        assert result.finish == "stop"
        assert sum(len(r.emitted) for r in result.rounds) == len(result.tokens)


def test_each_row_of_a_list_ends_at_its_own_first_stop_string(twins: Pair, expected: list[tuple[int, ...]]) -> None:
    texts = [twins.tokenizer.decode(tokens) for tokens in expected]
    stops = (texts[0][9:12], texts[1][3:5], "never there")
    results = generate_speculative(twins, PROMPTS, k=5, max_new_tokens=NEW, sampling=GREEDY, stop=stops)
    for result, tokens, text in zip(results, expected, texts, strict=True):
        n = first_with(twins, tokens, stops)
        assert result.tokens == tokens[:n]
        assert result.text == text[: min((text.index(s) for s in stops if s in text), default=None)]
        assert result.finish == ("length" if n is None else "stop")


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("missing", [0, 1, 3, 6])
def test_a_prompt_may_fill_the_context_and_gets_at_least_one_token(
    missing: int, k: int, pair: Pair, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    context = 24
    target = tiny_model("llama", max_position_embeddings=context)
    prompt = [(7 * i) % 64 for i in range(context - missing)]
    result = generate_speculative(Pair(target, target, pair.tokenizer), prompt, k=k, max_new_tokens=50, sampling=GREEDY)
    text = list(prompt)
    with torch.inference_mode():
        while len(text) <= context:
            text.append(int(target(input_ids=torch.tensor([text])).logits[0, -1].argmax()))
    assert [*prompt, *result.tokens] == text
    assert len(result.tokens) == missing + 1
    assert result.finish == "context"


def test_rows_of_a_batch_draft_no_more_than_they_can_use(pair: Pair, disturbed: Callable[..., PreTrainedModel]) -> None:
    """k suits the row that has most to go; what others would draft beyond their own end is not part of their rounds."""
    uneven = Pair(pair.target, disturbed(pair.target), pair.tokenizer)
    lasts = set()
    for generation in generate_speculative(uneven, PROMPTS, k=5, max_new_tokens=NEW, seed=3):
        left = NEW
        for one in generation.rounds:
            assert len(one.drafted) == min(5, left - 1)
            assert one.accepted == len(one.emitted) - 1
            left -= len(one.emitted)
        lasts.add(len(generation.rounds[-1].drafted))
    assert len(lasts) > 1  # they ended in rounds of different lengths


def test_rows_of_a_batch_reach_the_end_of_the_context_on_their_own(
    pair: Pair, tiny_model: Callable[..., PreTrainedModel], disturbed: Callable[..., PreTrainedModel]
) -> None:
    target = tiny_model("llama", max_position_embeddings=24)
    prompts = [[(7 * i + n) % 64 for i in range(n)] for n in (24, 22, 17, 3)]
    results = generate_speculative(
        Pair(target, disturbed(target), pair.tokenizer), prompts, k=4, max_new_tokens=10, sampling=GREEDY
    )
    assert [g.finish for g in results] == ["context", "context", "context", "length"]
    assert [len(g.tokens) for g in results] == [1, 3, 8, 10]
    for prompt, generation in zip(prompts[2:], results[2:], strict=True):
        n = min(10, 24 - len(prompt))  # transformers ends one token earlier
        assert generation.tokens[:n] == by_transformers(target, prompt, n)


def test_a_draft_with_a_shorter_context_limits_the_pair(pair: Pair, tiny_model: Callable[..., PreTrainedModel]) -> None:
    draft = tiny_model("gpt2", n_positions=20)
    result = generate_speculative(
        Pair(pair.target, draft, pair.tokenizer), PROMPTS[1], k=4, max_new_tokens=50, sampling=GREEDY
    )
    assert len(PROMPTS[1]) + len(result.tokens) == 20 + 1
    assert result.finish == "context"
    assert result.tokens == by_transformers(pair.target, PROMPTS[1], 12)


@pytest.mark.parametrize(("target_rows", "draft_rows"), [(64, 72), (72, 64)])
def test_padding_rows_of_either_model_change_no_token(
    target_rows: int, draft_rows: int, pair: Pair, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    target, draft = tiny_model("llama", vocab_size=target_rows), tiny_model("llama", vocab_size=draft_rows)
    with torch.no_grad():
        target.lm_head.weight[64:] = 0  # as after training: never the most likely
    result = generate_speculative(
        Pair(target, draft, pair.tokenizer), PROMPTS, k=3, max_new_tokens=NEW, sampling=GREEDY
    )
    assert tokens_of(result) == [by_transformers(target, prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("drafter", ["model", "min_confidence", "prompt lookup"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.6)], ids=str)
def test_rounds_add_up_to_the_tokens(drafter: str, sampling: Sampling, pair: Pair) -> None:
    k = 4
    for generation in generate_speculative(
        pair, PROMPTS, k=k, max_new_tokens=NEW, sampling=sampling, seed=1, drafter=DRAFTERS[drafter](pair)
    ):
        assert sum((r.emitted for r in generation.rounds), ()) == generation.tokens
        for i, r in enumerate(generation.rounds):
            assert 0 <= r.accepted <= len(r.drafted) <= k
            assert r.emitted[: r.accepted] == r.drafted[: min(r.accepted, len(r.emitted))]
            last = i == len(generation.rounds) - 1
            assert 1 <= len(r.emitted) <= r.accepted + 1 if last else len(r.emitted) == r.accepted + 1


def test_the_times_of_a_round_are_positive_and_within_the_whole(pair: Pair) -> None:
    result = generate_speculative(pair, PROMPTS[1], k=3, max_new_tokens=NEW, seed=0)
    drafting = [r for r in result.rounds if r.drafted]
    assert drafting
    assert all(r.draft_seconds > 0 and r.verify_seconds > 0 for r in drafting)
    assert sum(r.draft_seconds + r.verify_seconds for r in result.rounds) < result.seconds


def generation(*rounds: Round, seconds: float = 2.0) -> Generation:
    return Generation((1,), sum((r.emitted for r in rounds), ()), "", rounds, seconds, "length")


@pytest.mark.parametrize("k", [1, 3, 6])
def test_every_step_of_a_fixed_k_has_the_same_shape(k: int, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the end leaves room for fewer tokens: a step of a new shape takes twice as long as a recorded one."""
    shapes, extend = set(), TransformersModel.extend

    def spy(self: TransformersModel, tokens: torch.Tensor) -> torch.Tensor:
        if self.model is pair.target:
            shapes.add(tuple(tokens.shape))
        return extend(self, tokens)

    monkeypatch.setattr(TransformersModel, "extend", spy)
    drafted = set()
    for n in range(1, 12):
        made = generate_speculative(pair, PROMPTS[1], k=k, max_new_tokens=n, seed=n)
        assert len(made.tokens) == n
        drafted |= {len(r.drafted) for r in made.rounds}
    assert drafted == set(range(k + 1))
    assert shapes == {(1, k + 1)}


def test_the_acceptance_rate_counts_judged_tokens_only() -> None:
    # Of 4 drafted tokens 2 are accepted and the third is examined, the fourth is not; then all 4 are accepted.
    result = generation(Round((1, 2, 3, 4), 2, (1, 2, 9), 0.1, 0.1), Round((5, 6, 7, 8), 4, (5, 6, 7, 8, 9), 0.1, 0.1))
    assert result.acceptance_rate == pytest.approx(6 / 7)
    assert result.tokens_per_round == pytest.approx(8 / 2)
    assert result.tokens_per_second == pytest.approx(8 / 2.0)


def test_rates_of_nothing_are_nan() -> None:
    assert math.isnan(generation().acceptance_rate)
    assert math.isnan(generation().tokens_per_round)
    assert math.isnan(generation(Round((), 0, (3,), 0.0, 0.1)).acceptance_rate)


STOPS = [(), ("e",), ("nn", "is"), ("eso", "\N{HORIZONTAL ELLIPSIS}"), ("zzz", "ar")]


@pytest.mark.parametrize("stop", STOPS, ids=str)
@pytest.mark.parametrize("k", [0, 4])
def test_a_stream_says_what_generate_says_and_never_shows_part_of_a_stop_string(
    k: int, stop: tuple[str, ...], pair: Pair
) -> None:
    stopped, halves = 0, 0
    for seed in range(6):
        arguments = {"k": k, "max_new_tokens": 40, "seed": seed, "stop": stop}
        whole, shown, ends = generate_speculative(pair, PROMPTS[1], **arguments), "", list[Generation]()
        rounds = []
        for chunk in stream_speculative(pair, PROMPTS[1], **arguments, on_end=ends.append):
            shown += chunk.text
            rounds.append(chunk.round)
            assert whole.text.startswith(shown)
        assert shown == whole.text
        assert [r.emitted for r in rounds] == [r.emitted for r in whole.rounds]
        (end,) = ends
        assert (end.text, end.tokens, end.finish) == (whole.text, whole.tokens, whole.finish)
        stopped += whole.finish == "stop"
        halves += "\N{REPLACEMENT CHARACTER}" in whole.text
    assert stopped > 0 or not stop
    assert halves > 0 or stop  # some texts had half characters, the hardest case


def test_a_character_of_several_tokens_is_shown_when_it_is_whole(pair: Pair) -> None:
    """A stream whose text is 'é…' by construction: the target can only say so."""
    wanted = pair.tokenizer("\N{LATIN SMALL LETTER E WITH ACUTE}\N{HORIZONTAL ELLIPSIS}")["input_ids"]
    assert len(wanted) == 5
    target = copy.deepcopy(pair.target)
    plain, length = target.lm_head.forward, [0]

    def only_wanted(hidden: torch.Tensor) -> torch.Tensor:
        logits = plain(hidden)
        logits.fill_(0)[..., wanted[length[0] % 5]] = 9
        length[0] += 1
        return logits

    target.lm_head.forward = only_wanted
    chunks = stream_speculative(Pair(target, None, pair.tokenizer), [3], k=0, max_new_tokens=5, sampling=GREEDY)
    assert [chunk.text for chunk in chunks] == ["", "é", "", "", "…"]


def test_a_stream_closed_early_hands_out_what_there_was_as_interrupted(pair: Pair) -> None:
    ends: list[Generation] = []
    stream = stream_speculative(pair, PROMPTS[1], k=3, max_new_tokens=NEW, seed=0, on_end=ends.append)
    rounds = [next(stream).round, next(stream).round]
    assert ends == []
    stream.close()
    (end,) = ends
    assert end.finish == "interrupted"
    assert list(end.rounds) == rounds
    assert end.tokens == rounds[0].emitted + rounds[1].emitted
    assert end.seconds > 0


def test_streams_and_threads_side_by_side_do_not_disturb_each_other(pair: Pair) -> None:
    def alone(i: int) -> tuple[int, ...]:
        return generate_speculative(pair, PROMPTS[i], k=3, max_new_tokens=NEW, seed=i).tokens

    streams = [stream_speculative(pair, prompt, k=3, max_new_tokens=NEW, seed=i) for i, prompt in enumerate(PROMPTS)]
    streamed: list[list[int]] = [[] for _ in PROMPTS]
    for chunks in itertools.zip_longest(*streams):
        for tokens, chunk in zip(streamed, chunks, strict=True):
            tokens += chunk.round.emitted if chunk else ()
    wanted = [alone(i) for i in range(3)]
    assert [tuple(tokens) for tokens in streamed] == wanted
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(alone, [0, 1, 2] * 3)) == wanted * 3


def test_between_the_chunks_of_a_stream_the_readers_own_gradients_work(pair: Pair) -> None:
    x = torch.ones(2, requires_grad=True)
    for _ in stream_speculative(pair, PROMPTS[1], k=3, max_new_tokens=NEW, seed=0):
        assert not torch.is_inference_mode_enabled()
        (x * 2).sum().backward()
    assert x.grad is not None


def test_a_stream_of_no_tokens_ends_at_once(pair: Pair) -> None:
    ends: list[Generation] = []
    assert list(stream_speculative(pair, PROMPTS[1], max_new_tokens=0, on_end=ends.append)) == []
    assert [(end.tokens, end.finish) for end in ends] == [((), "length")]


# How Python code can ask a tensor for its numbers; on a GPU each makes the host wait.
WAITS = ["tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"]


@pytest.mark.parametrize("rule", [verify, verify_block])
@pytest.mark.parametrize("drafter", ["model", "prompt lookup"])
def test_a_round_waits_for_the_device_exactly_once(
    drafter: str, rule: Verify, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., object]:
        plain = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *args: object, **kwargs: object) -> object:
            calls[name] += 1
            return plain(self, *args, **kwargs)

        return call

    pair = copy.deepcopy(pair)
    for model in (pair.target, pair.draft):
        choose_steps(model, "plain")  # a step that is being recorded, on CPUs only, looks at its sizes as tensors
    rows = [Row(tuple(prompt), NEW) for prompt in PROMPTS]
    parts = TransformersModel(pair.target), DRAFTERS[drafter](pair), rows, FixedK(3), Sampling(), SeededRandomness(0)
    loop = speculate(*parts, verify=rule)
    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    make = torch.tensor

    def made(data: object, **how: object) -> torch.Tensor:
        """On a GPU a tensor made there of Python's numbers waits too, and `.to(…, non_blocking=True)` does not."""
        calls["tensor"] += "device" in how
        return make(data, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "tensor", made)
    for i in range(6):
        calls.clear()
        extended = next(loop)
        assert len(extended) == 3
        assert +calls == {"tolist": 1}, f"round {i}"


@pytest.mark.parametrize(
    "rows", [[], [Row((1, 2), 0)], [Row((1, 2), 4), Row((3,), 0)]], ids=["none", "full", "one full"]
)
def test_rows_without_room_for_a_token_are_refused(pair: Pair, rows: list[Row]) -> None:
    loop = speculate(TransformersModel(pair.target), None, rows, FixedK(0), Sampling(), SeededRandomness(0))
    with pytest.raises(SpecdecError, match="rows: takes at least one row"):
        next(loop)


def test_a_large_max_new_tokens_takes_memory_only_as_the_text_grows(
    pair: Pair, tiny_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context of a million tokens and 10**7 new tokens: the stream is closed after a few, the caches are small."""
    caches: list[RewindableCache] = []
    start = TransformersModel.start

    def noting(model: TransformersModel, batch: int, capacity: int) -> None:
        start(model, batch, capacity)
        caches.append(model.cache)

    monkeypatch.setattr(TransformersModel, "start", noting)
    long = tiny_model("llama", max_position_embeddings=10**6)
    stream = stream_speculative(Pair(long, long, pair.tokenizer), PROMPTS[0], k=3, max_new_tokens=10**7, seed=0)
    for _ in range(5):
        next(stream)
    stream.close()
    used = [cache for cache in caches if cache.slots]
    assert len(used) == 2
    for cache in used:
        assert cache.capacity == 10**6
        assert cache.allocated == FIRST_SLOTS
