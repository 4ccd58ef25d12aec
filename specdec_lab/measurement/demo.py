"""The measurements of `specdec demo`: autoregressive against speculative decoding on held-out prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from specdec_lab.measurement.benchmark import Result, formula, ours, race, race_length
from specdec_lab.measurement.costs import WARM_UP, Costs, measure_costs
from specdec_lab.measurement.methods import drafts_one_at_a_time, is_tree, most_scored, usual_k, with_method
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair
from specdec_ref.sampling import GREEDY, Sampling
from specdec_ref.theory import best_k

MAX_K = 8
SCORED = 1, 2, 3, 5, 7, 9  # v is interpolated linearly between these
COST_REPEATS = 7
WARM_AGAIN = 2  # the second mode makes the same steps, which are recorded by then
PILOTS = 2
PLAIN = "no drafts"


@dataclass(frozen=True)
class Way:
    """A way to draft and to verify.

    Attributes:
        name: of what drafts.
        pair: its models and its drafter.
        verification: 'token' or 'block'.

    Raises:
        SpecdecError: block verification of a tree.
    """

    name: str
    pair: Pair
    verification: str = "token"

    def __post_init__(self) -> None:
        if self.verification != "token" and is_tree(self.pair):
            raise SpecdecError("--verification block: a tree has a rule of its own; leave it out")

    @property
    def label(self) -> str:
        """For the table."""
        return self.name if self.verification == "token" else f"{self.name}, block"


@dataclass(frozen=True)
class MeasuredWay:
    """The measurement of a way.

    Attributes:
        way: the way.
        k: chosen by the formula from the α of a pilot; for a tree or a parallel head, its largest k.
        result: over all prompts.
        costs: of its steps.
        predicted: the formula's speedup for the same rounds.
    """

    way: Way
    k: int
    result: Result
    costs: Costs
    predicted: float


@dataclass(frozen=True)
class Mode:
    """One way of sampling: the baseline, and every way to draft."""

    name: str
    sampling: Sampling
    baseline: Result
    ways: tuple[MeasuredWay, ...]

    @property
    def identical(self) -> tuple[int, int]:
        """The number of texts with the baseline's tokens, and of all texts. Only greedy decoding promises equality."""
        pairs = [p for way in self.ways for p in zip(self.baseline.samples, way.result.samples, strict=True)]
        return sum(a.tokens == b.tokens for a, b in pairs), len(pairs)

    @property
    def fastest(self) -> MeasuredWay:
        """The way with the largest speedup."""
        return max(self.ways, key=lambda way: way.result.speedup)


def usual_ways(pair: Pair, with_head: bool) -> list[Way]:
    """The default ways of the demo: the pair's draft with token and block verification, and the shipped head with block
    verification."""
    ways = [Way("draft model", pair), Way("draft model", pair, "block")]
    if with_head:
        ways.append(Way("head", with_method(pair, "head"), "block"))
    return ways


def ways_of(mode: Sampling, ways: Sequence[Way]) -> list[Way]:
    """The ways that differ in this mode. At temperature 0 both verification rules give the same decisions."""
    if not mode.greedy:
        return list(ways)
    by_drafter = {way.name: replace(way, verification="token") for way in ways}
    return list(by_drafter.values())


MODES = {"greedy": GREEDY, "T = 1": Sampling()}


def steps(ways: Sequence[Way], prompts: int, repeats: int) -> int:
    """The number of times that `measure` calls on_step."""
    drafters = len({way.name for way in ways})
    contenders = sum(1 + len(ways_of(sampling, ways)) for sampling in MODES.values())
    costs = WARM_UP + WARM_AGAIN + 2 * (COST_REPEATS + PILOTS)
    return drafters * costs + race_length(contenders, prompts, repeats)


def measure(
    ways: Sequence[Way],
    prompts: list[list[int]],
    *,
    max_new_tokens: int = 80,
    repeats: int = 1,
    on_step: Callable[[str], None] = lambda what: None,
) -> list[Mode]:
    """Measure all ways, greedily and at temperature 1.

    First the costs of each drafter are measured, and a pilot on two prompts chooses k. Then all ways take turns.

    Args:
        ways: pairs that share one target.
        prompts: token ids.
        max_new_tokens: of each generation; at most half of the context.
        repeats: timed runs of each way on each prompt.
        on_step: receives what is being done.
    """
    modes: list[Mode] = []
    first = ways[0].pair
    max_new_tokens = min(max_new_tokens, first.context // 2)
    for name, sampling in MODES.items():
        plans: dict[str, tuple[int, Costs]] = {}
        for way in ways:
            if way.name not in plans:
                plans[way.name] = _plan(way.pair, name, sampling, prompts, max_new_tokens, bool(modes), on_step)
        contenders = {PLAIN: ours(first, 0, sampling, max_new_tokens)}
        compared = ways_of(sampling, ways)
        for way in compared:
            k, _ = plans[way.name]
            contenders[way.label] = ours(way.pair, k, sampling, max_new_tokens, way.verification)
        results = race(
            contenders,
            prompts,
            baseline=PLAIN,
            repeats=repeats,
            on_sample=lambda what, mode=name: on_step(f"{mode}: {what}"),  # type: ignore[misc]
        )
        measured = []
        for way in compared:
            k, costs = plans[way.name]
            result = results[way.label]
            measured.append(MeasuredWay(way, k, result, costs, formula(result, costs, way.pair, way.verification)))
        modes.append(Mode(name, sampling, results[PLAIN], tuple(measured)))
    return modes


def _plan(
    pair: Pair,
    mode: str,
    sampling: Sampling,
    prompts: list[list[int]],
    max_new_tokens: int,
    again: bool,
    on_step: Callable[[str], None],
) -> tuple[int, Costs]:
    """The k for a pair in one mode, and the costs of its steps. again: the steps were made before."""
    usual = usual_k(pair, MAX_K)
    largest_draft = max(MAX_K, most_scored(pair, usual))
    costs = measure_costs(
        pair,
        max_k=largest_draft,
        scored={*SCORED, largest_draft + 1},
        drafted=usual,
        context=min(200, pair.context - largest_draft - 1),
        sampling=sampling,
        repeats=COST_REPEATS,
        warm_up=WARM_AGAIN if again else WARM_UP,
        on_step=lambda: on_step("step times"),
    )
    pilot = ours(pair, usual, sampling, max_new_tokens // 2)
    tries = []
    for i in range(PILOTS):
        on_step(f"{mode}: choosing k")
        tries.append(pilot(prompts[i % len(prompts)], 1000))
    if not drafts_one_at_a_time(pair):
        return usual, costs
    alpha = sum(t.accepted for t in tries) / max(1, sum(t.examined for t in tries))
    return max(1, best_k(alpha, costs.c, costs.v, max_k=MAX_K)), costs
