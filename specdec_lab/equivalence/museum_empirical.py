"""The empirical test as the museum uses it: one pair, two ways of sampling, and greedy decoding.

Temperature 1 alone would hide mistakes with temperature and top-k, so the second way has both, and a draft that stops
when it is unsure. This test does not cover end tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from specdec_lab.equivalence.empirical import SamplingPlan, carry_out, prepare
from specdec_lab.equivalence.engines import OurLoop, SharedWork
from specdec_lab.equivalence.greedy import greedy_agreement
from specdec_lab.equivalence.museum_checks import Observation
from specdec_lab.equivalence.result import Equivalence
from specdec_ref.drafting import ModelDrafter
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair, held_out_prompts
from specdec_ref.sampling import Sampling

LENGTH, K = 4, 2
CUT = Sampling(temperature=0.7, top_k=40)
CONFIDENCE = 0.5
PROMPT_TOKENS = 16  # a short prompt is as good a test, and costs less


@dataclass(frozen=True)
class Trial:
    """One way of sampling: what is counted, decided from the target alone, and the sampler that is tested."""

    name: str
    plan: SamplingPlan
    sampler: OurLoop

    def run(self, seed: int = 0) -> Equivalence:
        """Sample and test, with the code as it is now. Raises SamplerError."""
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


def refuted(pair: Pair, both: Sequence[Trial], seed: int = 0) -> Observation:
    """Run the empirical test on the code as it is now: both ways of sampling, and greedy decoding."""
    seen = []
    for trial in both:
        result = trial.run(seed)
        low, high = result.tv_interval
        seen.append(f"{trial.name}: p = {result.p_value:.2g}, TV {low:.3f} to {high:.3f}")
        if not result.consistent:
            return Observation(True, seen[-1])
    greedy = greedy_agreement(pair, [tree.prompt for tree in both[0].plan.trees], 24)
    return Observation(not greedy.consistent, "; ".join([*seen, greedy.explain()]))
