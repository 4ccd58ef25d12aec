"""A tokenizer that looks compatible and is not, for lessons 05 and 06."""

import json
from typing import Any

from specdec_ref.errors import SpecdecError, is_whole


def swap_two_ids(tokenizer: Any, first: int = 300) -> Any:
    """A copy of a tokenizer in which the tokens `first` and `first + 1` have exchanged their ids.

    Args:
        tokenizer: a fast tokenizer of transformers with a BPE vocabulary.
        first: the smaller of the two ids.

    Raises:
        SpecdecError: where the vocabulary has no such ids.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    data = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = data["model"]["vocab"]
    if not is_whole(first) or not 0 <= first < len(vocab) - 1:
        raise SpecdecError(f"first={first!r:.40}: takes an id from 0 to {len(vocab) - 2}")
    a, b = sorted(vocab, key=vocab.get)[first : first + 2]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)))
