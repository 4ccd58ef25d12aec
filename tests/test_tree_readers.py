"""The promises of `beyond.tree_readers`: after any rounds, a node's scores are those of a draft that reads its path
afresh, whether a draft model or a head drafts. A level is read once, in steps of a few fixed shapes. With a head, too,
the text keeps the target's distribution.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_heads import KINDS, PROMPTS, Changing, afresh, drafter_of, largest_error, random_head, small_target
from torch import Tensor
from transformers import PreTrainedModel

import specdec_ref as sd
from specdec_lab.equivalence.tiny import fresh_logits
from specdec_ref import GREEDY, BestFirstDrafter, Pair, Row, Sampling, SeededRandomness, TransformersModel, TreeDrafter
from specdec_ref.ancestry import node_paths
from specdec_ref.beyond.tree_readers import ModelReader, tree_reader
from specdec_ref.beyond.trees import SCHEMES
from specdec_ref.decoding import speculate

by_kind = pytest.mark.parametrize("kind", KINDS)


# A draft model


def test_after_each_level_the_scores_are_those_of_every_path_read_afresh(pair: Pair) -> None:
    """In two rows of different lengths, each with a tree of its own, after a text that grew by several tokens."""
    assert pair.draft is not None
    reader = tree_reader(TransformersModel(pair.draft), depth=3)
    reader.start(2, 40)
    levels = torch.tensor([[5, 9, 2, 2, 7, 1], [8, 8, 3, 60, 4, 4]])
    parents = torch.tensor([[-1, -1, 0, 1, 3, 3], [-1, -1, 1, 1, 2, 3]])
    for texts in ([[5, 9, 33, 2], [7]], [[5, 9, 33, 2, 60, 1, 8], [7, 7]]):
        scores = [reader.after_text(texts)]
        scores += [reader.after_level(levels[:, n - 2 : n], parents[:, :n]) for n in (2, 4, 6)]
        reader.forget_tree()
        found = torch.cat(scores, 1)
        for row, text in enumerate(texts):
            paths = [[], *node_paths(parents)[row]]
            read = [[*text, *(int(levels[row, i]) for i in path)] for path in paths]
            expected = torch.stack([scored[-1] for scored in fresh_logits(pair.draft, read)])
            torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)


class Counted:
    """A `TreeModel` that notes how many tokens each of its steps reads."""

    def __init__(self, model: PreTrainedModel):
        self._model = TransformersModel(model)
        self.steps: list[int] = []
        self.vocab_size, self.context, self.device = self._model.vocab_size, self._model.context, self._model.device
        self.start, self.prefill, self.rewind = self._model.start, self._model.prefill, self._model.rewind
        self.keep, self.keep_path = self._model.keep, self._model.keep_path

    def extend(self, tokens: Tensor) -> Tensor:
        self.steps.append(tokens.shape[1])
        return self._model.extend(tokens)

    def extend_tree(self, tokens: Tensor, parents: Tensor) -> Tensor:
        self.steps.append(tokens.shape[1])
        return self._model.extend_tree(tokens, parents)


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (lambda model: TreeDrafter(model, (3, 2, 1)), [4, 3, 6]),
        (lambda model: TreeDrafter(model, (3, 2, 1), "iid"), [4, 3, 6]),
        (lambda model: BestFirstDrafter(model, 10, depth=3, width=4), [4, 4, 4]),
    ],
    ids=["top-k", "iid", "best first"],
)
def test_a_round_reads_the_newest_tokens_and_then_each_level_but_the_last_once(
    make: Callable[[Any], Any], steps: list[int], pair: Pair
) -> None:
    """The same shapes in every round, whatever was accepted, so that each can be recorded."""
    assert pair.draft is not None
    model = Counted(pair.draft)
    row = Row((5, 9, 33, 2, 60), 30)
    target = TransformersModel(pair.target)
    for _ in speculate(target, make(model), [row], Changing(3), Sampling(2.0), SeededRandomness(0)):
        pass
    whole = [r for r in row.rounds if r.depth == 3]
    assert len({r.accepted for r in whole}) > 1
    assert model.steps[: len(steps) * len(whole)] == steps * len(whole)


def test_tokens_that_no_tree_followed_are_read_before_the_next_tree(pair: Pair) -> None:
    assert pair.draft is not None
    reader = ModelReader(TransformersModel(pair.draft), depth=1)
    text = [5, 9, 33]
    reader.start(1, 60)
    reader.after_text([text])
    for n in (1, 12):
        text += range(n)
        found = reader.after_text([text])
        torch.testing.assert_close(found[0, -1], fresh_logits(pair.draft, [text])[0][-1], atol=1e-4, rtol=1e-4)


# Heads


class TreesAfresh:
    """A tree drafter of samples, each q of which is compared with that of a head that reads everything afresh."""

    def __init__(self, drafter: TreeDrafter):
        self.drafter, self.num_compared = drafter, 0
        self.start, self.keep = drafter.start, drafter.keep

    def propose(self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: sd.Randomness) -> sd.Draft:
        draft = self.drafter.propose(sequences, k, sampling, randomness)
        head: Any = self.drafter.model
        for row, text in enumerate(sequences if k else []):
            assert draft.probabilities is not None
            assert draft.parents is not None
            for node, path in enumerate(node_paths(draft.parents)[row]):
                before = draft.tokens[row, path[:-1]].tolist()
                expected = afresh(head.head, head.target.model, text, before, sampling)
                torch.testing.assert_close(draft.probabilities[row, node], expected, rtol=0, atol=1e-4)
                self.num_compared += 1
        return draft


@by_kind
def test_every_node_has_the_q_of_a_head_that_reads_its_path_afresh(kind: str, pair: Pair) -> None:
    """Ragged prompts, one of a single token; rows that finish at different times; a round without a draft."""
    drafter = drafter_of(random_head(pair.target, kind), pair.target)
    checked = TreesAfresh(TreeDrafter(drafter, (2, 2, 1), "iid"))
    rows = [Row(tuple(prompt), n) for prompt, n in zip(PROMPTS, [16, 7, 11], strict=True)]
    for _ in speculate(drafter.target, checked, list(rows), Changing(3, 3, 0), Sampling(2.0), SeededRandomness(3)):
        pass
    assert [len(row.new) for row in rows] == [16, 7, 11]
    assert checked.num_compared > 100
    assert {r.accepted for row in rows for r in row.rounds} >= {0, 1, 2}


CASES = [([[0, 2, 1]], [3], 2, (2, 1), "top-k"), ([[2, 0, 1, 1], [1]], [2, 2], 1, (2,), "top-k")]
CASES += [([[0, 2, 1]], [2], 1, (2,), scheme) for scheme in SCHEMES[:2]]


@by_kind
@pytest.mark.parametrize(("prompts", "new", "k", "branching", "scheme"), CASES)
def test_the_output_is_exact(
    kind: str,
    prompts: list[list[int]],
    new: list[int],
    k: int,
    branching: tuple[int, ...],
    scheme: str,
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    """Every outcome is played. Norms compute in float32, so probabilities agree to about 1e-7."""
    target = small_target(tiny_model, 3)
    head = drafter_of(random_head(target, kind), target)
    assert largest_error(TreeDrafter(head, branching, scheme), head.target, prompts, new, k) < 1e-5


@by_kind
def test_the_output_of_best_first_trees_is_exact(kind: str, tiny_model: Callable[..., PreTrainedModel]) -> None:
    target = small_target(tiny_model, 3)
    head = drafter_of(random_head(target, kind), target)
    assert largest_error(BestFirstDrafter(head, 4, depth=2, width=2), head.target, [[0, 2, 1]], [3], 2) < 1e-5


@by_kind
@pytest.mark.parametrize("best_first", [False, True], ids=["static", "best first"])
def test_greedy_text_is_the_targets_own(kind: str, best_first: bool, pair: Pair) -> None:
    head = drafter_of(random_head(pair.target, kind), pair.target)
    drafter = BestFirstDrafter(head, 8, depth=3, width=3) if best_first else TreeDrafter(head, (3, 2, 1))
    settings: dict[str, Any] = {"max_new_tokens": 24, "sampling": GREEDY}
    plain = sd.generate_speculative(pair, PROMPTS, k=0, **settings)
    trees = sd.generate_speculative(pair, PROMPTS, k=3, drafter=drafter, **settings)
    assert [g.tokens for g in trees] == [g.tokens for g in plain]
    assert any(r.accepted for g in trees for r in g.rounds)


def test_trees_that_a_head_cannot_draft_are_one_line(pair: Pair, tiny_model: Callable[..., PreTrainedModel]) -> None:
    head = drafter_of(random_head(pair.target), pair.target)
    parallel = drafter_of(random_head(pair.target, "parallel", num_tokens=2), pair.target)
    other = Pair(tiny_model("llama", seed=9), None, pair.tokenizer)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: TreeDrafter(parallel, (2, 2, 1)), "model: this parallel head drafts 2 tokens in one pass"),
        (lambda: BestFirstDrafter(parallel, depth=3), "trees of at most 2 levels, not 3"),
        (lambda: TreeDrafter(head, (64, 2)), "a tree of 192 nodes; takes at most the draft's context, 128"),
        (lambda: TreeDrafter(head, (65,)), "65 siblings on a level; takes at most the draft's vocabulary, 64"),
        (lambda: BestFirstDrafter(head, 129), "takes at most the draft's context of each, 128"),
        (lambda: sd.generate_speculative(other, "a", drafter=TreeDrafter(head)), "this head reads another target"),
    ]
    for use, words in cases:
        with pytest.raises(sd.SpecdecError) as error:
            use()
        assert words in str(error.value)
        assert "\n" not in str(error.value)
