"""What is wrong with this set-up? Checks in turn, from what needs no weights to what takes a stop-watch.

A problem ends the examination: what follows would only show it again (a stale cache lowers acceptance, low acceptance
makes slow, …). Notes and warnings do not.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec_ref.control import Controller
from specdec_ref.decoding import Prompt
from specdec_ref.drafting import Drafter
from specdec_ref.errors import SpecdecError
from specdec_ref.measurement.case import Case, Seen, open_case
from specdec_ref.measurement.checks_acceptance import check_acceptance, check_stuck
from specdec_ref.measurement.checks_drafting import check_k, check_lookup
from specdec_ref.measurement.checks_models import check_memory, check_vocabulary
from specdec_ref.measurement.checks_output import check_caches, check_greedy
from specdec_ref.measurement.checks_speed import check_load, check_speed
from specdec_ref.measurement.findings import NOT_CHECKED, Examination, Finding, Outcome
from specdec_ref.measurement.parts import Models
from specdec_ref.models import Pair
from specdec_ref.monitoring import Watcher
from specdec_ref.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Check:
    """A name, the question that it answers, and the function that does: findings, or None where it does not apply."""

    name: str
    question: str
    run: Callable[[Case], list[Finding] | None]


CHECKS = (
    Check("vocabulary", "same ids for the same strings?", check_vocabulary),
    Check("memory", "room for both models?", check_memory),
    Check("caches", "caches right after rejections?", check_caches),
    Check("greedy", "same greedy output as without?", check_greedy),
    Check("acceptance", "as much accepted as can be?", check_acceptance),
    Check("stuck", "acceptance neither 0 nor 100 %?", check_stuck),
    Check("k", "as many drafted as asked for?", check_k),
    Check("lookup", "is a draft model better than a look-up?", check_lookup),
    Check("speed", "faster than without?", check_speed),
    Check("load", "still so at this batch size?", check_load),
)

FAILED = "generation-fails"


def examine(case: Case, on_check: Callable[[str], None] = lambda question: None) -> Examination:
    """Make the checks of `CHECKS` in turn. on_check hears each question before it is answered."""
    outcomes: list[Outcome] = []
    ended_by = ""
    for check in CHECKS:
        if ended_by:
            outcomes.append(Outcome(check.name, check.question, why=f"{NOT_CHECKED}, because of: {ended_by}"))
            continue
        on_check(check.question)
        case.seen.pop(check.name, None)
        began = time.perf_counter()
        try:
            findings = check.run(case)
        except (SpecdecError, AssertionError, RuntimeError) as error:  # RuntimeError: PyTorch's own, out of memory too
            findings = [_failed(check, error)]
        seconds = time.perf_counter() - began
        why = "" if findings is not None else "does not apply"
        seen = case.seen.get(check.name, Seen("", {}))
        outcome = Outcome(check.name, check.question, tuple(findings or ()), why, seconds, seen.words, seen.numbers)
        outcomes.append(outcome)
        ended_by = next((finding.title for finding in findings or () if finding.severity == "problem"), "")
    return Examination(tuple(outcomes))


def diagnose(
    pair: Pair,
    *,
    prompts: Sequence[Prompt] | None = None,
    k: int = 4,
    sampling: Sampling | None = None,
    max_new_tokens: int = 48,
    controller: Controller | None = None,
    drafter: Drafter | None = None,
    monitor: Watcher | None = None,
    batch: int = 1,
    available: int | None = None,
    context: int | None = None,
    draft_tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Finding]:
    """What is wrong with decoding like this, gravest cause first; nothing for a healthy pair.

    prompts: default four held-out ones. k: tokens drafted per round; controller: chooses instead, and hears of all that
    is played. sampling: default temperature 1. max_new_tokens: of each generation, ≥ 8. drafter: default the pair's
    draft model. monitor: is shown what is played. batch: sequences at once that this is meant for. available: bytes for
    everything; default what the device has. context: tokens of each sequence, prompt and new ones, that this is meant
    for; default no more than what is played. draft_tokenizer: default the one where the draft came from. Under a minute
    for the pair that ships. Raises SpecdecError for arguments that it cannot use.
    """
    case = open_case(
        Models.of(pair, draft_tokenizer),
        prompts=prompts,
        k=k,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        controller=controller,
        drafter=drafter,
        monitor=monitor,
        batch=batch,
        available=available,
        context=context,
    )
    return examine(case).findings


def _failed(check: Check, error: Exception) -> Finding:
    return Finding(
        FAILED,
        "problem",
        "Decoding fails",
        f"{type(error).__name__} at '{check.question}': {' '.join(str(error).split())[:300]}",
        "A model gives no numbers that a token can be drawn from, or the set-up breaks a rule of the loop.",
        "Mend what the message names; the checks before this one passed.",
        {"check": check.name},
    )
