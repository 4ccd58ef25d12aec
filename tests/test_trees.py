"""The promises of `beyond.trees`: a node is scored as its own path alone would be, in every kind of model; the cache
keeps the accepted path; siblings are what the scheme says, with the q that they were sampled from; and the text keeps
the target's distribution, which the proof suite shows case by case (test_exact).

No statistical test in here: what is random is played in every way, or has a fixed seed and an exact answer.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import specdec_ref as sd
from specdec_lab import SpeculativeDecodingMonitor
from specdec_lab.equivalence.enumeration import Script
from specdec_lab.equivalence.exact import Proof, exact
from specdec_lab.equivalence.mutants import mutant
from specdec_lab.equivalence.tables import constant_table, random_table
from specdec_lab.equivalence.tiny import fresh_logits
from specdec_ref import GREEDY, BestFirstDrafter, Pair, Sampling, SeededRandomness, TransformersModel, TreeDrafter
from specdec_ref.acceptance import Verdict, verify
from specdec_ref.ancestry import ancestor_mask, depths, node_paths
from specdec_ref.beyond.trees import SCHEMES, verify_tree, without
from specdec_ref.decoding import Round

KINDS = "llama qwen2 qwen3 gpt2 mistral gemma2 gemma3".split()
PARENTS = torch.tensor([[-1, -1, 0, 0, 1, 3, 4], [-1, 0, 0, 0, 1, 2, 5]])
"""Two trees of seven nodes."""

LENGTHS = [40, 23]
"""Tokens before each tree; the sliding windows of these models hold 16."""

by_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def draft_of(pair: Pair) -> TransformersModel:
    assert pair.draft is not None
    return TransformersModel(pair.draft)


# Which token follows which


def test_the_path_of_a_node_leads_from_the_text_to_the_node() -> None:
    assert node_paths(PARENTS)[0] == [[0], [1], [0, 2], [0, 3], [1, 4], [0, 3, 5], [1, 4, 6]]
    assert depths(PARENTS).tolist() == [[1, 1, 2, 2, 2, 3, 3], [1, 2, 2, 2, 3, 3, 4]]
    assert ancestor_mask(PARENTS)[0, 5].tolist() == [True, False, False, True, False, True, False]


# Scoring


def texts_of(tokens: Tensor, tree: Tensor) -> list[list[list[int]]]:
    """For each row and node the text that ends with it."""
    found = []
    for row, length, paths, nodes in zip(tokens, LENGTHS, node_paths(PARENTS), tree.tolist(), strict=True):
        found.append([[*row[:length].tolist(), *(nodes[i] for i in path)] for path in paths])
    return found


@pytest.fixture(scope="module", params=KINDS)
def begun(
    request: pytest.FixtureRequest, tiny_model: Callable[..., PreTrainedModel]
) -> Callable[[], tuple[TransformersModel, Tensor]]:
    """A model of each kind that has read two texts of different lengths, and the texts."""
    plain = tiny_model(request.param)
    tokens = torch.randint(0, 64, (2, 60), generator=torch.Generator().manual_seed(0))

    def begin() -> tuple[TransformersModel, Tensor]:
        model = TransformersModel(plain)
        model.start(2, 60)
        model.prefill([row[:n].tolist() for row, n in zip(tokens, LENGTHS, strict=True)])
        return model, tokens

    return begin


def test_every_node_is_scored_as_its_own_path_alone_would_be(
    begun: Callable[[], tuple[TransformersModel, Tensor]],
) -> None:
    model, tokens = begun()
    tree = torch.randint(0, 64, PARENTS.shape, generator=torch.Generator().manual_seed(1))
    logits = model.extend_tree(tree, PARENTS)
    for row, texts in enumerate(texts_of(tokens, tree)):
        fresh = torch.stack([scored[-1] for scored in fresh_logits(model.model, texts)])
        torch.testing.assert_close(logits[row], fresh, atol=1e-4, rtol=1e-4)


def extend_in_steps(model: TransformersModel, tree: Tensor, ends: Sequence[int]) -> Tensor:
    """Append the tree in steps that end before these nodes. Returns all logits."""
    starts = [0, *ends[:-1]]
    steps = [model.extend_tree(tree[:, a:b], PARENTS[:, :b]) for a, b in zip(starts, ends, strict=True)]
    return torch.cat(steps, 1)


@pytest.mark.parametrize("ends", [(1, 4, 7), (2, 3, 5, 6, 7)], ids=str)
def test_a_tree_may_be_appended_in_steps(
    begun: Callable[[], tuple[TransformersModel, Tensor]], ends: tuple[int, ...]
) -> None:
    model, _ = begun()
    tree = torch.randint(0, 64, PARENTS.shape, generator=torch.Generator().manual_seed(1))
    in_steps = extend_in_steps(model, tree, ends)
    model.rewind(LENGTHS)
    torch.testing.assert_close(in_steps, model.extend_tree(tree, PARENTS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ends", [(7,), (2, 5, 7)], ids=["one step", "three steps"])
@pytest.mark.parametrize("chosen", [([0, 3, 5], [0, 3]), ([1, 4, 6], [0]), ([], [0, 2, 5, 6])], ids=str)
def test_after_a_path_is_kept_the_model_goes_on_as_if_it_had_read_that_path(
    begun: Callable[[], tuple[TransformersModel, Tensor]],
    chosen: tuple[list[int], list[int]],
    ends: tuple[int, ...],
) -> None:
    model, tokens = begun()
    tree = torch.randint(0, 64, PARENTS.shape, generator=torch.Generator().manual_seed(1))
    extend_in_steps(model, tree, ends)
    model.keep_path(list(chosen))
    assert model.cache.lengths == [n + len(path) for n, path in zip(LENGTHS, chosen, strict=True)]
    more = torch.randint(0, 64, (2, 3), generator=torch.Generator().manual_seed(2))
    logits = model.extend(more)
    for row, path in enumerate(chosen):
        text = [*tokens[row, : LENGTHS[row]].tolist(), *tree[row, path].tolist(), *more[row].tolist()]
        torch.testing.assert_close(logits[row], fresh_logits(model.model, [text])[0][-3:], atol=1e-4, rtol=1e-4)


def test_a_chain_scored_as_a_tree_gets_the_scores_of_a_chain_to_the_last_bit(pair: Pair) -> None:
    """It is the same step, packed weights included; only the mask and the positions are made in another way."""
    plain, treelike = TransformersModel(pair.target), TransformersModel(pair.target)
    tokens = torch.tensor([[5, 9, 2, 7]])
    for model in (plain, treelike):
        model.start(1, 20)
        model.prefill([[3, 4, 8]])
    scores = treelike.extend_tree(tokens, torch.tensor([[-1, 0, 1, 2]]))
    assert torch.equal(scores, plain.extend(tokens))


def test_a_tree_may_need_more_slots_than_the_text_has_room_for(pair: Pair) -> None:
    model = TransformersModel(pair.target)
    model.start(1, 4)
    model.prefill([[3, 4, 8]])
    assert model.extend_tree(torch.zeros(1, 60, dtype=torch.int64), torch.full((1, 60), -1)).shape == (1, 60, 64)
    model.keep_path([[59]])
    assert model.cache.lengths == [4]


# What is proposed


def proposed(pair: Pair, scheme: str, sampling: Sampling, branching: tuple[int, ...] = (3, 2, 1)) -> sd.Draft:
    drafter = TreeDrafter(draft_of(pair), branching, scheme)
    drafter.start(2, 40)
    return drafter.propose([[5, 9, 2], [7]], 3, sampling, SeededRandomness(0))


@by_scheme
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.6, top_k=20), GREEDY], ids=str)
def test_siblings_are_chosen_by_the_scheme_from_the_drafts_own_distribution(
    scheme: str, sampling: Sampling, pair: Pair
) -> None:
    draft = proposed(pair, scheme, sampling)
    assert draft.parents is not None
    assert draft.parents.tolist() == [[-1, -1, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8]] * 2
    for row, text in enumerate([[5, 9, 2], [7]]):
        tokens, parents = draft.tokens[row].tolist(), draft.parents[row].tolist()
        for parent in dict.fromkeys(parents):
            before = [tokens[i] for i in node_paths(draft.parents)[row][parent]] if parent >= 0 else []
            logits = fresh_logits(draft_of(pair).model, [[*text, *before]])[0][-1]
            children = [i for i, other in enumerate(parents) if other == parent]
            if scheme == "top-k":
                assert [tokens[i] for i in children] == logits.topk(len(children)).indices.tolist()
                assert draft.probabilities is None
                continue
            assert draft.probabilities is not None
            q = sampling.probabilities(logits)
            for i in children:
                torch.testing.assert_close(draft.probabilities[row, i], q, atol=1e-5, rtol=1e-4)
                assert draft.probabilities[row, i, tokens[i]] > 0
                if scheme == "without replacement":
                    q = without(q, torch.tensor(tokens[i]))


def test_without_replacement_all_siblings_differ(pair: Pair) -> None:
    first = proposed(pair, "without replacement", Sampling(), (20, 1)).tokens[:, :20]
    assert all(len(set(row)) == 20 for row in first.tolist())


def test_what_is_left_without_a_token_is_normalized_and_is_q_where_nothing_is_left() -> None:
    q = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    expected = torch.tensor([[0.0, 0.6, 0.4], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(without(q, torch.tensor([0, 1])), expected)


@pytest.mark.parametrize("nodes", [1, 5, 12, 60])
def test_best_first_proposes_the_most_probable_continuations_of_the_draft(nodes: int, pair: Pair) -> None:
    """With a width of 4, all of the 4 + 16 + 16 candidates that the level-wise search sees, by brute force."""
    drafter = BestFirstDrafter(draft_of(pair), nodes, depth=3, width=4)
    drafter.start(2, 40)
    texts = [[5, 9, 2], [7]]
    draft = drafter.propose(texts, 3, Sampling(), SeededRandomness(0))
    assert draft.parents is not None
    for row, text in enumerate(texts):
        level: dict[tuple[int, ...], float] = {(): 0.0}
        seen: dict[tuple[int, ...], float] = {}
        for _ in range(3):
            added = {}
            for path, log_p in level.items():
                likely = fresh_logits(draft_of(pair).model, [[*text, *path]])[0][-1].log_softmax(-1).topk(4)
                for token, more in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
                    added[(*path, token)] = log_p + more
            seen |= added
            level = dict(sorted(added.items(), key=lambda item: -item[1])[:4])
        best = sorted(seen, key=lambda path: -seen[path])[:nodes]
        tokens = draft.tokens[row].tolist()
        proposed = [tuple(tokens[i] for i in path) for path in node_paths(draft.parents)[row]]
        assert sorted(proposed) == sorted(best)


def test_in_every_round_the_draft_continues_the_text_as_it_is(pair: Pair) -> None:
    """Whatever was accepted before, or rejected, or read of an earlier tree."""
    drafter = TreeDrafter(draft_of(pair), (3, 2))
    generations = sd.generate_speculative(pair, [[5, 9, 2], [7]], k=2, max_new_tokens=24, drafter=drafter, seed=0)
    for generation in generations:
        text, num_checked = list(generation.prompt_tokens), 0
        for one in generation.rounds:
            if one.drafted:
                logits = fresh_logits(draft_of(pair).model, [text])[0][-1]
                assert list(one.drafted[:3]) == logits.topk(3).indices.tolist()
                num_checked += 1
            text += one.emitted
        assert num_checked > 5
        assert {one.accepted for one in generation.rounds} == {0, 1, 2}


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_k_limits_the_depth(k: int, pair: Pair) -> None:
    generation = sd.generate_speculative(
        pair, [5, 9], k=k, max_new_tokens=20, drafter=TreeDrafter(draft_of(pair), (2, 2, 1)), seed=0
    )
    assert {r.depth for r in generation.rounds[:2]} == {min(k, 3)}
    assert len(generation.rounds[0].drafted) == {1: 2, 2: 6}.get(k, 10)


# The decision


def play(decide: Callable[[Script], Verdict], describe: Callable[[Verdict], Any]) -> dict[Any, float]:
    """The probability of everything that can be decided."""
    found: dict[Any, float] = defaultdict(float)
    choices: Any = []
    while choices is not None:
        script = Script(choices)
        verdict = decide(script)
        found[describe(verdict)] += script.probability(0)
        choices = script.following(0)
    return found


def distributions(count: int, size: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(size), count))


@pytest.mark.parametrize("seed", range(3))
def test_a_tree_with_one_child_everywhere_is_decided_as_a_chain(seed: int) -> None:
    p, q = distributions(4, 3, seed)[None], distributions(3, 3, seed + 50)[None]
    drafted = torch.tensor([[0, 2, 1]])
    parents = torch.tensor([[-1, 0, 1]])

    def describe(verdict: Verdict) -> tuple[int, int]:
        return int(verdict.accepted), int(verdict.next_token)

    chain = play(lambda script: verify(p, q, drafted, script), describe)
    tree = play(lambda script: verify_tree(p, q, drafted, script, parents=parents), describe)
    assert tree == pytest.approx(dict(chain), abs=1e-12)


def test_point_masses_are_accepted_with_p_in_turn_and_the_path_names_the_node() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)[None]
    drafted = torch.tensor([[1, 0]])
    q = torch.nn.functional.one_hot(drafted, 3).double()
    parents = torch.tensor([[-1, -1]])

    def describe(verdict: Verdict) -> tuple[Any, ...]:
        assert verdict.path is not None
        return tuple(verdict.path[0].tolist()), int(verdict.next_token)

    found = play(lambda script: verify_tree(p, q, drafted, script, parents=parents), describe)
    assert found == pytest.approx({((True, False), 0): 0.3, ((False, True), 1): 0.5, ((False, False), 2): 0.2})


def test_every_row_is_decided_on_its_own() -> None:
    p, q = distributions(12, 3, 0).reshape(4, 3, 3), distributions(8, 3, 1).reshape(4, 2, 3)
    drafted, parents = torch.tensor([[0, 1], [2, 2], [1, 0], [0, 2]]), torch.tensor([[-1, -1], [-1, 0]] * 2)
    together = verify_tree(p, q, drafted, SeededRandomness(0), parents=parents)
    assert together.path is not None
    assert together.path.sum(1).tolist() == together.accepted.tolist()
    for row in range(4):
        path = [i for i, on in enumerate(together.path[row].tolist()) if on]
        assert path in [[], *node_paths(parents)[row]]


def test_shapes_that_do_not_fit_are_named() -> None:
    p, q, drafted = torch.ones(1, 3, 4) / 4, torch.ones(1, 2, 4) / 4, torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(sd.SpecdecError, match=r"p \[1, 2, 4\], q \[1, 2, 4\], drafted \[1, 2\], parents \[1, 2\]"):
        verify_tree(p[:, 1:], q, drafted, SeededRandomness(0), parents=drafted - 1)


# Is q = 1 lossless?


PAIRS = [(distributions(200, 4, 10)[i], distributions(200, 4, 11)[i]) for i in range(200)]


def one_round(p: Tensor, q: Tensor, scheme: str) -> Proof:
    """Two candidates for one position."""
    return exact(constant_table(p), TreeDrafter(constant_table(q), (2,), scheme), [0], k=1, max_new_tokens=2)


def test_top_k_with_q_equal_to_1_is_lossless() -> None:
    assert max(one_round(p, q, "top-k").tv for p, q in PAIRS) < 1e-12


def test_top_k_judged_by_the_softmax_is_not() -> None:
    with mutant("tree-top-k-by-softmax").installed():
        distances = [one_round(p, q, "top-k").tv for p, q in PAIRS]
    assert min(distances) > 0
    assert np.mean(distances) == pytest.approx(0.337, abs=0.03)


def test_two_point_masses_are_accepted_with_the_sum_of_their_probabilities() -> None:
    for p, q in PAIRS[:20]:
        expected = 1 + float(p[q.topk(2).indices].sum())
        assert one_round(p, q, "top-k").tokens_per_round == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scheme", ["iid", "without replacement"])
def test_a_second_sample_is_accepted_by_the_overlap_with_the_residual(scheme: str) -> None:
    """Σ min(p, q), then for each rejected first sample the overlap of the residual with its own q."""
    for p, q in PAIRS[:10]:
        expected = 1 + float(torch.minimum(p, q).sum())
        left = sd.residual(p, q)
        for token in range(4):
            rejected = float(q[token] * (1 - sd.acceptance_probability(p, q)[token]))
            second = without(q, torch.tensor(token)) if scheme == "without replacement" else q
            expected += rejected * float(torch.minimum(left, second).sum())
        assert one_round(p, q, scheme).tokens_per_round == pytest.approx(expected, abs=1e-12)


# The whole loop


@pytest.fixture(scope="module")
def shipped() -> Pair:
    return sd.load_pair(device="cpu")


@by_scheme
def test_greedy_text_is_the_targets_own(scheme: str, shipped: Pair) -> None:
    prompts = list(sd.held_out_prompts().values())[:3]
    drafter = TreeDrafter(draft_of(shipped), (2, 2, 1), scheme)
    alone = sd.generate_autoregressive(shipped, prompts, max_new_tokens=24, sampling=GREEDY)
    trees = sd.generate_speculative(shipped, prompts, k=3, max_new_tokens=24, sampling=GREEDY, drafter=drafter)
    assert [g.tokens for g in trees] == [g.tokens for g in alone]
    if scheme == "top-k":
        chains = sd.generate_speculative(shipped, prompts, k=3, max_new_tokens=24, sampling=GREEDY)
        assert sum(len(g.rounds) for g in trees) <= sum(len(g.rounds) for g in chains)


@by_scheme
def test_a_round_of_a_tree_adds_up(scheme: str, pair: Pair) -> None:
    monitor = SpeculativeDecodingMonitor()
    drafter = TreeDrafter(draft_of(pair), (3, 2, 1), scheme)
    prompts = [[5], [40, 3, 12], [7, 9] * 6]
    generations = sd.generate_speculative(
        pair, prompts, k=3, max_new_tokens=30, seed=1, drafter=drafter, monitor=monitor
    )
    rounds = [r for g in generations for r in g.rounds]
    assert {r.accepted for r in rounds} == {0, 1, 2, 3}
    for r in rounds:
        assert r.parents is not None or not r.drafted
        paths = node_paths(torch.tensor([r.parents or ()]))[0]
        ways = [tuple(r.drafted[i] for i in path) for path in paths]
        accepted = r.emitted[: r.accepted]
        assert not accepted or any(way[: len(accepted)] == accepted for way in ways)
        assert r.accepted <= r.depth <= 3
        assert len(r.drafted) == {0: 0, 1: 3, 2: 9, 3: 15}[r.depth]
    assert all(0 < g.acceptance_rate <= 1 for g in generations)
    found = monitor.get_statistics()
    assert found.accepted == sum(r.accepted for r in rounds)
    assert found.examined == sum(r.examined for r in rounds)
    assert found.drafted == sum(r.depth for r in rounds)


def test_a_round_of_a_chain_is_as_deep_as_its_tokens_are_many() -> None:
    chain = Round((4, 5, 6), 3, (4, 5, 6, 7), 0.0, 0.0)
    assert (chain.depth, chain.examined) == (3, 3)
    tree = Round((4, 5, 6), 1, (5, 7), 0.0, 0.0, (-1, -1, 0))
    assert (tree.depth, tree.examined) == (2, 2)
    assert Round((), 0, (1,), 0.0, 0.0).examined == 0


@by_scheme
def test_the_context_ends_a_text_that_is_drafted_by_trees(
    scheme: str, pair: Pair, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    target = tiny_model("llama", max_position_embeddings=24)
    small = Pair(target, target, pair.tokenizer)
    drafter = TreeDrafter(TransformersModel(target), (3, 2, 1), scheme)
    generations = sd.generate_speculative(
        small, [[5, 9, 3], [8] * 20], k=3, max_new_tokens=50, sampling=GREEDY, drafter=drafter
    )
    alone = sd.generate_autoregressive(small, [[5, 9, 3], [8] * 20], max_new_tokens=50, sampling=GREEDY)
    assert [g.finish for g in generations] == ["context", "context"]
    assert [g.tokens for g in generations] == [g.tokens for g in alone]


def test_the_same_seed_gives_the_same_tokens(pair: Pair) -> None:
    def tokens(seed: int) -> list[tuple[int, ...]]:
        drafter = TreeDrafter(draft_of(pair), (2, 2), "iid")
        generations = sd.generate_speculative(pair, [[5], [40, 3]], k=2, max_new_tokens=20, drafter=drafter, seed=seed)
        return [g.tokens for g in generations]

    assert tokens(3) == tokens(3) != tokens(4)


def test_a_draft_with_more_padding_than_the_target_proposes_none_of_it(
    pair: Pair, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    drafter = TreeDrafter(TransformersModel(tiny_model("llama", vocab_size=80)), (40,))
    generation = sd.generate_speculative(pair, [5, 9], k=1, max_new_tokens=12, drafter=drafter, seed=0)
    assert len(generation.tokens) == 12
    assert all(token < 64 for r in generation.rounds for token in r.drafted)


# Trees that cannot be used


class Proposes:
    """A drafter that proposes the same draft to one row, whatever it is asked for."""

    def __init__(self, tokens: list[int], parents: Any, decides: bool = True):
        rule = partial(verify_tree, parents=parents) if decides else None
        self.draft = sd.Draft(torch.tensor([tokens]), parents=parents, verify=rule)

    def start(self, batch: int, capacity: int) -> None: ...

    def keep(self, rows: list[int]) -> None: ...

    def propose(self, *arguments: Any) -> sd.Draft:
        return self.draft


@pytest.mark.parametrize(
    ("drafter", "message"),
    [
        (Proposes([1, 2], torch.tensor([[-1]])), r"its parents are \[1, 1\] int64; takes \[1, 2\] int64"),
        (Proposes([1, 2], torch.tensor([[-1.0, 0.0]])), r"its parents are \[1, 2\] float32"),
        (Proposes([1, 2], torch.tensor([[1, -1]])), "its parents name a later token"),
        (Proposes([1, 2], torch.tensor([[-1, -2]])), "its parents name a later token"),
        (Proposes([1, 2, 3], torch.tensor([[-1, 0, -1]])), "go back a level"),
        (Proposes([1, 2, 3], torch.tensor([[-1, 0, 1]])), "is 3 levels deep; takes at most 2"),
        (Proposes([1, 2], torch.tensor([[-1, -1]]), decides=False), "a tree without verify"),
    ],
)
def test_a_tree_that_is_none_is_refused_in_one_line(drafter: Proposes, message: str, pair: Pair) -> None:
    with pytest.raises(sd.SpecdecError, match=f"drafter: .*{message}") as caught:
        sd.generate_speculative(pair, [5, 9], k=2, max_new_tokens=12, drafter=drafter)
    assert len(str(caught.value).splitlines()) == 1


def test_a_target_that_scores_no_trees_is_named() -> None:
    class ChainsOnly:
        def __init__(self) -> None:
            table = random_table(3, 1)
            self.vocab_size, self.context, self.device = table.vocab_size, table.context, table.device
            self.start, self.prefill, self.extend = table.start, table.prefill, table.extend
            self.rewind, self.keep = table.rewind, table.keep

    rows = [sd.Row((0,), 6)]
    rounds = sd.speculate(
        ChainsOnly(), TreeDrafter(random_table(3, 2), (2,)), rows, sd.FixedK(1), Sampling(), SeededRandomness(0)
    )
    with pytest.raises(sd.SpecdecError, match=r"target=.*: takes a model that can score trees"):
        next(rounds)


def test_a_table_keeps_a_path_only_after_a_tree() -> None:
    table = random_table(3, 1)
    table.start(1, 9)
    table.extend(torch.tensor([[0]]))
    with pytest.raises(sd.SpecdecError, match="the last step was no tree"):
        table.keep_path([[0]])
    logits = table.extend_tree(torch.tensor([[1, 2, 1]]), torch.tensor([[-1, -1, 1]]))
    torch.testing.assert_close(logits[0, 2].exp(), table.probabilities((0, 2, 1)))
    table.keep_path([[1, 2]])
    torch.testing.assert_close(table.extend(torch.tensor([[0]]))[0, 0].exp(), table.probabilities((0, 2, 1, 0)))


def test_the_number_of_nodes_is_that_of_all_levels() -> None:
    drafter = TreeDrafter(random_table(3, 1), (3, 2, 1))
    drafter.start(1, 9)
    draft = drafter.propose([[0]], 3, Sampling(), SeededRandomness(0))
    assert draft.tokens.shape[1] == sum(prod((3, 2, 1)[:n]) for n in (1, 2, 3)) == 15
    assert len(set(itertools.chain(*draft.tokens.tolist()))) <= 3


def test_a_tree_takes_no_other_verification_rule(pair: sd.Pair) -> None:
    """It has a rule of its own, and an option that is accepted and ignored would mislead."""
    assert pair.draft is not None
    drafter = sd.TreeDrafter(sd.TransformersModel(pair.draft))
    with pytest.raises(sd.SpecdecError, match=r"verification='block'.* takes 'token' with a tree drafter"):
        sd.generate_speculative(pair, "def f(", drafter=drafter, verification="block")
