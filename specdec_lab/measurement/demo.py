"""The measurements of `specdec demo`: autoregressive against speculative decoding on held-out prompts."""

from collections.abc import Callable
from dataclasses import dataclass

from specdec_lab.measurement.benchmark import Result, ours, race, race_length
from specdec_lab.measurement.costs import WARM_UP, Costs, measure_costs
from specdec_ref.loading import Pair
from specdec_ref.sampling import GREEDY, Sampling
from specdec_ref.theory import best_k, predicted_speedup

MAX_K = 8
SCORED = 1, 2, 3, 5, 7, 9  # v in between is taken to be on a straight line
COST_REPEATS = 7
WARM_AGAIN = 2  # the second way of sampling takes the same steps, which are recorded by then


@dataclass(frozen=True)
class Mode:
    """One way of sampling. k was chosen by the formula from a pilot's α; predicted is its speedup for the measured
    α."""

    name: str
    sampling: Sampling
    k: int
    baseline: Result
    speculative: Result
    costs: Costs
    predicted: float

    @property
    def identical(self) -> tuple[int, int]:
        """Prompts with the same tokens from both, of how many. A promise for greedy decoding only."""
        pairs = list(zip(self.baseline.samples, self.speculative.samples, strict=True))
        return sum(a.tokens == b.tokens for a, b in pairs), len(pairs)


def steps(prompts: int, repeats: int) -> int:
    """How often `measure` calls on_step."""
    return WARM_UP + WARM_AGAIN + 2 * (COST_REPEATS + 2 + race_length(2, prompts, repeats))


def measure(
    pair: Pair,
    prompts: list[list[int]],
    *,
    max_new_tokens: int = 80,
    repeats: int = 1,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Mode]:
    """Greedy and temperature 1: costs, a pilot on two prompts that chooses k, then both contenders in turn."""
    modes: list[Mode] = []
    max_new_tokens = min(max_new_tokens, pair.context // 2)
    for name, sampling in (("greedy", GREEDY), ("T = 1", Sampling())):
        costs = measure_costs(
            pair,
            max_k=MAX_K,
            scored=SCORED,
            context=min(200, pair.context - MAX_K - 1),
            sampling=sampling,
            repeats=COST_REPEATS,
            warm_up=WARM_AGAIN if modes else WARM_UP,
            on_step=lambda: on_step("step times"),
        )
        pilot = ours(pair, MAX_K, sampling, max_new_tokens // 2)
        tries = []
        for prompt in prompts[:2]:
            on_step(f"{name}: choosing k")
            tries.append(pilot(prompt, 1000))
        alpha = sum(t.accepted for t in tries) / max(1, sum(t.judged for t in tries))
        k = max(1, best_k(alpha, costs.c, costs.v, max_k=MAX_K))
        names = "no drafts", f"k = {k}"
        results = race(
            {names[0]: ours(pair, 0, sampling, max_new_tokens), names[1]: ours(pair, k, sampling, max_new_tokens)},
            prompts,
            baseline=names[0],
            repeats=repeats,
            on_sample=lambda what, mode=name: on_step(f"{mode}: {what}"),  # type: ignore[misc]
        )
        baseline, speculative = results[names[0]], results[names[1]]
        predicted = predicted_speedup(speculative.acceptance or 0.0, k, costs.c, costs.v(k + 1))
        modes.append(Mode(name, sampling, k, baseline, speculative, costs, predicted))
    return modes
