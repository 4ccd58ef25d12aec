"""Which test catches which mistake: every test runs on every wrong version, and on the correct code."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from specdec_lab.equivalence import museum_checks as ours
from specdec_lab.equivalence import museum_public as public
from specdec_lab.equivalence.museum_checks import Observation
from specdec_lab.equivalence.museum_heads import heads_read_their_own_row
from specdec_lab.equivalence.mutants import MUTANTS, Mutant
from specdec_ref.loading import Pair, load_pair

if TYPE_CHECKING:
    from rich.table import Table

RIGHT = "correct code"
CAUGHT, INTENDED, MISSED = "✓", "(✓)", "·"


@dataclass(frozen=True)
class MuseumCheck:
    """One test, a column of the matrix.

    Attributes:
        name: as `Mutant.caught_by` names it.
        short: its heading.
        what: what it checks.
        run: the test itself.
        public: whether it is written after a test of another project.
    """

    name: str
    short: str
    what: str
    run: Callable[[], Observation]
    public: bool = False

    @property
    def heading(self) -> str:
        """The column's heading; a star marks a public test."""
        return f"{self.short}*" if self.public else self.short

    def observe(self) -> Observation:
        """Run it on the code as it is now. A crash counts as caught."""
        try:
            return self.run()
        except Exception as error:
            return Observation(True, f"crashed: {type(error).__name__}: {error}")


CHECKS = (
    MuseumCheck("exact", "exact", "the loop's output distribution, by enumeration, is the target's", ours.exact_proof),
    MuseumCheck("self-draft", "p=q", "the target as its own draft: every token is accepted", ours.self_draft),
    MuseumCheck("cache", "KV", "after every rewind, both models score as without a cache", ours.cache_is_fresh),
    MuseumCheck("acceptance", "α", "acceptance is Σ min(p, q)", ours.acceptance),
    MuseumCheck("tokens-per-round", "E", "a round emits as many tokens as the formula says", ours.tokens_per_round),
    MuseumCheck("joint", "u⊥u", "sampled texts have the target's joint distribution", ours.joint_distribution),
    MuseumCheck("features", "head", "a head reads the features of its own row and token", heads_read_their_own_row),
    MuseumCheck("ending", "end", "a text ends at its first end token or at its length", ours.ending),
    MuseumCheck("boundary", "u=0", "a token of probability 0 is not accepted, even at u = 0", ours.boundary),
    MuseumCheck("k", "k", "the number of drafted tokens is the number that was asked for", ours.k_takes_effect),
    MuseumCheck(
        "transformers", "HF", "the criteria of transformers' target-distribution test", public.like_transformers, True
    ),
    MuseumCheck("vllm", "vLLM", "the criteria of vLLM's rejection-sampler distance test", public.like_vllm, True),
)
"""The tests of the quick form."""


def checks(
    full: bool = False,
    pair: Pair | None = None,
    samples: int = 20_000,
    prompts: Sequence[str | Sequence[int]] | None = None,
) -> tuple[MuseumCheck, ...]:
    """The tests in order.

    Args:
        full: add the empirical test on a trained pair, and run the public tests with as many calls as theirs.
        pair: default the one that ships.
        samples, prompts: of the empirical test, see `trials`.

    Raises:
        SpecdecError: arguments that the empirical test cannot use.
    """
    if not full:
        return CHECKS
    from specdec_lab.equivalence.museum_empirical import refuted, trials

    pair = load_pair() if pair is None else pair
    what = "samples of a trained pair agree with the target's probabilities; greedy text is its own"
    experiment = MuseumCheck("empirical", "χ²", what, partial(refuted, pair, trials(pair, prompts, samples=samples)))
    longer = {"transformers": partial(public.like_transformers, 10_000)}
    rest = [MuseumCheck(c.name, c.short, c.what, longer.get(c.name, c.run), True) for c in CHECKS if c.public]
    return (*(c for c in CHECKS if not c.public), experiment, *rest)


@dataclass(frozen=True)
class Matrix:
    """outcomes: by name of the wrong version, or `RIGHT`, and name of the test."""

    mutants: tuple[Mutant, ...]
    checks: tuple[MuseumCheck, ...]
    outcomes: dict[tuple[str, str], Observation]

    def caught(self, name: str, check: str) -> bool:
        """Whether that test fails on the code of that name."""
        return self.outcomes[name, check].caught

    def failures(self) -> list[str]:
        """Each broken promise of the museum, in a sentence; empty where all are kept."""
        broken = [
            f"the correct code fails '{c.name}': {self.outcomes[RIGHT, c.name].evidence}"
            for c in self.checks
            if self.caught(RIGHT, c.name)
        ]
        for m in self.mutants:
            required = {m.caught_by} | ({"exact"} if m.effect == "distribution" and not m.in_randomness else set())
            passed = [name for name in sorted(required) if not self.caught(m.name, name)]
            broken += [f"{m.name} passes '{name}', which has to catch it" for name in passed]
            if m.effect == "speed" and self.caught(m.name, "exact"):
                broken.append(f"{m.name} is said to lose speed only, but {self.outcomes[m.name, 'exact'].evidence}")
        return broken

    def summary(self) -> list[str]:
        """How many wrong versions each test catches, in sentences."""

        def count(check: MuseumCheck, effect: str) -> str:
            some = [m for m in self.mutants if m.effect == effect]
            return f"{sum(self.caught(m.name, check.name) for m in some)} of {len(some)}"

        return [
            f"{c.name}: {count(c, 'distribution')} that change the distribution, {count(c, 'speed')} that lose speed"
            for c in self.checks
        ]

    def origins(self) -> str:
        """How many wrong versions were seen in public projects, and how many are by reasoning."""
        reasoned = sum(m.by_reasoning for m in self.mutants)
        seen = len(self.mutants) - reasoned
        return f"{seen} of {len(self.mutants)} wrong versions were seen in public projects, {reasoned} are by reasoning"

    def rows(self) -> list[list[str]]:
        """Name and marks, one row for each wrong version and a last one for the correct code."""
        rows = []
        for name, intended in [*((m.name, m.caught_by) for m in self.mutants), (RIGHT, "")]:
            marks = [
                (INTENDED if c.name == intended else CAUGHT) if self.caught(name, c.name) else MISSED
                for c in self.checks
            ]
            rows.append([name, *marks])
        return rows

    def table(self) -> "Table":
        """For the terminal."""
        from rich import box
        from rich.table import Table

        legend = f"{CAUGHT} caught   {INTENDED} caught by the test meant for it   {MISSED} not"
        title = "Wrong versions and the tests that catch them (*: after public tests)"
        table = Table(title=title, caption=legend, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        table.add_column("wrong version", no_wrap=True)
        for check in self.checks:
            table.add_column(check.heading, justify="center", no_wrap=True, min_width=len(INTENDED))
        effects = [*(m.effect for m in self.mutants), ""]
        for i, row in enumerate(self.rows()):
            last = i + 1 == len(effects) or effects[i] != effects[i + 1]
            table.add_row(*(f"[green]{c}[/]" if CAUGHT in c else c for c in row), end_section=last)
        return table

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = [*(m.name for m in self.mutants), RIGHT]
        return {
            "checks": {c.name: {"what": c.what, "public": c.public} for c in self.checks},
            "effects": {m.name: m.effect for m in self.mutants},
            "caught_by": {m.name: m.caught_by for m in self.mutants},
            "seen": {m.name: m.seen for m in self.mutants},
            "outcomes": {name: {c.name: vars(self.outcomes[name, c.name]) for c in self.checks} for name in names},
            "failures": self.failures(),
        }


def matrix(
    mutants: Sequence[Mutant] = MUTANTS,
    *,
    full: bool = False,
    pair: Pair | None = None,
    samples: int = 20_000,
    on_cell: Callable[[int, int], None] = lambda completed, total: None,
) -> Matrix:
    """Run every test on every wrong version and on the correct code. About two minutes; `full` takes hours.

    Args:
        mutants: the wrong versions.
        full, pair, samples: see `checks`.
        on_cell: called after each cell with the number of cells done, and of all cells.
    """
    tests = checks(full, pair, samples)
    outcomes: dict[tuple[str, str], Observation] = {}
    total = len(tests) * (len(mutants) + 1)
    versions: list[tuple[str, AbstractContextManager[object]]] = [(RIGHT, nullcontext())]
    versions += [(m.name, m.installed()) for m in mutants]
    for name, change in versions:
        with change:
            for check in tests:
                outcomes[name, check.name] = check.observe()
                on_cell(len(outcomes), total)
    return Matrix(tuple(mutants), tests, outcomes)


museum = matrix
"""As `specdec_lab.equivalence.museum(…)`."""
