"""The promises of suffix decoding: it proposes what followed the longest suffix most often, as far as its estimate
reaches; it remembers earlier texts up to a limit; and the text stays the target's.

The proof that every distribution is exact is in the suite of `specdec equivalence --exact`, which test_exact.py runs.
"""

import copy
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec_lab.equivalence.empirical import empirical
from specdec_lab.equivalence.engines import OurLoop
from specdec_lab.equivalence.exact import exact
from specdec_lab.equivalence.tables import random_table
from specdec_ref import GREEDY, Pair, PromptLookupDrafter, Sampling, SeededRandomness, SpecdecError, SuffixDrafter
from specdec_ref import generate_autoregressive as autoregressive
from specdec_ref import generate_speculative as speculative
from specdec_ref.beyond.suffix import SuffixCounts

PROMPTS = [[5, 9, 33, 2, 60, 7, 1], [8], [40, 3, 12, 12]]

# 5 follows (1, 2) twice, 6 once; what follows 6 is newer.
TWO_TO_ONE = [1, 2, 5, 7, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2]


def proposals(drafter: SuffixDrafter, *texts: list[int], k: int = 4) -> list[list[int]]:
    """What a new generation with these texts is offered in its first round."""
    drafter.start(len(texts), 1000)
    return next_proposals(drafter, *texts, k=k)


def next_proposals(drafter: SuffixDrafter, *texts: list[int], k: int = 4) -> list[list[int]]:
    """What the generation that is going on is offered."""
    draft = drafter.propose([list(text) for text in texts], k, GREEDY, SeededRandomness(0))
    assert draft.probabilities is None
    return [tokens[:n] for tokens, n in zip(draft.tokens.tolist(), draft.num_drafted.tolist(), strict=True)]


# What it proposes


def test_the_most_frequent_continuation_wins_where_prompt_lookup_takes_the_latest() -> None:
    lookup = PromptLookupDrafter().propose([TWO_TO_ONE], 1, GREEDY, SeededRandomness(0))
    assert lookup.tokens.tolist() == [[6]]
    assert proposals(SuffixDrafter(), TWO_TO_ONE, k=1) == [[5]]


def test_of_equally_frequent_continuations_the_latest_wins() -> None:
    assert proposals(SuffixDrafter(), [1, 5, 3, 1, 6, 4, 1], k=1) == [[6]]
    assert proposals(SuffixDrafter(), [1, 6, 3, 1, 5, 4, 1], k=1) == [[5]]


LONG_AND_RARE = [1, 2, 3, 7, 5, 2, 3, 8, 6, 2, 3, 8, 4, 1, 2, 3]


def test_a_longer_suffix_counts_more_than_a_more_frequent_one() -> None:
    assert proposals(SuffixDrafter(), LONG_AND_RARE, k=1) == [[7]]


def test_suffixes_longer_than_max_match_are_not_looked_for() -> None:
    assert proposals(SuffixDrafter(max_match=3), LONG_AND_RARE, k=1) == [[7]]
    assert proposals(SuffixDrafter(max_match=2), LONG_AND_RARE, k=1) == [[8]]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.7, []), (0.6, [5]), (0.34, [5]), (0.33, [5, 8, 1, 2])],
)
def test_a_proposal_ends_before_its_estimated_probability_falls_below_the_threshold(
    threshold: float, expected: list[int]
) -> None:
    """After (1, 2) comes 5 with 2/3; after (1, 2, 5) come 7 and 8 with 1/2 each; then 1 and 2 are certain: 1/3."""
    assert proposals(SuffixDrafter(min_probability=threshold), TWO_TO_ONE) == [expected]


def test_a_loop_is_continued_beyond_the_end_of_the_text() -> None:
    assert proposals(SuffixDrafter(), [1, 2, 3, 1, 2, 3], k=8) == [[1, 2, 3, 1, 2, 3, 1, 2]]


def test_without_a_repetition_nothing_is_proposed() -> None:
    assert proposals(SuffixDrafter(), [1, 2, 3, 4], [7]) == [[], []]


def test_no_more_than_k_tokens_are_proposed() -> None:
    for k in (0, 1, 2, 5):
        assert [len(tokens) for tokens in proposals(SuffixDrafter(), [4, 4, 4, 4], k=k)] == [k]


def test_rows_of_a_batch_draft_from_each_others_texts() -> None:
    assert proposals(SuffixDrafter(), [1, 2, 3], [4, 2], k=2) == [[], [3]]


def test_it_counts_the_tokens_of_later_rounds_once() -> None:
    drafter = SuffixDrafter()
    text = TWO_TO_ONE[:8]
    drafter.start(1, 100)
    for end in (3, 4, 4, 8):  # a round without a new token is no reason to count again
        next_proposals(drafter, text[:end])
    whole = SuffixDrafter()
    whole.start(1, 100)
    assert next_proposals(drafter, TWO_TO_ONE) == next_proposals(whole, TWO_TO_ONE)
    drafter.start(1, 100)
    whole.start(1, 100)
    assert next_proposals(drafter, [1, 2]) == next_proposals(whole, [1, 2])


def by_definition(
    texts: list[list[int]], sequence: list[int], k: int, max_match: int, min_probability: float
) -> list[int]:
    """The same from the definition: a search through all texts for each suffix and each proposed token."""
    proposed: list[int] = []
    probability = 1.0
    while len(proposed) < k:
        text = [*sequence, *proposed]
        followers: list[int] = []
        for length in range(min(max_match, len(text)), 0, -1):
            followers = [
                known[i + length]
                for known in [*texts, sequence]
                for i in range(len(known) - length)
                if known[i : i + length] == text[len(text) - length :]
            ]
            if followers:
                break
        if not followers:
            return proposed
        newest = {token: i for i, token in enumerate(followers)}
        best = max(newest, key=lambda token: (followers.count(token), newest[token]))
        probability *= followers.count(best) / len(followers)
        if probability < min_probability:
            return proposed
        proposed.append(best)
    return proposed


TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=15)


@given(st.lists(TEXT, max_size=3), TEXT, st.integers(0, 5), st.integers(1, 5), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_it_proposes_what_the_definition_says(
    earlier: list[list[int]], text: list[int], k: int, max_match: int, min_probability: float
) -> None:
    drafter = SuffixDrafter(max_match, min_probability)
    for known in earlier:
        drafter.remember(known)
    assert proposals(drafter, text, k=k) == [by_definition(earlier, text, k, max_match, min_probability)]


@given(TEXT, TEXT, TEXT, st.integers(1, 4))
def test_what_is_taken_back_was_never_counted(first: list[int], second: list[int], third: list[int], n: int) -> None:
    counts, expected = SuffixCounts(n), SuffixCounts(n)
    counts.add(first)
    counts.add(second)
    counts.remove(first)
    expected.add(second)
    assert len(counts) == len(expected)
    assert counts.after(third) == expected.after(third)
    counts.remove(second)
    assert len(counts) == 0


# What it remembers


def test_the_text_of_one_generation_is_remembered_in_the_next() -> None:
    drafter = SuffixDrafter()
    proposals(drafter, [1, 2, 3, 4, 5])
    assert proposals(drafter, [9, 2]) == [[3, 4, 5]]
    assert proposals(SuffixDrafter(), [9, 2]) == [[]]


def test_remembered_texts_are_earlier_texts() -> None:
    drafter = SuffixDrafter()
    drafter.remember([1, 2, 3, 4, 5])
    assert proposals(drafter, [9, 2]) == [[3, 4, 5]]


def test_the_oldest_text_is_forgotten_first_and_as_a_whole() -> None:
    drafter = SuffixDrafter(memory=6)
    for text in ([1, 2, 3], [4, 5, 6], [7, 8]):
        drafter.remember(text)
    assert proposals(drafter, [1], [2], [4], [7]) == [[], [], [5, 6], [8]]


def test_a_text_larger_than_the_memory_is_forgotten_at_once() -> None:
    drafter = SuffixDrafter(memory=3)
    drafter.remember([1, 2, 3, 4])
    assert proposals(drafter, [1]) == [[]]


def test_without_memory_the_text_itself_is_still_searched() -> None:
    drafter = SuffixDrafter(memory=0)
    assert proposals(drafter, [1, 2, 3, 1]) == [[2, 3, 1, 2]]
    assert proposals(drafter, [1]) == [[]]


def test_rows_that_are_kept_go_on_with_their_own_text_in_the_new_order() -> None:
    drafter = SuffixDrafter(memory=0)
    proposals(drafter, [1, 2, 1], [3, 4, 3], [5, 6, 5])
    drafter.keep([2, 0])
    assert next_proposals(drafter, [5, 6, 5, 6], [1, 2, 1, 7, 2], k=1) == [[5], [1]]


def test_rows_that_left_are_earlier_texts_within_the_limit() -> None:
    for memory, expected in ((3, [[4]]), (2, [[]])):
        drafter = SuffixDrafter(memory=memory)
        proposals(drafter, [1, 2, 1], [3, 4, 3])
        drafter.keep([0])
        assert next_proposals(drafter, [1, 2, 1, 3], k=1) == expected


def test_the_proof_does_not_teach_the_drafter_anything() -> None:
    drafter = SuffixDrafter()
    drafter.remember([0, 1, 1])
    before = copy.deepcopy(drafter)
    proofs = [exact(random_table(2, 5), drafter, [1, 0], k=2, max_new_tokens=3) for _ in range(2)]
    assert proofs[0].holds
    assert proofs[0] == proofs[1]
    for text in ([0], [1, 1], [1, 0]):
        assert proposals(copy.deepcopy(drafter), text) == proposals(copy.deepcopy(before), text)


# Whole generations


def test_greedy_text_is_the_targets_also_when_it_is_generated_again(pair: Pair) -> None:
    drafter = SuffixDrafter()
    expected = [autoregressive(pair, prompt, max_new_tokens=24, sampling=GREEDY).tokens for prompt in PROMPTS]
    for _ in range(2):
        texts = speculative(pair, PROMPTS, k=4, max_new_tokens=24, sampling=GREEDY, drafter=drafter)
        assert [text.tokens for text in texts] == expected


def test_a_request_that_comes_again_takes_few_rounds(pair: Pair) -> None:
    """24 tokens, five a round; the last round of the first generation was not remembered."""
    drafter = SuffixDrafter()
    first, again = (
        speculative(pair, PROMPTS[0], k=4, max_new_tokens=24, sampling=GREEDY, drafter=drafter) for _ in range(2)
    )
    assert all(r.accepted == len(r.drafted) for r in again.rounds)
    assert len(again.rounds) <= 6 < len(first.rounds)


def test_the_same_seed_and_the_same_memory_give_the_same_text(pair: Pair) -> None:
    drafter = SuffixDrafter()
    speculative(pair, PROMPTS, k=4, max_new_tokens=24, seed=1, drafter=drafter)
    texts = [
        speculative(pair, PROMPTS, k=4, max_new_tokens=24, seed=2, drafter=copy.deepcopy(drafter)) for _ in range(2)
    ]
    assert [text.tokens for text in texts[0]] == [text.tokens for text in texts[1]]


def test_samples_that_draft_from_earlier_samples_are_consistent_with_the_target(pair: Pair) -> None:
    """False alarms: one in 1,000 tests."""
    sampling = Sampling(temperature=0.8, top_k=12, top_p=0.9)
    sampler = OurLoop(pair, 2, sampling, drafter=SuffixDrafter())
    result = empirical(pair, sampler, [PROMPTS[0], PROMPTS[2]], samples=2_000, sampling=sampling, length=3)
    assert result.consistent, result.explain()


def test_a_pair_without_a_draft_model_will_do(pair: Pair) -> None:
    alone = Pair(pair.target, None, pair.tokenizer)
    text = speculative(alone, PROMPTS[0], k=4, max_new_tokens=24, sampling=GREEDY, drafter=SuffixDrafter())
    assert text.tokens == autoregressive(pair, PROMPTS[0], max_new_tokens=24, sampling=GREEDY).tokens


def test_a_batch_drafts_a_different_number_of_tokens_for_each_row(pair: Pair) -> None:
    texts = speculative(pair, PROMPTS, k=4, max_new_tokens=24, sampling=Sampling(0.3), seed=3, drafter=SuffixDrafter())
    lengths = {tuple(len(r.drafted) for r in text.rounds) for text in texts}
    assert len(lengths) == len(PROMPTS)


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SuffixDrafter(max_match=0), "max_match=0: takes a whole number ≥ 1"),
        (lambda: SuffixDrafter(max_match=2.5), "max_match=2.5: takes a whole number ≥ 1"),  # type: ignore[arg-type]
        (lambda: SuffixDrafter(min_probability=1.5), "min_probability=1.5: takes a probability"),
        (lambda: SuffixDrafter(min_probability=float("nan")), "min_probability=nan: takes a probability"),
        (lambda: SuffixDrafter(memory=-1), "memory=-1: takes a whole number ≥ 0, in tokens"),
        (lambda: SuffixDrafter(memory=1e6), "memory=1000000.0: takes a whole number"),  # type: ignore[arg-type]
        (lambda: SuffixDrafter().remember("def f"), "text='def f': takes a list of token ids"),  # type: ignore[arg-type]
        (lambda: SuffixDrafter().remember([1, -2]), "text=[1, -2]: takes a list of token ids"),
        (lambda: SuffixDrafter().remember(7), "text=7: takes a list of token ids"),  # type: ignore[arg-type]
    ],
)
def test_wrong_use_is_reported_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(SpecdecError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_class_instead_of_a_drafter_is_refused(pair: Pair) -> None:
    with pytest.raises(SpecdecError, match="drafter="):
        speculative(pair, PROMPTS[0], drafter=SuffixDrafter)  # type: ignore[call-overload]
