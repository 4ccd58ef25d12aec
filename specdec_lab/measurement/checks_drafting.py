"""Checks of the drafter: does it draft k tokens, and would prompt lookup do as well?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specdec_lab.measurement.diagnosis_setup import LEVEL, Measurement, Setup
from specdec_lab.measurement.findings import Finding
from specdec_lab.measurement.intervals import share_interval
from specdec_lab.measurement.methods import usual_k
from specdec_ref.beyond.suffix import SuffixDrafter
from specdec_ref.beyond.trees import BestFirstDrafter
from specdec_ref.drafting import ModelDrafter, PromptLookupDrafter
from specdec_ref.sampling import GREEDY, SeededRandomness

LOOKUP_AS_GOOD = 0.9
"""The share of the draft's α at which prompt lookup is as good as the draft. It saves draft steps, which cost more than
this difference in tokens. Times are not measured."""

LOOKUP_WORTH = 0.3
"""The smallest α of prompt lookup that is reported. At α = 0.3 a round emits only 1.4 tokens."""

LOOKUP_USELESS = 0.05
"""Share of positions below which prompt lookup costs more for scoring than it gains."""


@dataclass(frozen=True)
class Overlap:
    """How much a text repeats itself.

    Attributes:
        positions: the number of examined positions.
        proposed: those where the last tokens occurred before.
        right: those where the same token followed as before.
    """

    positions: int
    proposed: int
    right: int

    @property
    def share(self) -> float:
        """The share of positions at which prompt lookup would be accepted."""
        return self.right / self.positions if self.positions else 0.0


def lookup_overlap(tokens: Sequence[int], start: int = 1, drafter: PromptLookupDrafter | None = None) -> Overlap:
    """For every position from `start` on: would prompt lookup have proposed the actual token?"""
    drafter = drafter or PromptLookupDrafter()
    tokens, unused = list(tokens), SeededRandomness(0)
    proposed = right = 0
    for at in range(max(1, start), len(tokens)):
        proposal = drafter.propose([tokens[:at]], 1, GREEDY, unused).tokens[0].tolist()
        proposed += bool(proposal)
        right += proposal == [tokens[at]]
    return Overlap(len(tokens) - max(1, start), proposed, right)


def check_k(setup: Setup) -> list[Finding]:
    """Does k take effect: are k tokens drafted?"""
    asked = drafted = rounds = short = cut = 0
    limit = min(setup.max_k, usual_k(replace(setup.pair, drafter=setup.new_drafter()), setup.max_k))
    for recorded in setup.recordings:
        at, new = len(recorded.generation.prompt_tokens), 0
        for r, wanted in zip(recorded.generation.rounds, recorded.requested_k, strict=True):
            due = min(wanted, limit, setup.max_new_tokens - new - 1)  # as many as the text has room for
            space = setup.models.context - at - new
            asked, drafted, rounds = asked + due, drafted + r.depth, rounds + 1
            short += r.depth < min(due, space)
            cut += space < due
            new += len(r.emitted)
    numbers = {"rounds": rounds, "short": short, "cut": cut, "asked": asked, "drafted": drafted}
    setup.measurements["k"] = Measurement(f"{drafted} tokens drafted in {rounds} rounds", numbers)
    findings = []
    confident = isinstance(setup.drafter, ModelDrafter) and setup.drafter.min_confidence > 0
    own_length = isinstance(setup.new_drafter(), (PromptLookupDrafter, SuffixDrafter, BestFirstDrafter))
    if short and not (confident and drafted > asked / 2) and not own_length:
        findings.append(
            Finding(
                "k-not-reached",
                "note" if confident else "warning",
                "Fewer tokens are drafted than k asks for",
                f"{short} of {rounds} rounds drafted fewer; {drafted} tokens in all, {asked} asked for",
                "The drafter stops where it is not confident."
                if confident
                else "The drafter does not use the k that it is given, or has a limit of its own.",
                "Lower min_confidence, or ask for a smaller k."
                if confident
                else "Look at the drafter's propose: it receives k. In transformers, num_assistant_tokens belongs to "
                "the assistant's configuration and is ignored elsewhere.",
                numbers,
            )
        )
    if cut:
        findings.append(
            Finding(
                "k-cut-by-context",
                "note",
                "The context is full before the text is done",
                f"in {cut} of {rounds} rounds fewer than k tokens had room in the models' {setup.models.context}",
                "Drafted tokens need slots too; the shorter context of the two models counts.",
                "Shorter prompts, fewer new tokens, or models with a longer context.",
                numbers,
            )
        )
    return findings


def check_lookup(setup: Setup) -> list[Finding]:
    """Would prompt lookup help these prompts?"""
    overlaps = []
    for recorded in setup.recordings:
        prompt = recorded.generation.prompt_tokens
        overlaps.append(lookup_overlap([*prompt, *recorded.generation.tokens], len(prompt)))
    positions, right = sum(o.positions for o in overlaps), sum(o.right for o in overlaps)
    low, high = share_interval(right, positions, LEVEL)
    share = right / max(1, positions)
    numbers = {"positions": positions, "right": right, "share": share, "interval": (low, high)}
    evidence = f"at {right} of {positions} positions ({share:.0%}) the text continues as it did the last time"
    setup.measurements["lookup"] = Measurement(f"prompt lookup would get {share:.0%} of the tokens right", numbers)
    if isinstance(setup.new_drafter(), PromptLookupDrafter):
        if high >= LOOKUP_USELESS:
            return []
        return [
            Finding(
                "lookup-finds-nothing",
                "warning",
                "These texts repeat too little for prompt lookup",
                evidence,
                "Prompt lookup copies from the text so far, and this text does not repeat itself.",
                "Use a draft model here, or k = 0. Prompt lookup is for summaries, edits and code with context.",
                numbers,
            )
        ]
    if low < max(LOOKUP_WORTH, LOOKUP_AS_GOOD * setup.alpha):
        return []
    return [
        Finding(
            "lookup-would-do",
            "note",
            "Prompt lookup would do here, without a draft model",
            f"{evidence}; of the draft's tokens {setup.alpha:.0%} are accepted, and each costs a step of the draft",
            "The text repeats itself, and prompt lookup costs next to nothing.",
            "Try drafter=PromptLookupDrafter() (vLLM: method 'ngram').",
            numbers | {"alpha": setup.alpha},
        )
    ]
