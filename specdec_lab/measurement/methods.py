"""The drafting methods by name, as `--drafter` takes them, and new drafters for measurements.

A method is a pair with another `drafter`. So all functions that measure a pair can measure all methods.
"""

import copy
from dataclasses import replace
from math import prod

from torch import nn

from specdec_ref.api import MODEL_DRAFTERS, TREE_DRAFTERS
from specdec_ref.beyond.heads import HeadDrafter, ParallelHeadDrafter, load_head
from specdec_ref.beyond.suffix import SuffixDrafter
from specdec_ref.beyond.trees import BestFirstDrafter, TreeDrafter
from specdec_ref.drafting import Drafter, ModelDrafter, PromptLookupDrafter
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import HEADS, Pair, usable_source
from specdec_ref.models import TransformersModel, score_rows

METHODS = {
    "draft": "a draft model, one token at a time",
    "head": "a head on the target's features, one token at a time",
    "parallel-head": "a head that drafts all tokens in one pass",
    "tree": "the most probable continuations by a draft model, as a tree",
    "head-tree": "the most probable continuations by a head, as a tree",
    "lookup": "a copy of what followed the same words earlier in the text",
    "suffix": "the most frequent continuation in the text so far",
}
"""What each drafting method proposes."""

TREE = {"nodes": 10, "depth": 4, "width": 4}
"""The tree of 'tree' and 'head-tree', as `BestFirstDrafter` takes it."""


def with_method(pair: Pair, name: str) -> Pair:
    """The pair with another drafting method, one of `METHODS`.

    The heads are the shipped ones. A pair with a head uses this head for 'head-tree'.

    Raises:
        SpecdecError: no such method, or the pair lacks the model for it.
    """
    if name not in METHODS:
        raise SpecdecError(f"drafter={name!r:.80}: takes one of {', '.join(METHODS)}")
    if name in HEADS:
        return replace(pair, draft=None, drafter=load_head(pair.target, usable_source("draft", name)))
    if name == "head-tree":
        head = head_of(pair.drafter) or head_of(with_method(pair, "head").drafter)
        assert head is not None
        return replace(pair, draft=None, drafter=BestFirstDrafter(head, **TREE))
    if name == "lookup":
        return replace(pair, draft=None, drafter=PromptLookupDrafter())
    if name == "suffix":
        return replace(pair, draft=None, drafter=SuffixDrafter())
    if pair.draft is None:
        raise SpecdecError(f"drafter={name!r}: needs a draft model; this pair has none")
    if name == "draft":
        return replace(pair, drafter=None)
    return replace(pair, drafter=BestFirstDrafter(TransformersModel(pair.draft, score_rows(pair.target)), **TREE))


def head_of(drafter: Drafter | None) -> HeadDrafter | ParallelHeadDrafter | None:
    """The head of a drafter, used alone or for a tree; None without a head."""
    source = drafter.model if isinstance(drafter, TREE_DRAFTERS) else drafter
    return source if isinstance(source, (HeadDrafter, ParallelHeadDrafter)) else None


def can_draft(pair: Pair) -> bool:
    """Whether the pair has a draft model or another drafter."""
    return pair.draft is not None or pair.drafter is not None


def is_tree(pair: Pair) -> bool:
    """Whether the pair drafts trees, which have an accept/reject rule of their own."""
    return isinstance(pair.drafter, TREE_DRAFTERS)


def drafts_one_at_a_time(pair: Pair) -> bool:
    """Whether each drafted token costs one more step of the draft, so that k tokens cost k·c."""
    return pair.drafter is None or isinstance(pair.drafter, (ModelDrafter, HeadDrafter))


def usual_k(pair: Pair, max_k: int) -> int:
    """The k for methods where the formula cannot choose it: all levels of a tree, all tokens of a parallel head."""
    drafter = pair.drafter
    if isinstance(drafter, BestFirstDrafter):
        return drafter.depth
    if isinstance(drafter, TreeDrafter):
        return len(drafter.branching)
    if isinstance(drafter, ParallelHeadDrafter):
        return min(max_k, drafter.head.config.num_tokens)
    return max_k


def most_scored(pair: Pair, k: int) -> int:
    """The largest number of drafted tokens that the target scores in a round: k, or all nodes of a tree."""
    drafter = pair.drafter
    if isinstance(drafter, BestFirstDrafter):
        return drafter.nodes
    if isinstance(drafter, TreeDrafter):
        return sum(prod(drafter.branching[: depth + 1]) for depth in range(len(drafter.branching)))
    return k


def draft_module(pair: Pair) -> nn.Module | None:
    """The network that drafts: the draft model or the head; None for drafters that only need the text."""
    head = head_of(pair.drafter)
    if head is not None:
        return head.head
    if isinstance(pair.drafter, MODEL_DRAFTERS) and isinstance(pair.drafter.model, TransformersModel):
        module: nn.Module = pair.drafter.model.model
        return module
    return pair.draft if pair.drafter is None else None


def fresh(pair: Pair) -> Pair:
    """The pair with a drafter that remembers no earlier generation, so that equal runs give equal results."""
    return replace(pair, drafter=forgetful(pair.drafter))


def forgetful(drafter: Drafter | None) -> Drafter | None:
    """The drafter itself, or a copy if it would remember the generations."""
    return copy.deepcopy(drafter) if isinstance(drafter, SuffixDrafter) else drafter


def own_models(pair: Pair) -> tuple[TransformersModel, Drafter]:
    """The target and the drafter of a pair, with caches of their own.

    Raises SpecdecError for a pair without a drafter.
    """
    drafter = fresh(pair).drafter
    head = head_of(drafter)
    if head is not None:
        target = TransformersModel(pair.target, feature_layers=head.target.feature_layers)
        head = head.with_target(target)
        return target, drafter.with_model(head) if isinstance(drafter, TREE_DRAFTERS) else head
    target = TransformersModel(pair.target)
    if drafter is None:
        if pair.draft is None:
            raise SpecdecError("pair: has no draft model and no other drafter, so there is no draft step to time")
        return target, ModelDrafter(TransformersModel(pair.draft, target.vocab_size))
    if isinstance(drafter, MODEL_DRAFTERS) and isinstance(drafter.model, TransformersModel):
        return target, drafter.with_model(TransformersModel(drafter.model.model, target.vocab_size))
    return target, drafter
