"""A model that scores no text twice, for experiments that draw millions of samples after the same few prompts.

It stands between the loop and a transformers model as a table does: a row is the list of tokens that its cache would
hold, and scores are those after this list, whatever the loop takes its text to be. So a loop that does not rewind, or
feeds the wrong token, sees what it would see in a cache. A mistake inside the cache itself it cannot show.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specdec_ref.cache import cache_argument
from specdec_ref.errors import SpecdecError
from specdec_ref.models import attention_windows, check_rewindable, context_length, score_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXTS = 256
"""Texts scored in one pass, or a few more."""

BYTES = 2**30
"""Of scores, at most. When they are more, the next batch starts with none."""


class Remembered:
    """A `LanguageModel` that remembers the scores of every text that it was asked for, from batch to batch.

    vocab_size: score only the first so many ids. A text is a node of a tree, named by its place in the lists; node 0 is
    the empty text. scored: texts whose scores it holds. Raises SpecdecError for models with sliding windows.
    """

    def __init__(self, model: "PreTrainedModel", vocab_size: int | None = None):
        check_rewindable(model)
        config = model.config.get_text_config(decoder=True)
        if any(window is not None for window in attention_windows(config).values()):
            raise SpecdecError(f"model: {config.model_type} has sliding windows; takes one that sees everything")
        self._model: Any = model.eval()
        rows = score_rows(model)
        self.vocab_size = min(rows, vocab_size or rows)
        self.context, self.device = context_length(config), model.device
        self._forget()

    def _forget(self) -> None:
        self._longer: dict[tuple[int, int], int] = {}  # node and token → the node with that token more
        self._before, self._token, self._depth = [0], [0], [0]  # of each node: all but its last token, that, its length
        self._place = [-1]  # of each node: which row its scores are, −1 where it has none yet
        self._prompts: set[int] = set()
        self._caches: dict[int, Any] = {}  # by node
        self._scores = torch.empty(0, self.vocab_size, device=self.device)
        self.scored = 0

    def start(self, batch: int, capacity: int) -> None:
        if self.scored * self._scores[:1].nbytes > BYTES:
            self._forget()
        self._rows: list[list[int]] = [[] for _ in range(batch)]

    def prefill(self, tokens: list[list[int]]) -> None:
        for row, new in zip(self._rows, tokens, strict=True):
            self._append(row, new)
        self._prompts |= {row[-1] for row in self._rows if row}

    def extend(self, tokens: Tensor) -> Tensor:
        for row, new in zip(self._rows, tokens.tolist(), strict=True):
            self._append(row, new)
        n, place = tokens.shape[1], self._place
        asked = [row[-n:] for row in self._rows]
        missing = {nodes[-1] for nodes in asked if any(place[node] < 0 for node in nodes)}
        if missing:
            self._score(sorted(missing))
        where = torch.tensor([[place[node] for node in nodes] for nodes in asked], device=self.device)
        return self._scores[where]

    def rewind(self, lengths: list[int]) -> None:
        for row, n in zip(self._rows, lengths, strict=True):
            if n > len(row):
                raise AssertionError(f"cannot rewind forward: {len(row)} to {n}")
            del row[n:]

    def keep(self, rows: list[int]) -> None:
        self._rows = [list(self._rows[row]) for row in rows]

    def _append(self, row: list[int], tokens: list[int]) -> None:
        node = row[-1] if row else 0
        for token in tokens:
            after = self._longer.setdefault((node, token), len(self._place))
            if after == len(self._place):
                self._before.append(node)
                self._token.append(token)
                self._depth.append(self._depth[node] + 1)
                self._place.append(-1)
            node = after
            row.append(node)

    def _tokens(self, node: int) -> list[int]:
        tokens = []
        while node:
            tokens.append(self._token[node])
            node = self._before[node]
        return tokens[::-1]

    @torch.inference_mode()
    def _score(self, nodes: list[int]) -> None:
        """Score these texts, and on the way what lies between them and the prompt that they continue."""
        groups: dict[int, list[list[int]]] = {}
        for node in nodes:
            path = [node]
            while path[-1] and (len(path) == 1 or path[-1] not in self._prompts):
                path.append(self._before[path[-1]])
            groups.setdefault(path[-1], []).append(path[-2::-1])
        for prompt, paths in groups.items():
            some: dict[int, int] = {}  # node → its place in the pass; what paths share is fed once
            for path in sorted(paths, key=lambda path: [self._token[node] for node in path]):
                for node in path:
                    some.setdefault(node, len(some))
                if len(some) >= TEXTS:
                    self._pass(prompt, some)
                    some = {}
            if some:
                self._pass(prompt, some)

    def _pass(self, prompt: int, nodes: dict[int, int]) -> None:
        """One forward pass over a tree, as one sequence: each token sees the prompt, those before it, and itself."""
        if prompt not in self._caches:
            self._caches[prompt] = self._cache_after(self._tokens(prompt))
        cache, before = copy.deepcopy(self._caches[prompt]), self._depth[prompt]
        sees = torch.zeros(len(nodes), before + len(nodes), dtype=torch.bool)
        sees[:, :before] = True
        for node, i in nodes.items():
            if (parent := nodes.get(self._before[node])) is not None:
                sees[i] = sees[parent]
            sees[i, before + i] = True
        mask = torch.zeros(sees.shape, dtype=self._model.dtype)
        mask = mask.masked_fill_(~sees, torch.finfo(mask.dtype).min)[None, None].to(self.device)
        ids, positions = (
            torch.tensor([[of[node] for node in nodes]], device=self.device) for of in (self._token, self._depth)
        )
        caching = {cache_argument(self._model): cache}
        logits = self._model(
            input_ids=ids, position_ids=positions - 1, attention_mask=mask, use_cache=True, **caching
        ).logits[0, :, : self.vocab_size]
        new = [node for node in nodes if self._place[node] < 0]
        total = self.scored + len(new)
        if total > len(self._scores):
            more = logits.new_empty(max(total, len(self._scores) * 5 // 4), self.vocab_size)
            more[: self.scored] = self._scores[: self.scored]
            self._scores = more
        self._scores[self.scored : total] = logits[torch.tensor([nodes[node] for node in new], device=self.device)]
        for place, node in enumerate(new, self.scored):
            self._place[node] = place
        self.scored = total

    def _cache_after(self, tokens: list[int]) -> Any:
        """transformers' own cache with these tokens in it."""
        from transformers import DynamicCache

        cache = DynamicCache()
        if tokens:
            ids = torch.tensor([tokens], device=self.device)
            self._model(input_ids=ids, use_cache=True, **{cache_argument(self._model): cache})
        return cache
