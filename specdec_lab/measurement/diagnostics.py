"""Diagnosis of a setup, by checks in turn. The first checks need no weights, the last ones need a clock.

The order also reflects their importance. A wrong output matters more than a slow one, and causes come before effects: a
stale cache lowers acceptance, and low acceptance makes decoding slow. So a problem ends the examination. Notes and
warnings do not. If time is limited, the report names the omitted checks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specdec_lab.measurement.budget import OutOfTime
from specdec_lab.measurement.checks_acceptance import check_acceptance, check_stuck
from specdec_lab.measurement.checks_drafting import check_k, check_lookup
from specdec_lab.measurement.checks_models import check_memory, check_thresholds, check_vocabulary, has_thresholds
from specdec_lab.measurement.checks_output import check_caches, check_greedy
from specdec_lab.measurement.checks_speed import check_load, check_speed, has_load
from specdec_lab.measurement.diagnosis_setup import Measurement, Setup, prepare_setup
from specdec_lab.measurement.findings import DOES_NOT_APPLY, LEFT_OUT, NOT_CHECKED, CheckOutcome, Examination, Finding
from specdec_lab.measurement.parts import Models
from specdec_ref.api import Prompt, Watcher
from specdec_ref.decoding import Controller
from specdec_ref.drafting import Drafter
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair
from specdec_ref.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _always(setup: Setup) -> bool:
    return True


@dataclass(frozen=True)
class DoctorCheck:
    """One check of a pair. To add one, add a line to `CHECKS`, where its cause comes before its effects.

    Attributes:
        name: stable, one word.
        question: the question that it answers, in a few words. A healthy pair gets 'yes'.
        run: the check. It returns findings, or None if it does not apply. A SpecdecError that it raises becomes a
            finding. A slow check has to observe the budget of its setup.
        weight: its share of the time, relative to the checks after it. 0: it takes almost no time and is always made.
        applies: whether time has to be reserved for it.
        after: the name of a check whose generations it uses. If that check was left out, this one is left out too.
    """

    name: str
    question: str
    run: Callable[[Setup], list[Finding] | None]
    weight: float = 1
    applies: Callable[[Setup], bool] = _always
    after: str = ""


CHECKS = (
    DoctorCheck("vocabulary", "same ids for the same strings?", check_vocabulary, weight=0),
    DoctorCheck("memory", "enough memory for both models?", check_memory, weight=0),
    DoctorCheck("caches", "caches correct after rejections?", check_caches, weight=2),
    DoctorCheck("thresholds", "long texts scored as in one pass?", check_thresholds, weight=3, applies=has_thresholds),
    DoctorCheck("greedy", "same greedy output as without drafts?", check_greedy, weight=4),
    DoctorCheck("acceptance", "as many tokens accepted as expected?", check_acceptance, weight=5),
    DoctorCheck("stuck", "acceptance neither 0 nor 100 %?", check_stuck, after="acceptance"),
    DoctorCheck("k", "as many tokens drafted as asked for?", check_k, after="acceptance"),
    DoctorCheck("lookup", "better than prompt lookup?", check_lookup, after="acceptance"),
    DoctorCheck("speed", "faster than without drafts?", check_speed, weight=10),
    DoctorCheck("load", "also faster at this batch size?", check_load, weight=6, applies=has_load),
)

FAILED = "generation-fails"


def examine(setup: Setup, on_check: Callable[[str], None] = lambda question: None) -> Examination:
    """Make the checks of `CHECKS` in turn, within the time of the setup.

    on_check: receives the question of each check before it is made.
    """
    outcomes: list[CheckOutcome] = []
    ended_by = ""
    setup.budget.start()
    for i, check in enumerate(CHECKS):
        if ended_by:
            outcomes.append(CheckOutcome(check.name, check.question, why=f"{NOT_CHECKED}, because of: {ended_by}"))
            continue
        if check.weight and not check.applies(setup):
            outcomes.append(CheckOutcome(check.name, check.question, why=DOES_NOT_APPLY))
            continue
        if any(outcome.check == check.after and outcome.why == LEFT_OUT for outcome in outcomes):
            outcomes.append(CheckOutcome(check.name, check.question, why=LEFT_OUT))
            continue
        on_check(check.question)
        outcome = _make(check, setup, _share(i, setup))
        outcomes.append(outcome)
        ended_by = next((finding.title for finding in outcome.findings if finding.severity == "problem"), "")
    return Examination(tuple(outcomes), setup.budget.seconds)


def _share(i: int, setup: Setup) -> float:
    """The share of the remaining time that check i may use. The rest is reserved for the checks after it."""
    if not CHECKS[i].weight:
        return 1
    return CHECKS[i].weight / sum(check.weight for check in CHECKS[i:] if check.applies(setup))


def _make(check: DoctorCheck, setup: Setup, share: float) -> CheckOutcome:
    """Make one check and record its outcome."""
    setup.measurements.pop(check.name, None)
    setup.left_out.clear()
    began = time.perf_counter()
    findings: list[Finding] | None = None
    why = ""
    try:
        with setup.budget.part(share):
            if check.weight:
                setup.budget.check()
            findings = check.run(setup)
        if findings is None:
            why = DOES_NOT_APPLY
    except OutOfTime:
        why = LEFT_OUT
    except (
        SpecdecError,
        AssertionError,
        RuntimeError,
    ) as error:  # PyTorch raises RuntimeError, also when it is out of memory
        findings = [_failed(check, error)]
    seconds = time.perf_counter() - began
    measured = setup.measurements.get(check.name, Measurement("", {}))
    left_out = () if why else tuple(setup.left_out)
    return CheckOutcome(
        check.name, check.question, tuple(findings or ()), why, seconds, measured.words, measured.numbers, left_out
    )


def diagnose(
    pair: Pair,
    *,
    prompts: Sequence[Prompt] | None = None,
    k: int = 4,
    sampling: Sampling | None = None,
    max_new_tokens: int = 48,
    controller: Controller | None = None,
    drafter: Drafter | None = None,
    verification: str = "token",
    monitor: Watcher | None = None,
    batch: int = 1,
    available: int | None = None,
    context: int | None = None,
    draft_tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> list[Finding]:
    """Examine a setup. Returns findings, causes before effects; for a healthy pair, an empty list.

    There is no time limit, because findings cannot list omitted checks; `specdec doctor` has a limit. The shipped pair
    takes less than a minute.

    Args:
        pair: what `load_pair` returned.
        prompts: texts or token ids; default four held-out texts.
        k: tokens drafted per round.
        sampling: default temperature 1.
        max_new_tokens: of each generation, ≥ 8.
        controller: chooses k instead, and observes every generation.
        drafter: default the pair's own, else its draft model.
        verification: 'token' or 'block', as in `generate_speculative`.
        monitor: observes every generation.
        batch: sequences at once that the pair is meant for.
        available: bytes for everything; default what the device has.
        context: tokens of each sequence, prompt and new ones, that the pair is meant for; default the length of the
            generations here.
        draft_tokenizer: default the one where the draft came from.

    Raises:
        SpecdecError: for arguments that it cannot use.
    """
    setup = prepare_setup(
        Models.of(pair, draft_tokenizer),
        prompts=prompts,
        k=k,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        controller=controller,
        drafter=drafter,
        verification=verification,
        monitor=monitor,
        batch=batch,
        available=available,
        context=context,
    )
    return examine(setup).findings


def _failed(check: DoctorCheck, error: Exception) -> Finding:
    return Finding(
        FAILED,
        "problem",
        "Decoding fails",
        f"{type(error).__name__} at '{check.question}': {' '.join(str(error).split())[:300]}",
        "A model returns no probabilities that a token can be sampled from, or the set-up breaks a rule of the loop.",
        "Fix what the message names; the checks before this one passed.",
        {"check": check.name},
    )
