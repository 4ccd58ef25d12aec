"""The parts of a pair that are known before its weights are loaded: configurations, tokenizers, and a loader."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from specdec_lab.measurement.methods import can_draft
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair
from specdec_ref.models import context_length

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Models:
    """A pair without its weights.

    Attributes:
        target, draft: configurations; None without a draft model.
        target_tokenizer, draft_tokenizer: None if the draft's is unknown; then vocabularies are not compared.
        device, dtype: of the models.
        load: returns the pair with its weights.
        loaded: whether they are in memory already.
        drafts: whether the pair has a draft model or another drafter.
    """

    target: "PretrainedConfig"
    draft: "PretrainedConfig | None"
    target_tokenizer: "PreTrainedTokenizerBase"
    draft_tokenizer: "PreTrainedTokenizerBase | None"
    device: torch.device
    dtype: torch.dtype
    load: Callable[[], Pair]
    loaded: bool = False
    drafts: bool = True

    @classmethod
    def of(cls, pair: Pair, draft_tokenizer: "PreTrainedTokenizerBase | None" = None) -> "Models":
        """The parts of a loaded pair. The draft's tokenizer is searched in the draft's own folder."""
        if not isinstance(pair, Pair):
            raise SpecdecError(f"pair={pair!r:.80}: takes a Pair, which load_pair() gives")
        if draft_tokenizer is None and pair.draft is not None:
            draft_tokenizer = _tokenizer_of(pair.draft)
        draft = pair.draft.config if pair.draft is not None else None
        where, kind = pair.device, pair.target.dtype
        tokenizers = pair.tokenizer, draft_tokenizer
        return cls(pair.target.config, draft, *tokenizers, where, kind, lambda: pair, True, can_draft(pair))

    @property
    def context(self) -> int:
        """Tokens that both models hold."""
        configs = [c for c in (self.target, self.draft) if c is not None]
        return min(context_length(c.get_text_config(decoder=True)) for c in configs)


def _tokenizer_of(model: "PreTrainedModel") -> "PreTrainedTokenizerBase | None":
    from transformers import AutoTokenizer

    if not model.name_or_path:
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            model.name_or_path, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError):
        return None
    return tokenizer
