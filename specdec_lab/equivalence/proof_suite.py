"""The cases of the proof: every kind of distribution, sampling, drafter, controller, ending and batch.

The cases are small enough to enumerate. They are large enough for several rounds, every number of accepted tokens and
both kinds of ending. Each case is an independent claim. Together they take under two minutes.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specdec_lab.equivalence.exact import Proof, exact
from specdec_lab.equivalence.tables import constant_table, markov_table, random_table
from specdec_lab.equivalence.tiny import OnCache, head_drafter, random_head, tiny_pair
from specdec_lab.teaching.heuristics import AdaptiveSpeculation
from specdec_ref.beyond.heads import HeadDrafter, ParallelHeadDrafter
from specdec_ref.beyond.suffix import SuffixDrafter
from specdec_ref.beyond.trees import SCHEMES, BestFirstDrafter, TreeDrafter
from specdec_ref.control import CostModelSpeculation, FixedK
from specdec_ref.decoding import Controller, Round
from specdec_ref.drafting import Drafter, ModelDrafter, PromptLookupDrafter
from specdec_ref.models import LanguageModel
from specdec_ref.sampling import GREEDY, Sampling

METHODS: dict[type, str] = {
    ModelDrafter: "draft model",
    PromptLookupDrafter: "prompt lookup",
    SuffixDrafter: "suffix decoding",
    HeadDrafter: "feature head",
    ParallelHeadDrafter: "parallel head",
    TreeDrafter: "tree",
    BestFirstDrafter: "tree, best first",
}
"""The drafting methods by the class of the drafter."""


@dataclass(frozen=True)
class ProofCase:
    """One claim: with these models and settings the loop is exact.

    settings: keyword arguments of `exact`.
    """

    name: str
    covers: str
    target: LanguageModel
    drafter: Drafter | None
    prompt: Sequence[int] | Sequence[Sequence[int]] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The drafting method and the verification rule, as reports name them."""
        name = "autoregressive" if self.drafter is None else METHODS[type(self.drafter)]
        if isinstance(self.drafter, TreeDrafter):
            name += f", {self.drafter.scheme}"
        return f"{name}, block verification" if self.settings.get("verification") == "block" else name

    def prove(self) -> Proof:
        """Enumerate every outcome. Raises SpecdecError."""
        return exact(self.target, self.drafter, self.prompt, **self.settings)


class UpAndDown:
    """A controller with a memory: k grows by one after a round that accepted all tokens, else falls by one."""

    def __init__(self, max_k: int):
        self.max_k = max_k
        self.k = 1

    def next_k(self) -> int:
        return self.k

    def observe(self, rounds: list[Round]) -> None:
        all_accepted = all(row_round.accepted == row_round.depth for row_round in rounds)
        self.k = min(self.max_k, self.k + 1) if all_accepted else max(0, self.k - 1)


def _warmed_up() -> AdaptiveSpeculation:
    """The heuristic changes k from the tenth round on. Here that is the first, and one accepted draft raises k."""
    controller = AdaptiveSpeculation(min_k=1, max_k=3, target_acceptance=0.5)
    for _ in range(9):
        controller.update(num_accepted=3, num_proposed=5)
    return controller


class SteadyClock:
    """Each reading is one second after the one before, so every round takes a second, in every replay."""

    def __init__(self) -> None:
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        return float(self.readings)


def _timed() -> CostModelSpeculation:
    """The cost model with measured costs, by a clock that is the same in every replay."""
    controller = CostModelSpeculation(max_k=2)
    controller.clock = SteadyClock()
    return controller


CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "FixedK": lambda: FixedK(2),
    "up and down": lambda: UpAndDown(3),
    "AdaptiveSpeculation": _warmed_up,
    "CostModelSpeculation": lambda: CostModelSpeculation(max_k=3, c=0.3),
    "CostModelSpeculation, timed": _timed,
}
"""Every way to choose k. A new controller is proven exact by a line here."""


SMALL_SIZES = "V=2 k=1", "V=2 k=2", "V=2 k=3", "V=2 k=4", "V=3 k=2", "V=3 k=3", "V=4 k=2"
"""Cases that are also proven for block verification. Of the other cases all are."""


def cases() -> list[ProofCase]:
    """All cases: token verification, block verification, trees."""
    kinds = [
        *_distributions(),
        *_samplings(),
        *_endings(),
        *_drafters(),
        *_suffixes(),
        *_heads(),
        *_controllers(),
        *_batches(),
    ]
    return [*_sizes(), *kinds, *map(_with_blocks, [*_small_sizes(), *kinds]), *_trees()]


def prove_all(on_case: Callable[[ProofCase, Proof], None] = lambda case, proof: None) -> list[tuple[ProofCase, Proof]]:
    """Prove every case in turn. on_case is called after each."""
    proofs = []
    for case in cases():
        proofs.append((case, case.prove()))
        on_case(*proofs[-1])
    return proofs


def _model(vocab_size: int, seed: int, **kind: float) -> ModelDrafter:
    return ModelDrafter(random_table(vocab_size, seed, **kind))


def _sizes() -> list[ProofCase]:
    """Every size, with room for k tokens and one more. Zeros keep the largest playable."""
    tokens = {2: (5, 5, 5, 5), 3: (5, 5, 5, 5), 4: (4, 4, 4, 5), 5: (4, 3, 4, 5)}
    sizes = []
    for v, k in itertools.product(tokens, (1, 2, 3, 4)):
        n, zeros = tokens[v][k - 1], 0.5 if (v, k) == (5, 4) else 0.0
        target, drafter = random_table(v, 10 * v + k, zeros=zeros), _model(v, 100 + 10 * v + k, zeros=zeros)
        settings = {"k": k, "max_new_tokens": n}
        covers = f"random tables, {'half of them zeros, ' if zeros else ''}{n} tokens"
        sizes.append(ProofCase(f"V={v} k={k}", covers, target, drafter, settings=settings))
    return sizes


def _small_sizes() -> list[ProofCase]:
    """Sizes for block verification, which decides more often and so has more outcomes."""
    return [case for case in _sizes() if case.name in SMALL_SIZES]


def _with_blocks(case: ProofCase) -> ProofCase:
    """The same case with block verification."""
    return replace(case, name=f"block, {case.name}", settings={**case.settings, "verification": "block"})


def _distributions() -> list[ProofCase]:
    """Kinds of relation between p and q. The tables are constant, so all rounds are alike."""
    peaked, flat = [0.98, 0.01, 0.01], [1 / 3, 1 / 3, 1 / 3]
    pairs: dict[str, tuple[str, list[float], list[float]]] = {
        "p = q": ("nothing is ever rejected, no residual is left", [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]),
        "disjoint": ("everything is rejected, the residual is p", [0.4, 0.6, 0.0, 0.0], [0.0, 0.0, 0.7, 0.3]),
        "zeros in p": ("drafted tokens that the target never says", [0.6, 0.4, 0.0], [0.2, 0.3, 0.5]),
        "zeros in q": ("tokens that only the residual can bring", [0.2, 0.3, 0.5], [0.6, 0.4, 0.0]),
        "zeros in both": ("supports that overlap in part", [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]),
        "peaked p, uniform q": ("a sure target, a draft that guesses", peaked, flat),
        "uniform p, peaked q": ("a sure draft, a target that does not care", flat, peaked),
        "peaked apart": ("sure of different tokens", peaked, peaked[::-1]),
        "uniform": ("both guess", flat, flat),
        "certain p": ("one token of probability 1", [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]),
        "certain q": ("one token of probability 1, accepted with p", [0.3, 0.3, 0.4], [0.0, 1.0, 0.0]),
        "almost equal": ("a residual of 1e-15", [0.5, 0.5], [0.5 + 1e-15, 0.5 - 1e-15]),
        "rare": ("probabilities of 1e-12", [1 - 1e-12, 1e-12], [1e-12, 1 - 1e-12]),
    }
    return [
        ProofCase(
            name, covers, constant_table(p), ModelDrafter(constant_table(q)), settings={"k": 2, "max_new_tokens": 4}
        )
        for name, (covers, p, q) in pairs.items()
    ]


def _samplings() -> list[ProofCase]:
    kinds = {
        "greedy": (GREEDY, "one text of probability 1"),
        "cold": (Sampling(temperature=0.4), "temperature below 1"),
        "hot": (Sampling(temperature=2.5), "temperature above 1"),
        "top-k": (Sampling(top_k=2), "target and draft keep different tokens"),
        "top-p": (Sampling(top_p=0.7), "target and draft keep different numbers of tokens"),
        "all three": (Sampling(temperature=1.5, top_k=3, top_p=0.8), "temperature, then top-k, then top-p"),
    }
    samplings = [
        ProofCase(name, covers, random_table(4, 41), _model(4, 42), settings={"k": 2, "sampling": sampling})
        for name, (sampling, covers) in kinds.items()
    ]
    agreeing = ProofCase(
        "greedy, all accepted",
        "a draft that is the target",
        random_table(4, 41),
        _model(4, 41),
        settings={"k": 2, "max_new_tokens": 5, "sampling": GREEDY},
    )
    return [*samplings, agreeing]


def _endings() -> list[ProofCase]:
    target, q = random_table(3, 51), _model(3, 52)
    return [
        ProofCase(
            "eos",
            "an end token at every place of a block",
            target,
            q,
            settings={"k": 3, "max_new_tokens": 5, "eos": {2}},
        ),
        ProofCase("two eos", "two end tokens", target, q, settings={"k": 2, "max_new_tokens": 5, "eos": {0, 2}}),
        ProofCase(
            "eos of the target alone",
            "an end token that the draft never proposes",
            constant_table([0.3, 0.4, 0.3]),
            ModelDrafter(constant_table([0.5, 0.5, 0.0])),
            settings={"k": 3, "eos": {2}},
        ),
        ProofCase(
            "eos of the draft alone",
            "an end token that is always rejected",
            constant_table([0.5, 0.5, 0.0]),
            ModelDrafter(constant_table([0.2, 0.3, 0.5])),
            settings={"k": 3, "eos": {2}},
        ),
        ProofCase(
            "context", "generations that end where the context is full", target, q, (0, 1), {"k": 3, "context": 5}
        ),
        ProofCase("one token", "no room to draft", target, q, settings={"k": 3, "max_new_tokens": 1}),
    ]


def _drafters() -> list[ProofCase]:
    lookup, p3 = PromptLookupDrafter(max_ngram=2), random_table(3, 61)
    unsure = ModelDrafter(random_table(3, 62), min_confidence=0.45)
    always = ModelDrafter(random_table(3, 62), min_confidence=1.0)
    return [
        ProofCase("nobody", "autoregressive decoding, k = 0", p3, None, settings={"k": 0}),
        ProofCase(
            "prompt lookup",
            "a point mass, from the text so far",
            p3,
            lookup,
            (0, 1, 2, 0, 1),
            {"k": 3, "max_new_tokens": 5},
        ),
        ProofCase(
            "prompt lookup, greedy", "one-hot p and q", p3, lookup, (0, 1, 2, 0, 1), {"k": 3, "sampling": GREEDY}
        ),
        ProofCase(
            "prompt lookup, top-p",
            "a point mass against a cut p",
            p3,
            lookup,
            (1, 1, 1),
            {"sampling": Sampling(top_p=0.6)},
        ),
        ProofCase(
            "min_confidence", "a draft that stops when it is unsure", p3, unsure, settings={"k": 4, "max_new_tokens": 5}
        ),
        ProofCase("min_confidence 1", "a draft that stops after one token", p3, always, settings={"k": 3}),
        ProofCase("smaller draft vocabulary", "a token that the draft has no row for", p3, _model(2, 63), (0, 2)),
        ProofCase("the target drafts", "as its own draft everything is accepted", p3, _model(3, 61), settings={"k": 3}),
        ProofCase(
            "Markov",
            "a draft that is right about half of the past",
            markov_table([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7]]),
            ModelDrafter(markov_table([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.2, 0.1, 0.7]])),
            settings={"k": 3},
        ),
    ]


def _suffixes() -> list[ProofCase]:
    """Every replay starts from a copy of the drafter, so all of them begin with the same earlier texts."""
    p2, p3, prompt, ragged = random_table(2, 91), random_table(3, 92), (0, 1, 0, 0, 1), ((0,), (1, 0, 1))
    cycle = markov_table([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    experienced = SuffixDrafter(max_match=2)
    experienced.remember((1, 0, 0, 1, 1))
    experienced.remember((0, 0, 1))
    forgetful = SuffixDrafter(max_match=2, memory=3)
    forgetful.remember((1, 1, 0))
    return [
        ProofCase(
            "suffix",
            "the most frequent continuation",
            p2,
            SuffixDrafter(),
            prompt,
            {"k": 3, "max_new_tokens": 7},
        ),
        ProofCase(
            "suffix, V=3",
            "counts of three tokens",
            p3,
            SuffixDrafter(),
            (0, 1, 2, 0, 1),
            {"k": 3, "max_new_tokens": 5},
        ),
        ProofCase(
            "suffix, threshold",
            "proposals that end where their estimated probability is low",
            p2,
            SuffixDrafter(max_match=1, min_probability=0.7),
            prompt,
            {"k": 3},
        ),
        ProofCase("suffix, earlier texts", "a drafter that remembers other texts", p2, experienced, (0, 1), {"k": 3}),
        ProofCase("suffix, eos", "an end token that may be proposed", p2, experienced, prompt, {"k": 3, "eos": {1}}),
        ProofCase(
            "suffix, greedy",
            "one-hot p and q, which agree",
            cycle,
            SuffixDrafter(),
            (0, 1, 2, 0, 1),
            {"k": 3, "max_new_tokens": 8, "sampling": GREEDY},
        ),
        ProofCase(
            "suffix, top-p", "a point mass against a cut p", p3, experienced, (0, 1), {"sampling": Sampling(top_p=0.6)}
        ),
        ProofCase("two rows, suffix", "each row drafts from both texts", p2, SuffixDrafter(), ragged),
        ProofCase(
            "two rows, suffix, eos",
            "rows leave in any order, and old texts are forgotten meanwhile",
            p2,
            forgetful,
            ragged,
            {"k": 3, "eos": {1}},
        ),
        ProofCase(
            "two rows, suffix, two lengths",
            "a row continues in the slots that another row has left",
            p2,
            experienced,
            ragged,
            {"max_new_tokens": (2, 4)},
        ),
    ]


def _heads() -> list[ProofCase]:
    """A head reads the hidden states of a real target, so these proofs run on a small transformer with its cache."""
    model, _ = tiny_pair(vocab_size=2, width=8, layers=1)
    heads = []
    for kind in ("feature", "parallel"):
        head = random_head(model, kind)
        target = OnCache(model, feature_layers=head.config.feature_layers)
        drafter = head_drafter(head, target)
        one_row, ragged = (0, 1, 1), ((0, 1, 1), (1,))
        two_rows = {"k": 1, "max_new_tokens": 2}
        heads += [
            ProofCase(f"{kind} head", "two rounds after one prompt", target, drafter, one_row, {"max_new_tokens": 3}),
            ProofCase(f"{kind} head, two rows", "each row has features of its own", target, drafter, ragged, two_rows),
        ]
    return heads


def _controllers() -> list[ProofCase]:
    return [
        ProofCase(
            f"k by {name}",
            "k that may change from round to round",
            random_table(3, 71),
            _model(3, 72),
            settings={"k": make(), "max_new_tokens": 5},
        )
        for name, make in CONTROLLERS.items()
    ]


def _batches() -> list[ProofCase]:
    p, q, ragged = random_table(2, 81), _model(2, 82), ((0,), (1, 0, 1))
    unsure = ModelDrafter(random_table(2, 82), min_confidence=0.6)
    lookup = PromptLookupDrafter()
    return [
        ProofCase("two rows", "ragged prompts and acceptance", p, q, ragged, {"max_new_tokens": 4}),
        ProofCase("two rows, two lengths", "one row ends before the other", p, q, ragged, {"max_new_tokens": (2, 5)}),
        ProofCase("two rows, eos", "rows leave in any order", p, q, ragged, {"eos": {1}, "k": 3}),
        ProofCase(
            "two rows, min_confidence", "drafts of different lengths", p, unsure, ragged, {"max_new_tokens": 4, "k": 3}
        ),
        ProofCase(
            "two rows, prompt lookup", "a row with a draft, a row without", p, lookup, ragged, {"max_new_tokens": 4}
        ),
        ProofCase(
            "two rows, k up and down", "one k for both rows", p, q, ragged, {"k": UpAndDown(3), "max_new_tokens": 4}
        ),
        ProofCase(
            "two rows, top-k",
            "each row cut on its own",
            random_table(3, 83),
            _model(3, 84),
            ((2,), (0, 1)),
            {"sampling": Sampling(top_k=2), "max_new_tokens": 3},
        ),
        ProofCase(
            "three rows", "the middle one ends first", p, q, (*ragged, (1, 1)), {"k": 1, "max_new_tokens": (3, 1, 2)}
        ),
    ]


def _trees() -> list[ProofCase]:
    """Several candidates for a position, in every scheme. Samples are played in every way, so their trees are small."""
    p, q = random_table(3, 91), random_table(3, 92)
    two, draft, ragged = random_table(2, 93), random_table(2, 94), ((0,), (1, 0, 1))
    cut = Sampling(temperature=1.5, top_k=2)
    trees = []
    for scheme in SCHEMES:
        deep, wide = TreeDrafter(draft, (2, 1), scheme), TreeDrafter(q, (3,), scheme)
        double, narrow = TreeDrafter(q, (2,), scheme), TreeDrafter(random_table(2, 95), (2,), scheme)
        pair_of_rows = TreeDrafter(draft, (2,), scheme)
        trees += [
            ProofCase(f"tree, {scheme}", "two levels, several rounds", two, deep, settings={"k": 2}),
            ProofCase(
                f"tree, {scheme}, whole vocabulary",
                "a sibling for each token",
                p,
                wide,
                settings={"k": 1, "max_new_tokens": 3},
            ),
            ProofCase(
                f"tree, {scheme}, cut",
                "temperature and top-k",
                p,
                double,
                settings={"k": 1, "max_new_tokens": 3, "sampling": cut},
            ),
            ProofCase(
                f"tree, {scheme}, greedy", "one text of probability 1", p, double, settings={"k": 1, "sampling": GREEDY}
            ),
            ProofCase(f"tree, {scheme}, eos", "an end token at every node", two, deep, settings={"k": 2, "eos": {1}}),
            ProofCase(
                f"tree, {scheme}, smaller draft vocabulary",
                "tokens that no sibling can be",
                p,
                narrow,
                (0, 2),
                {"k": 1},
            ),
            ProofCase(
                f"tree, {scheme}, two rows",
                "ragged prompts, one row ends before the other",
                two,
                pair_of_rows,
                ragged,
                {"k": 1, "max_new_tokens": (2, 3)},
            ),
        ]
    top = TreeDrafter(draft, (2, 1))
    return [
        *trees,
        ProofCase(
            "tree, two rows, two levels", "accepted paths of several lengths", two, top, ragged, {"max_new_tokens": 4}
        ),
        ProofCase(
            "tree, two rows, two depths", "a row whose tree is cut", two, top, ragged, {"max_new_tokens": (2, 5)}
        ),
        ProofCase("tree, two rows, eos", "rows leave in any order", two, top, ragged, {"eos": {1}}),
        ProofCase("tree, context", "texts that end where the context is full", two, top, (0, 1), {"context": 5}),
        ProofCase(
            "tree, k up and down",
            "a depth that changes from round to round",
            two,
            top,
            settings={"k": UpAndDown(3), "max_new_tokens": 5},
        ),
        ProofCase(
            "tree, best first",
            "a tree of another shape after every text",
            p,
            BestFirstDrafter(q, nodes=4, depth=3, width=2),
            settings={"k": 3, "max_new_tokens": 5},
        ),
        ProofCase(
            "tree, best first, two rows",
            "trees of different shapes, one of them cut",
            two,
            BestFirstDrafter(draft, nodes=3, depth=3, width=2),
            ragged,
            {"k": 3, "max_new_tokens": (2, 4)},
        ),
        ProofCase("tree, the target drafts", "as its own draft", p, TreeDrafter(p, (2, 2, 1)), settings={"k": 3}),
    ]
