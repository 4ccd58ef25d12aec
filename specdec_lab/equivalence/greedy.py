"""Is greedy decoding the target's own? Compared token by token; a difference is a numerical tie or a bug.

The reference is one forward pass of the target over the whole sequence, without any cache. At every position the token
must be the target's argmax after the tokens before it. No generation loop is involved.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdec_lab.equivalence.empirical import Progress, prompt_ids
from specdec_lab.equivalence.engines import OurLoop
from specdec_lab.equivalence.sampler import Sampler, SamplerError, checked, crash, ends_of, function_of, name_of
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.loading import Pair
from specdec_ref.models import score_rows
from specdec_ref.sampling import GREEDY

ROUNDING_FACTOR = 8
"""A margin of up to so many rounding errors counts as a tie, since sums in another order have errors of their own."""


@dataclass(frozen=True)
class Difference:
    """One token that is not the target's argmax.

    Attributes:
        prompt: its number.
        position: among the new tokens.
        token: the sampler's token.
        choice: the target's, in wider numbers (float64 for float32 weights, else float32).
        margin: how much larger the target's logit of `choice` is than that of `token`, in wider numbers.
        rounding: the largest difference between the target's own logits and those in wider numbers.
    """

    prompt: int
    position: int
    token: int
    choice: int
    margin: float
    rounding: float

    @property
    def tie(self) -> bool:
        """Whether rounding can explain the difference: the two logits are almost equal."""
        return self.margin <= ROUNDING_FACTOR * self.rounding


@dataclass(frozen=True)
class GreedyAgreement:
    """The result: the number of compared tokens, the number of prompts, and the differences in order."""

    sampler: str
    prompts: int
    tokens: int
    differences: tuple[Difference, ...]

    @property
    def consistent(self) -> bool:
        """Whether every difference is a numerical tie."""
        return all(d.tie for d in self.differences)

    def explain(self) -> str:
        """In words."""
        many = f"{self.tokens:,} tokens after {self.prompts} prompts"
        if not self.differences:
            return f"{self.sampler}: greedy decoding is the target's own, {many}, all identical"
        lines = [f"{self.sampler}: greedy, {len(self.differences)} of {many} are not the target's argmax"]
        for d in self.differences[:5]:
            lines.append(
                f"prompt {d.prompt + 1}, new token {d.position + 1}: {d.token} where the target has {d.choice}, whose "
                f"logit is {d.margin:.2g} larger; rounding makes {d.rounding:.2g}: "
                + ("a numerical tie" if d.tie else "a bug")
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "sampler": self.sampler,
            "consistent": self.consistent,
            "prompts": self.prompts,
            "tokens": self.tokens,
            "differences": [{**vars(d), "tie": d.tie} for d in self.differences],
        }


@torch.inference_mode()
def greedy_agreement(
    pair: Pair,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int = 64,
    sampler: Sampler | Callable[..., Any] | None = None,
    *,
    k: int = 4,
    on_progress: Progress = lambda completed, total: None,
) -> GreedyAgreement:
    """Check that a sampler's greedy decoding is the target's own after every prompt.

    sampler: one that decodes greedily, default our loop with `k` drafted tokens. Raises SpecdecError for arguments it
    cannot use and SamplerError where the sampler fails.
    """
    if not is_whole(max_new_tokens) or max_new_tokens < 1:
        raise SpecdecError(f"max_new_tokens={max_new_tokens!r:.80}: takes a whole number ≥ 1")
    sampler = OurLoop(pair, k, GREEDY) if sampler is None else sampler
    sample, end, target = function_of(sampler), ends_of(sampler), pair.target
    vocab_size = score_rows(target)
    ids = prompt_ids(pair, prompts, max_new_tokens)
    wider: Any = None
    compared, differences = 0, []
    for i, prompt in enumerate(ids):
        on_progress(i, len(ids))
        try:
            rows = checked(sample(list(prompt), 1, max_new_tokens, i), 1, max_new_tokens, vocab_size, end)
        except SpecdecError:
            raise
        except Exception as error:
            raise SamplerError(f"sampler: {crash(error)} (at prompt {i + 1} of {len(ids)})") from error
        if not len(rows):
            raise SamplerError(f"sampler: gave no row where 1 was asked for (at prompt {i + 1} of {len(ids)})")
        new = [token for token in rows[0].tolist() if token >= 0]
        sequence = torch.tensor([[*prompt, *new[:-1]]], device=target.device)
        logits = _logits(target, sequence, len(new))
        wrong = (logits.argmax(-1) != torch.tensor(new, device=target.device)).nonzero().flatten().tolist()
        if wrong and wider is None:
            wider = copy.deepcopy(target)
            wider.to(torch.float32 if target.dtype in (torch.bfloat16, torch.float16) else torch.float64)
        precise = _logits(wider, sequence, len(new)) if wrong else logits
        for position in wrong:
            scores, token = precise[position], new[position]
            choice = int(scores.argmax())
            margin, rounding = float(scores[choice] - scores[token]), float((scores - logits[position]).abs().max())
            differences.append(Difference(i, position, token, choice, margin, rounding))
        compared += len(new)
    on_progress(len(ids), len(ids))
    return GreedyAgreement(name_of(sampler), len(ids), compared, tuple(differences))


def _logits(model: Any, sequence: Tensor, last: int) -> Tensor:
    """After each of the last tokens, [last, V], by one pass without a cache."""
    logits: Tensor = model(input_ids=sequence, use_cache=False).logits[0, -last:]
    return logits
