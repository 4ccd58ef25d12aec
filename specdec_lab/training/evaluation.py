"""Evaluation on held-out text: loss per character, and the acceptance rate of drafts.

Documents are read in overlapping windows. Every token is scored once, with at least half a window of text before it,
except at the beginning of a document.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specdec_lab.training.corpus import Document
from specdec_lab.training.tokenizer import END_OF_TEXT
from specdec_ref.acceptance import acceptance_rate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Agreement:
    """A draft compared with its target, over all scored tokens, at temperature 1.

    Attributes:
        acceptance: mean Σ min(p, q).
        agreement: share of positions at which both have the same most likely token.
        nats_per_character: the draft's own loss.
    """

    acceptance: float
    agreement: float
    nats_per_character: float


def windows(documents: Iterable[Document], tokenizer: Tokenizer, context: int) -> Iterator[tuple[Tensor, int]]:
    """Ids [1, T + 1] of each window, T ≤ `context`, and the first of its T predictions that counts."""
    start = int(tokenizer.token_to_id(END_OF_TEXT) or 0)
    for document in documents:
        ids = torch.tensor([start, *tokenizer.encode(document.text).ids])
        scored = 0  # number of scored predictions; prediction i is for token i + 1
        while scored < len(ids) - 1:
            begin = max(0, scored - context // 2)
            end = min(begin + context, len(ids) - 1)
            yield ids[None, begin : end + 1], scored - begin
            scored = end


@torch.inference_mode()
def held_out_loss(model: "PreTrainedModel", documents: tuple[Document, ...], tokenizer: Tokenizer) -> float:
    """Nats per character of `documents` under `model`, in windows of its whole context."""
    was_training = model.training
    model.eval()
    nats = sum(_nats(_log_probabilities(model, ids), ids, first) for ids, first in _all(model, documents, tokenizer))
    model.train(was_training)
    return nats / sum(len(d.text) for d in documents)


@torch.inference_mode()
def compare(
    target: "PreTrainedModel",
    drafts: "dict[str, PreTrainedModel]",
    documents: tuple[Document, ...],
    tokenizer: Tokenizer,
) -> dict[str, Agreement]:
    """Every draft against the target over `documents`, by name."""
    were_training = {name: draft.training for name, draft in drafts.items()}
    for draft in drafts.values():
        draft.eval()
    accepted, agreed, nats = ({name: 0.0 for name in drafts} for _ in range(3))
    scored = 0
    for ids, first in _all(target, documents, tokenizer):
        log_p = _log_probabilities(target, ids)[0, first:]
        scored += len(log_p)
        for name, draft in drafts.items():
            log_q = _log_probabilities(draft, ids)
            nats[name] += _nats(log_q, ids, first)
            accepted[name] += float(acceptance_rate(log_p.exp(), log_q[0, first:].exp()).sum())
            agreed[name] += int((log_p.argmax(-1) == log_q[0, first:].argmax(-1)).sum())
    for name, draft in drafts.items():
        draft.train(were_training[name])
    characters = sum(len(d.text) for d in documents)
    return {n: Agreement(accepted[n] / scored, agreed[n] / scored, nats[n] / characters) for n in drafts}


def excerpt(documents: tuple[Document, ...], characters: int) -> tuple[Document, ...]:
    """The beginnings of all documents, `characters` in all, for a quick evaluation."""
    each = math.ceil(characters / max(1, len(documents)))
    return tuple(Document(d.path, d.module, d.text[:each], d.is_test) for d in documents)


def _all(model: "PreTrainedModel", documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Tensor, int]]:
    context: int = model.config.max_position_embeddings
    for ids, first in windows(documents, tokenizer, context):
        yield ids.to(next(model.parameters()).device), first


def _log_probabilities(model: "PreTrainedModel", ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids[:, :-1], use_cache=False).logits
    return logits.float().log_softmax(-1)


def _nats(log_probabilities: Tensor, ids: Tensor, first: int) -> float:
    taken = log_probabilities[0].gather(-1, ids[0, 1:, None]).squeeze(-1)
    return -float(taken[first:].double().sum())
