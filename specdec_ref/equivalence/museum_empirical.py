"""The empirical test as the museum uses it: one pair, two ways of sampling, and greedy decoding beside them.

Temperature 1 alone would hide what goes wrong with temperature and top-k: the second way has these, and a draft that
stops when it is unsure. Ends are not for this test, which ignores what follows an end token.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specdec_ref.drafting import ModelDrafter
from specdec_ref.equivalence.empirical import Plan, carry_out, prepare
from specdec_ref.equivalence.engines import OurLoop, SharedWork
from specdec_ref.equivalence.greedy import greedy_agreement
from specdec_ref.equivalence.museum_checks import Outcome
from specdec_ref.equivalence.remembered import Remembered
from specdec_ref.equivalence.result import Equivalence
from specdec_ref.errors import SpecdecError
from specdec_ref.models import Pair, held_out_prompts
from specdec_ref.sampling import Sampling

LENGTH, K = 4, 2
CUT = Sampling(temperature=0.7, top_k=40)
CONFIDENCE = 0.5
PROMPT_TOKENS = 16  # every sample pays for its prompt, and a short one is as good a test


@dataclass(frozen=True)
class Trial:
    """One way of sampling: what is counted, settled from the target alone, and the sampler that is tested."""

    name: str
    plan: Plan
    sampler: OurLoop

    def run(self, seed: int = 0) -> Equivalence:
        """Draw and judge, with the code as it is now. Raises SamplerError."""
        return carry_out(self.plan, self.sampler, seed=seed)


def trials(
    pair: Pair,
    prompts: Sequence[str | Sequence[int]] | None = None,
    *,
    samples: int = 20_000,
    false_alarm: float = 0.001,
) -> tuple[Trial, ...]:
    """The two ways of sampling. prompts: default two held-out ones, their beginnings.

    Raises SpecdecError for samples too few to show anything, and for a pair without a draft.
    """
    if pair.draft is None:
        raise SpecdecError("pair: has no draft model, and the museum needs one")
    if prompts is None:
        texts = list(held_out_prompts().values())[:2]
        prompts = [pair.tokenizer(text)["input_ids"][:PROMPT_TOKENS] for text in texts]
    draft = SharedWork(pair.draft, SharedWork(pair.target).vocab_size)
    unsure = ModelDrafter(draft, min_confidence=CONFIDENCE)
    ways = (
        ("temperature 1", OurLoop(pair, K, Sampling())),
        ("temperature 0.7, top-k 40, an unsure draft", OurLoop(pair, K, CUT, drafter=unsure)),
    )
    return tuple(
        Trial(
            name,
            prepare(pair, prompts, length=LENGTH, samples=samples, sampling=loop.sampling, false_alarm=false_alarm),
            loop,
        )
        for name, loop in ways
    )


def remembering(pair: Pair, both: Sequence[Trial]) -> tuple[Trial, ...]:
    """The same trials with models that remember their scores instead of caches: for many samples.

    Not for wrong versions of the cache or of the models, which they would not run.
    """
    assert pair.draft is not None
    target = Remembered(pair.target)
    draft = Remembered(pair.draft, target.vocab_size)
    found = []
    for trial in both:
        loop = copy.copy(trial.sampler)
        assert isinstance(loop.drafter, ModelDrafter)
        loop.target, loop.drafter = target, ModelDrafter(draft, loop.drafter.min_confidence)
        found.append(replace(trial, sampler=loop))
    return tuple(found)


def refuted(pair: Pair, both: Sequence[Trial], seed: int = 0) -> Outcome:
    """Put the code as it is now to the empirical test: both ways of sampling, and greedy decoding."""
    seen = []
    for trial in both:
        result = trial.run(seed)
        low, high = result.tv_interval
        seen.append(f"{trial.name}: p = {result.p_value:.2g}, TV {low:.3f} to {high:.3f}")
        if not result.consistent:
            return Outcome(True, seen[-1])
    greedy = greedy_agreement(pair, [tree.prompt for tree in both[0].plan.trees], 24)
    return Outcome(not greedy.consistent, "; ".join([*seen, greedy.explain()]))
