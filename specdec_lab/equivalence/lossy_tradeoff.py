"""The gain and the cost of lossy rules on a pair of models: tokens per round against distance from the target.

Both are exact given the drafts. All rules verify the same drafted blocks, and all decisions are enumerated instead of
sampled. The distance of `fly` is a mean over the drafted blocks, because it depends on the drafted tokens that follow.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specdec_lab.equivalence.lossy import (
    acceptance_by_position,
    certain_draft,
    ensemble,
    expected_by_block,
    first_token,
    fly,
    lenient,
    longest_match,
    typical_acceptance,
)
from specdec_lab.plotting import ACCEPTED, ACCEPTED_MARK, FORMULA, REJECTED, new_figure, styled
from specdec_ref.acceptance import Verify, verify
from specdec_ref.drafting import ModelDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.loading import Pair, held_out_prompts
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import Sampling, SeededRandomness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_CONTEXT = 8
"""Tokens before the first position: what follows a shorter beginning is hardly predictable."""


@dataclass(frozen=True)
class LossyRule:
    """A rule with its parameter.

    Attributes:
        family: the rule's name, one curve in the figure.
        setting: its parameter in words, '' where it has none.
        verify: takes the place of `acceptance.verify`.
        exact: whether it is proven to keep the target's distribution.
        looks_ahead: whether a decision depends on the tokens that follow.
    """

    family: str
    setting: str
    verify: Verify
    exact: bool = False
    looks_ahead: bool = False


RULES = (
    LossyRule("exact rule", "", verify, exact=True),
    LossyRule("draft taken as certain", "", certain_draft, exact=True),
    *[LossyRule("lenience", f"l = {x}", partial(lenient, lenience=x)) for x in (0.9, 0.7, 0.5, 0.3, 0.1)],
    *[LossyRule("ensemble", f"w = {x}", partial(ensemble, weight=x)) for x in (0.1, 0.2, 0.3, 0.5, 0.8)],
    *[
        LossyRule("typical acceptance", f"ε = {x}", partial(typical_acceptance, epsilon=x, alpha=x**0.5))
        for x in (0.01, 0.03, 0.09, 0.25)
    ],
    LossyRule("longest match", "", longest_match),
    *[LossyRule("fly", f"W = {x}", partial(fly, window=x), looks_ahead=True) for x in (3, 2, 1)],
)
"""Two exact rules, and five that are not. Medusa's typical acceptance has α = √ε; `fly` has vLLM's threshold of 0.3."""


@dataclass(frozen=True)
class DraftedBlocks:
    """Drafted blocks at positions of held-out text, N blocks in all.

    Attributes:
        p: the target's distributions, [N, k + 1, V].
        q: the distribution that each token was sampled from, [N, k, V].
        drafted: [N, k] int64.
        drafts: how many blocks follow one another that were drafted at the same position.
    """

    p: Tensor
    q: Tensor
    drafted: Tensor
    drafts: int = 1


@torch.inference_mode()
def draft_blocks(
    pair: Pair,
    positions: int = 200,
    k: int = 4,
    sampling: Sampling | None = None,
    texts: Iterable[str] | None = None,
    seed: int = 0,
    drafts: int = 1,
) -> DraftedBlocks:
    """Draft k tokens at positions spread over texts, and score them with the target.

    Args:
        pair: with a draft model.
        positions: how many, spread evenly.
        k: tokens drafted at each.
        sampling: default temperature 1.
        texts: default the held-out prompts.
        seed: of the drafts.
        drafts: blocks at each position. More of them make means over drafted tokens more precise.

    Raises:
        SpecdecError: arguments that it cannot use.
    """
    for name, value in (("positions", positions), ("k", k), ("drafts", drafts)):
        if not is_whole(value) or value < 1:
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1")
    if pair.draft is None:
        raise SpecdecError("pair: has no draft model; takes a pair with one")
    sampling = sampling or Sampling()
    target = TransformersModel(pair.target)
    drafter = ModelDrafter(TransformersModel(pair.draft, target.vocab_size))
    randomness = SeededRandomness(seed, target.device)
    rounds = []
    for context in _contexts(pair, positions, k, texts):
        drafter.start(drafts, len(context) + k)
        target.start(drafts, len(context) + k)
        draft = drafter.propose([context] * drafts, k, sampling, randomness)
        target.prefill([context[:-1]] * drafts)
        last = torch.tensor([context[-1:]] * drafts, device=target.device)
        p = sampling.probabilities(target.extend(torch.cat([last, draft.tokens], 1)))
        rounds.append((p, draft.distribution(target.vocab_size, p), draft.tokens))
    p, q, drafted = (torch.cat(parts) for parts in zip(*rounds, strict=True))
    return DraftedBlocks(p, q, drafted, drafts)


def _contexts(pair: Pair, positions: int, k: int, texts: Iterable[str] | None) -> list[list[int]]:
    """Beginnings of the texts that end at evenly spread positions."""
    texts = held_out_prompts().values() if texts is None else texts
    contexts = [
        ids[:end]
        for ids in (pair.tokenizer(text)["input_ids"] for text in texts)
        for end in range(LEAST_CONTEXT, min(len(ids), pair.context - k) + 1)
    ]
    if len(contexts) < positions:
        raise SpecdecError(f"positions={positions}: the texts have {len(contexts)}; takes no more")
    return [contexts[i * len(contexts) // positions] for i in range(positions)]


@dataclass(frozen=True)
class Tradeoff:
    """The gain and the cost of one rule, as means over the positions.

    Attributes:
        rule: the rule.
        tv: total variation distance of the first emitted token from the target.
        largest_tv: the largest at any position; NaN for a rule that looks ahead.
        acceptance: probability that the first drafted token is accepted.
        tokens_per_round: accepted tokens and one more, for blocks of k tokens.
    """

    rule: LossyRule
    tv: float
    largest_tv: float
    acceptance: float
    tokens_per_round: float


def tradeoff(rule: LossyRule, blocks: DraftedBlocks) -> Tradeoff:
    """Verify all blocks by one rule."""
    if rule.looks_ahead:
        return _tradeoff_ahead(rule, blocks)
    positions = slice(None, None, blocks.drafts)
    first = [
        first_token(rule.verify, p, q) for p, q in zip(blocks.p[positions, 0], blocks.q[positions, 0], strict=True)
    ]
    accepted = acceptance_by_position(rule.verify, blocks.p, blocks.q, blocks.drafted).cumprod(-1).sum(-1)
    return Tradeoff(
        rule,
        sum(token.tv for token in first) / len(first),
        max(token.tv for token in first),
        sum(token.acceptance for token in first) / len(first),
        1 + float(accepted.mean()),
    )


def _tradeoff_ahead(rule: LossyRule, blocks: DraftedBlocks) -> Tradeoff:
    """The gain and the cost of a rule that overrides a rejection if later tokens are accepted.

    The first token comes out of three parts: accepted by the exact rule, overridden, or from the residual. Overridden
    tokens have p < q and tokens of the residual have p > q. So the total variation distance from p is the probability
    of an override. Its mean over the drafted blocks is computed here.
    """
    expected = [
        expected_by_block(rule.verify, *block) for block in zip(blocks.p, blocks.q, blocks.drafted, strict=True)
    ]
    accepted, first = (sum(values) / len(values) for values in zip(*expected, strict=True))
    native = acceptance_by_position(verify, blocks.p, blocks.q, blocks.drafted)[:, 0].mean()
    return Tradeoff(
        rule,
        tv=first - float(native),
        largest_tv=math.nan,
        acceptance=first,
        tokens_per_round=1 + accepted,
    )


STYLES = {"lenience": "--", "ensemble": "-", "typical acceptance": ":", "fly": "-."}
MARKERS = {"lenience": "s", "ensemble": "o", "typical acceptance": "D", "longest match": "X", "fly": "P"}
LABELS = {
    "lenience": (5, -12, "left"),
    "ensemble": (-4, 7, "right"),
    "typical acceptance": (7, -15, "left"),
    "fly": (5, -12, "left"),
}
"""Where a setting is written next to its marker: points to the right, points up, alignment."""


@styled
def tradeoff_figure(tradeoffs: Sequence[Tradeoff], k: int) -> "Figure":
    """Tokens per round against distance, a curve for each lossy rule; the exact rules lie on the left edge."""
    figure, axes = new_figure(
        "Every lossy rule changes the distribution;\nmost settings gain tokens per round",
        "total variation distance of the next token from the target's",
        f"tokens per round, k = {k}",
        height=5.0,
    )
    families: dict[str, list[Tradeoff]] = {}
    for point in tradeoffs:
        families.setdefault(point.rule.family, []).append(point)
    for name, points in families.items():
        x, y = [point.tv for point in points], [point.tokens_per_round for point in points]
        if points[0].rule.exact:
            axes.axhline(y[0], color=FORMULA, linestyle="--", linewidth=1)
            axes.plot(x, y, "o", color=ACCEPTED, markersize=8, clip_on=False, zorder=3)
            label = f"{ACCEPTED_MARK} {name}"
            axes.annotate(label, (0, y[0]), xytext=(9, -15), textcoords="offset points", color=ACCEPTED)
            continue
        mark, line = MARKERS.get(name, "^"), STYLES.get(name, "-")
        axes.plot(x, y, line, marker=mark, color=REJECTED, label=name, linewidth=1)
        for point in points:
            if point.rule.setting:
                right, up, aligned = LABELS.get(name, (7, -4, "left"))
                at = point.tv, point.tokens_per_round
                axes.annotate(point.rule.setting, at, (right, up), textcoords="offset points", ha=aligned, fontsize=9)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlim(left=0)
    axes.legend(title="lossy rules", loc="lower right", bbox_to_anchor=(1, 0.1))
    return figure
