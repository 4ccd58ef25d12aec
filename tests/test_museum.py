"""The promises of the museum: every wrong version is one small change that is caught by the test meant for it, and by
the exact proof where it changes the distribution; the right code passes every test; and no mutation remains in place.

The fast tests compute only the cells of the matrix that are promised: the exact proof of every wrong version, the test
meant for it, and every test of the right code. Tests of the whole matrix are marked `slow`. Tests that use randomness
have fixed seeds; with a new seed the right code would fail them once in a million times.
"""

import difflib
import importlib
import inspect
import io
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from specdec_lab.cli.main import main
from specdec_lab.equivalence.equivalence_figures import museum_figure
from specdec_lab.equivalence.museum import CHECKS, RIGHT, Matrix, MuseumCheck, checks, matrix
from specdec_lab.equivalence.museum_checks import PROMPTS, Observation, proofs
from specdec_lab.equivalence.museum_empirical import Trial, refuted, trials
from specdec_lab.equivalence.mutants import MUTANTS, Mutant, mutant
from specdec_lab.equivalence.mutants_randomness import RANDOMNESS
from specdec_lab.equivalence.statistics import fit
from specdec_lab.equivalence.tables import random_table
from specdec_lab.equivalence.tiny import tiny_pair
from specdec_ref import (
    FixedK,
    ModelDrafter,
    Pair,
    Sampling,
    SeededRandomness,
    TransformersModel,
    acceptance,
    decoding,
)
from specdec_ref.acceptance import residual
from specdec_ref.errors import SpecdecError

ROOT = Path(__file__).parents[1]
P, Q = torch.tensor([0.6, 0.4]), torch.tensor([0.3, 0.7])
by_name = pytest.mark.parametrize("wrong", MUTANTS, ids=lambda m: m.name)
CHECK = {check.name: check for check in CHECKS}
SMALL = ("residual-is-target", "k-ignored")
"""One wrong version that changes the distribution and one that only loses speed: a matrix that is quick to compute."""


@cache
def cell(name: str, check: str) -> Observation:
    """One cell of the matrix: what a check reports about a wrong version, or about the right code."""
    if name == RIGHT:
        return CHECK[check].observe()
    with mutant(name).installed():
        return CHECK[check].observe()


@pytest.fixture(scope="module")
def small() -> Matrix:
    """A matrix with few rows, for tests of how a matrix is shown."""
    return matrix([mutant(name) for name in SMALL])


@pytest.fixture(scope="module")
def result() -> Matrix:
    """The whole matrix, 35 s of CPU time. Tests that need it are marked `slow`."""
    return matrix()


@pytest.fixture(scope="module")
def museum_page() -> Iterator[Any]:
    """benchmarks/museum_page.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("museum_page")


@pytest.fixture(autouse=True)
def _nothing_stays_behind() -> Iterator[None]:
    before = [m.function.__code__ for m in MUTANTS]
    yield
    assert [m.function.__code__ for m in MUTANTS] == before


@by_name
def test_the_test_meant_for_it_catches_it_and_not_by_a_crash(wrong: Mutant) -> None:
    outcome = cell(wrong.name, wrong.caught_by)
    assert outcome.caught
    assert not outcome.evidence.startswith("crashed")


@by_name
def test_the_exact_proof_refutes_what_changes_the_distribution_and_nothing_else(wrong: Mutant) -> None:
    """The proof replaces `SeededRandomness`, so it cannot see inside that."""
    seen = wrong.effect == "distribution" and not wrong.in_randomness
    outcome = cell(wrong.name, "exact")
    assert outcome.caught == seen, outcome.evidence


def test_the_proof_cannot_see_inside_the_random_numbers() -> None:
    assert [m.name for m in MUTANTS if m.in_randomness] == ["u-at-most-ratio", "noise-shared", "u-shared-in-row"]


@pytest.mark.parametrize("wrong", RANDOMNESS, ids=lambda m: m.name)
@pytest.mark.parametrize("check", ["exact", "boundary", "acceptance", "tokens-per-round"])
def test_other_tests_do_not_see_dependent_random_numbers(wrong: Mutant, check: str) -> None:
    """So a test of the joint distribution is needed."""
    assert not cell(wrong.name, check).caught


def test_of_a_shared_u_every_single_token_has_its_true_distribution() -> None:
    """The first token in 20,000 texts of one position is right: a χ² test, which fails once in 10⁶ seeds."""
    p = random_table(3, 1)
    with mutant("u-shared-in-row").installed():
        rows = [decoding.Row((0,), 2) for _ in range(20_000)]
        loop = decoding.speculate(
            p, ModelDrafter(random_table(3, 2)), list(rows), FixedK(1), Sampling(), SeededRandomness(0)
        )
        for _ in loop:
            pass
    counts = np.bincount([row.new[0] for row in rows], minlength=3)
    assert fit([counts], [p.probabilities((0,)).numpy()]).p_value > 1e-6


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.name)
def test_the_right_code_passes_every_test(check: MuseumCheck) -> None:
    outcome = cell(RIGHT, check.name)
    assert not outcome.caught, outcome.evidence


@pytest.mark.slow
def test_the_bugs_are_silent_and_no_test_catches_one_by_a_crash(result: Matrix) -> None:
    assert not [key for key, outcome in result.outcomes.items() if outcome.evidence.startswith("crashed")]


def test_every_test_of_ours_is_meant_for_a_wrong_version() -> None:
    assert {m.caught_by for m in MUTANTS} == {c.name for c in CHECKS if not c.public}


@pytest.mark.parametrize(
    "name", "residual-is-target residual-of-wrong-row ratio-squared u-shared-in-round u-constant".split()
)
def test_the_criteria_of_transformers_test_pass_the_ones_that_are_known_to_pass_it(name: str) -> None:
    assert not cell(name, "transformers").caught


@pytest.mark.parametrize("name", ["ratio-floor", "bonus-from-draft"])
def test_the_criteria_of_vllms_test_pass_a_leak_of_q_and_never_look_at_the_bonus_token(name: str) -> None:
    assert not cell(name, "vllm").caught


@pytest.mark.slow
def test_each_public_test_catches_some(result: Matrix) -> None:
    for check in ("transformers", "vllm"):
        assert sum(result.caught(m.name, check) for m in MUTANTS) >= 5


@pytest.mark.slow
def test_nothing_fails_that_the_museum_promises(result: Matrix) -> None:
    assert result.failures() == []


def test_a_wrong_version_that_its_test_lets_pass_is_reported(small: Matrix) -> None:
    tampered = {
        **small.outcomes,
        ("k-ignored", "k"): Observation(False, ""),
        (RIGHT, "exact"): Observation(True, "seen"),
    }
    said = Matrix(small.mutants, small.checks, tampered).failures()
    assert said == ["the correct code fails 'exact': seen", "k-ignored passes 'k', which has to catch it"]


def test_there_are_at_least_22_of_both_kinds_with_names_of_their_own() -> None:
    names = [m.name for m in MUTANTS]
    assert len(set(names)) == len(names) >= 22
    assert {m.effect for m in MUTANTS} == {"distribution", "speed"}
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)


@by_name
def test_every_field_is_filled(wrong: Mutant) -> None:
    assert all(isinstance(value, str) and value.strip() == value and value for value in vars(wrong).values())
    assert wrong.what.endswith(".")
    assert wrong.output.endswith(".")
    assert wrong.caught_by in {c.name for c in CHECKS}


@by_name
def test_each_says_where_it_was_seen_or_that_it_is_by_reasoning(wrong: Mutant) -> None:
    in_public = re.search(r"[\w.-]+/[\w.-]+", wrong.seen) is not None
    assert in_public or wrong.by_reasoning
    assert wrong.seen.startswith("by reasoning") == wrong.by_reasoning


def test_the_museum_counts_what_was_seen_and_what_is_by_reasoning(small: Matrix) -> None:
    assert small.origins() == "2 of 2 wrong versions were seen in public projects, 0 are by reasoning"
    every = Matrix(MUTANTS, (), {}).origins()
    assert every == "36 of 55 wrong versions were seen in public projects, 19 are by reasoning"


@by_name
def test_it_is_one_small_change_in_one_place(wrong: Mutant) -> None:
    assert len(wrong.wrong.splitlines()) <= 5
    assert len(wrong.right.splitlines()) <= 7
    assert wrong.right != wrong.wrong
    assert max(map(len, wrong.wrong.splitlines())) <= 112  # at the place where it goes it has an indent
    right = inspect.getsource(wrong.function).splitlines()
    assert abs(len(wrong.source.splitlines()) - len(right)) <= 5


@by_name
def test_its_source_is_what_python_shows_while_it_is_installed(wrong: Mutant) -> None:
    source = wrong.source
    with wrong.installed():
        assert inspect.getsource(wrong.function) == source


@by_name
def test_its_difference_is_what_divides_the_two_sources(wrong: Mutant) -> None:
    right = textwrap.dedent(inspect.getsource(wrong.function)).splitlines()
    changed = [line for line in difflib.ndiff(right, wrong.source.splitlines()) if line[0] in "+-"]
    shown = wrong.difference.splitlines()
    assert {line[0] + line[2:].strip() for line in changed} <= {line[0] + line[1:].strip() for line in shown}


def test_it_takes_effect_wherever_the_function_was_imported_to() -> None:
    right = residual(P, Q).tolist()
    with mutant("residual-is-target").installed():
        assert torch.equal(residual(P, Q), P)
        assert torch.equal(acceptance.residual(P, Q), P)
        assert decoding.verify.__globals__["residual"] is residual
    assert residual(P, Q).tolist() == right != P.tolist()


def test_the_right_code_is_back_after_an_error() -> None:
    right = residual(P, Q)
    with pytest.raises(KeyError), mutant("residual-is-target").installed():  # noqa: PT012
        assert torch.equal(residual(P, Q), P)
        raise KeyError
    assert torch.equal(residual(P, Q), right)


def test_two_of_one_function_cannot_be_installed_together_and_the_first_stays() -> None:
    with mutant("residual-is-target").installed():
        with pytest.raises(SpecdecError, match="already changed, by <mutant residual-is-target>"):
            mutant("residual-absolute").installed().__enter__()
        assert torch.equal(residual(P, Q), P)


def test_two_of_different_functions_can() -> None:
    with mutant("residual-is-target").installed(), mutant("ratio-inverted").installed():
        assert torch.equal(residual(P, Q), P)
        assert acceptance.acceptance_probability(P, Q)[0] == 0.5


@pytest.mark.parametrize(("right", "times"), [("rest = p", 0), ("# a line that is not there", 0)])
def test_a_change_that_does_not_fit_the_code_any_more_says_so(right: str, times: int) -> None:
    outdated = replace(mutant("residual-is-target"), right=right)
    with pytest.raises(SpecdecError, match=f"its right lines fit acceptance.residual {times} times; takes once"):
        outdated.installed().__enter__()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(SpecdecError, match=r"name='nonsense': takes one of ratio-squared, .*, k-ignored"):
        mutant("nonsense")


def test_the_proof_is_made_on_tables_and_on_a_real_transformer_with_its_cache() -> None:
    names = [name for name, _ in proofs()]
    assert names[-1] == "a transformer, two rows"
    assert len(names) >= 8


def test_real_models_reject_some_and_accept_whole_rounds_in_the_test_of_the_cache() -> None:
    """Otherwise that test could not detect leftovers of a rejection, or tokens missing after a full round."""
    models = [TransformersModel(model) for model in tiny_pair()]
    rows = [decoding.Row(tuple(prompt), 24) for prompt in PROMPTS]
    loop = decoding.speculate(models[0], ModelDrafter(models[1]), rows, FixedK(3), Sampling(), SeededRandomness(0))
    assert sum(1 for _ in loop) > 5
    accepted = [[r.accepted for r in row.rounds] for row in rows]
    assert {n for row in accepted for n in row} == {0, 1, 2, 3}
    assert any(len(set(in_turn)) > 1 for in_turn in zip(*accepted, strict=False)), "the batch becomes ragged"


@pytest.mark.slow
def test_the_page_in_the_docs_is_what_the_command_writes(result: Matrix, museum_page: Any) -> None:
    docs = ROOT / "docs"
    assert (docs / "museum.md").read_text(encoding="utf-8") == museum_page.page(result, *museum_page.recorded(docs))


def test_the_picture_in_the_docs_has_every_wrong_version(small: Matrix, museum_page: Any) -> None:
    assert "(museum.svg)" in museum_page.page(small)
    picture = (ROOT / "docs" / "museum.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {m.name} -->" in picture for m in MUTANTS)  # text becomes paths; comments hold it as text


RECORD = {
    "mutants": {
        "ratio-floor": {
            "tv": -0.0045, "trial": "temperature 1", "trials": {"temperature 1": {"tv_interval": [0.0, 0.054]}},
        },
        "ratio-squared": {
            "tv": 0.08, "trial": "temperature 1", "samples": 8000, "refuted": 20, "runs": 20, "p_values": [0.0] * 20,
            "trials": {"temperature 1": {"tv_interval": [0.061, 0.12]}},
        },
    },
    "right_code": {
        "temperature 1": {
            "p_values": [0.5] * 200, "kolmogorov_smirnov": {"p_value": 0.4}, "false_alarms": 1,
            "false_alarm_stated": 0.001,
        }
    },
    "settings": {"right_samples": 2000},
}  # fmt: skip


def test_the_page_shows_what_was_recorded_on_the_pair_that_ships(small: Matrix, museum_page: Any) -> None:
    text = museum_page.page(small, RECORD)
    assert "| [ratio-squared](#ratio-squared) | 0.080 | 0.061 to 0.120 | temperature 1 | 8,000 | 20 of 20 |" in text
    assert "| [ratio-floor](#ratio-floor) | 0.000 | 0.000 to 0.054 | temperature 1 |  |  |" in text  # never below 0
    assert "200 runs of 2,000 samples, 1 refuted, at a stated rate of 0.001" in text


def test_the_page_shows_how_often_dependent_random_numbers_were_refuted(small: Matrix, museum_page: Any) -> None:
    entry = {**RECORD["mutants"]["ratio-squared"], "refuted": 19, "samples": 64_000}
    text = museum_page.page(small, {**RECORD, "mutants": {m.name: entry for m in RANDOMNESS}})
    assert "- `u-shared-in-row` in 19 of 20 runs of 64,000 samples, at temperature 1." in text


def test_the_page_links_to_where_a_wrong_version_was_seen(museum_page: Any) -> None:
    said = museum_page.linked("huggingface/transformers #40976, since #40657; p/q of romsto/Speculative-Decoding")
    issues = "https://github.com/huggingface/transformers/issues/"
    assert said == (
        f"[huggingface/transformers #40976]({issues}40976), since [#40657]({issues}40657); "
        "p/q of [romsto/Speculative-Decoding](https://github.com/romsto/Speculative-Decoding)"
    )


def test_the_page_shows_what_the_test_says_of_engines(
    small_pair: Pair, both: tuple[Trial, ...], small: Matrix, museum_page: Any
) -> None:
    facts = both[0].run().to_dict() | {"sampling": {"temperature": 1.0, "top_k": 40, "top_p": None}}
    text = museum_page.page(small, None, [facts, facts | {"consistent": False}])
    assert "- our loop, k = 2, temperature 1, top-k 40: consistent with the target, p = " in text
    assert "over 6,000 samples of 4 tokens. TV within 0.000 and" in text
    assert "- our loop, k = 2, temperature 1, top-k 40: **not the target**" in text


def test_what_is_recorded_keeps_the_promise(museum_page: Any) -> None:
    """Of the run that is in the repository, if one is."""
    record, engines, calibration = museum_page.recorded(ROOT / "docs")
    assert all(facts["samples"] == facts["asked"] for facts in engines)
    if calibration is not None:
        for rate, alarms in calibration["false alarms, by stated rate"].items():
            assert alarms["low"] <= float(rate) <= alarms["high"]
        found = calibration["found"]["detectable TV, worst direction"]
        assert found["low"] <= calibration["stated_power"] <= found["high"]
    if record is not None:
        measured = {m.name for m in MUTANTS if m.effect == "distribution" and not m.only_beyond}
        assert measured <= record["mutants"].keys()
        assert all(e["refuted"] == len(e["p_values"]) == 20 for e in record["mutants"].values() if e["tv"] >= 0.03)
        assert record["verdict"]["p_values_uniform"]
        assert record["verdict"]["false_alarms_as_stated"]
        assert all(record["mutants"][m.name]["refuted"] == 20 for m in RANDOMNESS)


@pytest.mark.slow
def test_the_page_shows_every_wrong_version_and_how_it_was_made(result: Matrix, museum_page: Any) -> None:
    text = museum_page.page(result)
    for m in MUTANTS:
        assert text.count(f"### {m.title}\n") == 1
        assert f"```diff\n{m.difference}\n```" in text
        assert museum_page.linked(m.seen.removeprefix("by reasoning")) in text
    assert "python benchmarks/museum_page.py docs" in text.partition("\n\n")[2][:200]


@pytest.mark.slow
def test_the_table_fits_80_columns_with_all_its_names(result: Matrix) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    assert all(f" {name} " in text for name in [*(m.name for m in MUTANTS), RIGHT])
    assert text.count("(✓)") >= len(MUTANTS)


@pytest.mark.slow
def test_the_matrix_as_json_holds_every_outcome(result: Matrix) -> None:
    data = json.loads(json.dumps(result.to_dict()))
    assert data["outcomes"].keys() == {RIGHT, *(m.name for m in MUTANTS)}
    assert data["outcomes"]["k-ignored"]["k"]["caught"] is True
    assert data["failures"] == []


@pytest.mark.slow
def test_the_picture_has_a_mark_in_every_cell_and_says_what_it_shows(result: Matrix) -> None:
    figure = museum_figure(result)
    (axes,) = figure.axes
    marks = [text.get_text() for text in axes.texts if len(text.get_text()) == 1]
    assert len(marks) == (len(MUTANTS) + 1) * len(CHECKS)
    assert marks.count("✓") == sum(outcome.caught for outcome in result.outcomes.values())
    assert [label.get_text() for label in axes.get_yticklabels()] == [*(m.name for m in MUTANTS), RIGHT]
    assert f"{len(MUTANTS)} of {len(MUTANTS)}" in axes.get_title(loc="left")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`specdec equivalence --museum …` with this matrix as what it finds: its exit status and what it prints."""

    def run(found: Matrix, *arguments: str) -> tuple[int, str]:
        module = sys.modules[Matrix.__module__]  # the package calls a function by that name
        monkeypatch.setattr(module, "matrix", lambda **options: found)
        monkeypatch.setattr(sys, "argv", ["specdec", "equivalence", "--museum", *arguments])
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code or 0, capsys.readouterr().out  # type: ignore[return-value]

    return run


@pytest.mark.slow
def test_the_command_shows_the_matrix_and_draws_it(
    command: Callable[..., tuple[int, str]], result: Matrix, tmp_path: Path
) -> None:
    status, out = command(result, "--figure", str(tmp_path / "museum.png"))
    assert status == 0
    assert "exact: 42 of 45 that change the distribution, 0 of 10 that lose speed" in out
    assert "36 of 55 wrong versions were seen in public projects, 19 are by reasoning" in out
    assert (tmp_path / "museum.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_ends_with_1_where_a_promise_is_broken(
    command: Callable[..., tuple[int, str]], small: Matrix
) -> None:
    tampered = Matrix(small.mutants, small.checks, {**small.outcomes, ("k-ignored", "k"): Observation(False, "")})
    status, out = command(tampered)
    assert status == 1
    assert "k-ignored passes 'k', which has to catch it" in out
    assert command(tampered, "--json")[0] == 1
    status, out = command(small, "--json")
    assert status == 0
    assert json.loads(out)["consistent"] is True


def test_cells_are_counted_as_they_are_filled() -> None:
    heard = []
    small = matrix(MUTANTS[:0], on_cell=lambda done, of: heard.append((done, of)))
    assert heard == [(i + 1, len(CHECKS)) for i in range(len(CHECKS))]
    assert small.failures() == []


@pytest.fixture(scope="module")
def small_pair() -> Pair:
    target, draft = tiny_pair()
    return Pair(target, draft, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def both(small_pair: Pair) -> tuple[Trial, ...]:
    return trials(small_pair, [[5, 9], [8, 3, 1]], samples=6_000)


def test_the_empirical_test_passes_the_right_code(small_pair: Pair, both: tuple[Trial, ...]) -> None:
    """Two tests with a false alarm once in 1,000 times each, with a fixed seed."""
    outcome = refuted(small_pair, both)
    assert not outcome.caught, outcome.evidence


@pytest.mark.parametrize("name", "residual-is-target q-returned-raw early-stop-discards greedy-as-argmax".split())
def test_the_empirical_test_sees_the_rule_the_temperature_the_draft_and_greedy(
    name: str, small_pair: Pair, both: tuple[Trial, ...]
) -> None:
    with mutant(name).installed():
        assert refuted(small_pair, both).caught


@pytest.mark.slow
@pytest.mark.parametrize("wrong", RANDOMNESS, ids=lambda m: m.name)
def test_the_empirical_test_refutes_dependent_random_numbers_in_20_of_20_runs(wrong: Mutant, small_pair: Pair) -> None:
    """20,000 samples of four tokens at temperature 1. A correct sampler is refuted once in 1,000 runs."""
    trial, _ = trials(small_pair, [[5, 9], [8, 3, 1]], samples=20_000)
    with wrong.installed():
        refuted_runs = sum(not trial.run(seed).consistent for seed in range(20))
    assert refuted_runs == 20


def test_the_full_matrix_has_the_empirical_test_beside_the_others(small_pair: Pair) -> None:
    names = [check.name for check in checks(full=True, pair=small_pair, samples=6_000, prompts=[[5, 9]])]
    fast = [check.name for check in CHECKS]
    assert names == [*fast[:10], "empirical", *fast[10:]]
