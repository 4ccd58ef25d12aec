"""Suffix decoding: a drafter without a model, which counts the tokens that followed a suffix.

`PromptLookupDrafter` copies the tokens after the latest earlier occurrence of the text's last
tokens. `SuffixDrafter` counts the tokens after all earlier occurrences, including those in earlier
texts. So it can choose the most frequent continuation, estimate its probability, and stop if the
estimate is low.

Oliaro et al. 2024 (arXiv 2411.04975); 'suffix' in vLLM. The paper has one tree per request and one
for earlier outputs, and proposes a tree of tokens. Here one table holds all texts, and a proposal
is a chain.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from specdec_ref.drafting import Draft, point_masses
from specdec_ref.errors import SpecdecError, is_number, is_whole
from specdec_ref.sampling import Randomness, Sampling


class SuffixCounts:
    """How often each token followed each sequence of 1 … max_length tokens, in a set of texts.

    This is a suffix tree of depth max_length, stored by path. A sequence is the path from the root
    to a node, and its counts are the counts of the node's children.

    Args:
        max_length: tokens of the longest sequence.
    """

    def __init__(self, max_length: int):
        self.max_length = max_length
        self._counts: dict[tuple[int, ...], dict[int, int]] = {}

    def add(self, text: Sequence[int], start: int = 0) -> None:
        """Count the tokens of `text` from index `start` on. Earlier tokens were counted before."""
        for sequence, token in self._occurrences(text, start):
            followers = self._counts.setdefault(sequence, {})
            followers[token] = followers.pop(token, 0) + 1  # moves to the end, as the latest

    def remove(self, text: Sequence[int]) -> None:
        """Remove the counts of a text that was added."""
        for sequence, token in self._occurrences(text, 0):
            followers = self._counts[sequence]
            followers[token] -= 1
            if followers[token] == 0:
                del followers[token]
            if not followers:
                del self._counts[sequence]

    def after(self, text: Sequence[int]) -> dict[int, int]:
        """Counts of the tokens that followed the longest suffix of `text` that occurred before.

        Returns:
            Counts by token, the latest token last. Empty if the last token did not occur before.
        """
        for length in range(min(self.max_length, len(text)), 0, -1):
            followers = self._counts.get(tuple(text[-length:]))
            if followers:
                return followers
        return {}

    def __len__(self) -> int:
        """Number of different sequences."""
        return len(self._counts)

    def _occurrences(
        self, text: Sequence[int], start: int
    ) -> Iterator[tuple[tuple[int, ...], int]]:
        """Each token from `start` on, with every sequence that it follows."""
        for end in range(max(start, 1), len(text)):
            for begin in range(max(0, end - self.max_length), end):
                yield tuple(text[begin:end]), text[end]


class SuffixDrafter:
    """Proposes the most frequent continuation of the text. It needs no model, and its proposals are
    point masses.

    For each token it looks for the longest suffix of the text and the tokens proposed so far that
    occurred before. It proposes the token that followed this suffix most often, and of equally
    frequent tokens the latest. The probability of the proposal is estimated as the product of these
    tokens' relative frequencies. The proposal ends before the estimate falls below
    `min_probability`.

    It searches the texts of all rows (prompt and output) and earlier texts. A drafter remembers
    the texts of all generations that it was used for. When the earlier texts together have more
    than `memory` tokens, the oldest text is forgotten as a whole. The tokens of a row's last round
    are not remembered, since drafters do not receive them.

    The remembered texts change the speed of a generation, never its distribution. A seed gives the
    same tokens again only with the same memory.

    Args:
        max_match: tokens of the longest suffix to look for.
        min_probability: the smallest estimated probability of a proposal; 0 never stops.
        memory: tokens of earlier texts to remember, ≥ 0. A token takes about 2 KiB at the default
            `max_match`.

    Raises:
        SpecdecError: an argument is out of range.
    """

    def __init__(self, max_match: int = 8, min_probability: float = 0.3, memory: int = 10_000):
        if not is_whole(max_match) or max_match < 1:
            raise SpecdecError(f"max_match={max_match!r:.80}: takes a whole number ≥ 1")
        if not is_number(min_probability) or not 0 <= min_probability <= 1:
            raise SpecdecError(
                f"min_probability={min_probability!r:.80}: "
                "takes a probability, 0 ≤ min_probability ≤ 1"
            )
        if not is_whole(memory) or memory < 0:
            raise SpecdecError(f"memory={memory!r:.80}: takes a whole number ≥ 0, in tokens")
        self.max_match = max_match
        self.min_probability = min_probability
        self.memory = memory
        self._counts = SuffixCounts(max_match)
        self._rows: list[list[int]] = []
        self._earlier: deque[list[int]] = deque()

    def start(self, batch: int, capacity: int) -> None:
        self._archive(self._rows)
        self._rows = [[] for _ in range(batch)]

    def keep(self, rows: list[int]) -> None:
        finished = [text for row, text in enumerate(self._rows) if row not in rows]
        self._rows = [self._rows[row] for row in rows]
        self._archive(finished)

    def remember(self, text: Sequence[int]) -> None:
        """Add token ids to the earlier texts, for instance those of a file that is to be edited.

        Raises:
            SpecdecError: `text` is not a list of token ids.
        """
        listed = isinstance(text, Sequence) and not isinstance(text, str)
        if not listed or not all(is_whole(token) and token >= 0 for token in text):
            raise SpecdecError(f"text={text!r:.80}: takes a list of token ids, whole numbers ≥ 0")
        tokens = [int(token) for token in text]
        self._counts.add(tokens)
        self._archive([tokens])

    def propose(
        self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness
    ) -> Draft:
        for text, sequence in zip(self._rows, sequences, strict=True):
            known = len(text)
            text += sequence[known:]
            self._counts.add(text, start=known)
        return point_masses([self._continuation(sequence, k) for sequence in sequences])

    def _continuation(self, sequence: list[int], k: int) -> list[int]:
        """At most k tokens, the most frequent continuation of `sequence`."""
        text = sequence[-self.max_match :]
        proposed: list[int] = []
        probability = 1.0
        while len(proposed) < k:
            followers = self._counts.after([*text, *proposed])
            if not followers:
                break
            token = max(reversed(followers), key=followers.__getitem__)
            probability *= followers[token] / sum(followers.values())
            if probability < self.min_probability:
                break
            proposed.append(token)
        return proposed

    def _archive(self, texts: list[list[int]]) -> None:
        """Add counted texts to the earlier ones, then forget the oldest beyond `memory` tokens."""
        self._earlier.extend(text for text in texts if text)
        excess = sum(map(len, self._earlier)) - self.memory
        while excess > 0:
            oldest = self._earlier.popleft()
            self._counts.remove(oldest)
            excess -= len(oldest)
