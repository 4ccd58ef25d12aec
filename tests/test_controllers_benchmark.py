"""The promises of benchmarks/controllers.py: it runs, continues an interrupted run, and computes the right figures.

The rounds are made by hand. On a clean machine a round takes the time of its k, on a disturbed one a multiple of it.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import specdec_ref as sd

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TOKENS = 30
CHOSEN = {"heuristic": 2, "cost model": 3, "confidence stop": 1}
"""The k that each chooser plays in every hand-made round."""

Ran = dict[str, Any]


@pytest.fixture(scope="module")
def controllers() -> Iterator[Any]:
    """The benchmark as a module; it imports its streams from the folder that it lies in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("controllers")


def microseconds(k: int) -> float:
    return 1000.0 * (1 + 0.1 * k)


def greedy(k: int) -> Ran:
    """A text of 30 tokens of which the draft knows two of three: a round emits min(k, 2) + 1."""
    emitted = min(k, 2) + 1
    rounds = [[k, emitted - 1, microseconds(k)]] * (TOKENS // emitted)
    return {"tokens": TOKENS, "seconds": sum(took for _, _, took in rounds) / 1e6, "rounds": rounds}


def clean(controllers: Any, texts: int = 3) -> dict[str, list[Ran]]:
    ks = {f"k = {k}": k for k in range(controllers.MAX_K + 1)} | CHOSEN
    return {name: [greedy(k)] * texts for name, k in ks.items()}


def disturbed(run: dict[str, list[Ran]], turns: dict[int, set[int]], factor: float) -> dict[str, list[Ran]]:
    """The same run on a machine that was slower in these turns of these texts, for everyone."""
    found: dict[str, list[Ran]] = {name: [] for name in run}
    for name, texts in run.items():
        for i, text in enumerate(texts):
            slow = turns.get(i, set())
            rounds = [[d, a, t * (factor if at in slow else 1)] for at, (d, a, t) in enumerate(text["rounds"])]
            found[name].append({**text, "rounds": rounds, "seconds": sum(t for _, _, t in rounds) / 1e6})
    return found


HALF_AS_FAST = {0: {0, 3, 4, 25}, 2: {1, 8, 9, 26, 27}}
"""Turns that everyone plays, and late ones that only those see who draft little. No class of rounds has most of its
rounds in them, so that its median stays what it was."""


def times(run: dict[str, list[Ran]]) -> list[float]:
    return [took for texts in run.values() for text in texts for _, _, took in text["rounds"]]


def greedy_texts(controllers: Any, n: int = 3) -> list[Any]:
    return [controllers.Text((1, 2, 3), sd.GREEDY)] * n


@pytest.mark.parametrize("own", [False, True], ids=["usual known", "usual from the run itself"])
def test_a_machine_half_as_fast_in_some_turns_is_taken_out_exactly(controllers: Any, own: bool) -> None:
    run = clean(controllers)
    slow = disturbed(run, HALF_AS_FAST, 2.0)
    rescaled = controllers.at_one_pace(slow if own else run, slow)
    assert times(slow) != times(run)
    assert times(rescaled) == pytest.approx(times(run), rel=1e-12)
    assert [[text["tokens"] for text in texts] for texts in rescaled.values()] == [[TOKENS] * 3] * len(run)


def test_what_one_of_them_took_longer_is_its_own(controllers: Any) -> None:
    """A controller that thinks for the time of two rounds in one turn is not excused by the others' pace."""
    run = clean(controllers)
    slow = disturbed({"cost model": run["cost model"]}, {1: {4}}, 3.0)["cost model"]
    rescaled = controllers.at_one_pace(run, run | {"cost model": slow})
    took = [t for _, _, t in rescaled["cost model"][1]["rounds"]]
    assert took[4] == pytest.approx(3 * microseconds(3))
    assert took[3] == took[5] == pytest.approx(microseconds(3))


def test_classes_tell_a_draft_that_is_behind_and_a_texts_first_round(controllers: Any) -> None:
    ran = {"rounds": [[2, 0, 1.0], [0, 0, 1.0], [0, 0, 1.0], [3, 1, 1.0], [3, 1, 1.0]]}
    first, *rest = controllers.classes(ran)
    assert first == (2, True, True)
    assert rest == [(0, False, False), (0, False, False), (3, True, False), (3, False, False)]


def test_mean_tokens_match_the_formula_where_each_position_accepts_half(controllers: Any) -> None:
    """Of 8 rounds of 3 tokens 4, 2, 1, 1 accept 0, 1, 2, 3: α = 1/2 at each position. Beyond 3 nothing is known."""
    ran = {"rounds": [[3, kept, 1.0] for kept in (0, 0, 0, 0, 1, 1, 2, 3)]}
    found = controllers.mean_tokens([ran])
    known = [sd.expected_tokens(0.5, k) for k in range(4)]
    assert found == pytest.approx([*known, *[known[3]] * (controllers.MAX_K - 3)])


def test_mean_tokens_ask_a_position_only_of_rounds_that_came_to_it(controllers: Any) -> None:
    """Rounds of one token say nothing of the second, nor do rejected ones: 3/4, then half of the two that are left."""
    short = {"rounds": [[1, 1, 1.0], [1, 0, 1.0]]}
    long = {"rounds": [[2, 2, 1.0], [2, 1, 1.0]]}
    assert controllers.mean_tokens([short, long])[:3] == pytest.approx([1, 1 + 3 / 4, 1 + 3 / 4 + 3 / 8])


def test_a_summary_of_greedy_texts_counts_tokens(controllers: Any) -> None:
    found = controllers.summary([clean(controllers)] * 2, greedy_texts(controllers))
    speedup = {k: (min(k, 2) + 1) / (1 + 0.1 * k) for k in range(controllers.MAX_K + 1)}
    ks = {f"k = {k}": k for k in speedup} | CHOSEN
    assert (found["repeats"], found["best_k"]) == (2, 2)
    for name, one in found["contenders"].items():
        assert one["speedup"] == pytest.approx(speedup[ks[name]]), name
        assert one["of_best_k"] == pytest.approx(speedup[ks[name]] / speedup[2]), name
        assert one["tokens_per_round"] == pytest.approx(min(ks[name], 2) + 1)
        assert one["drafted_per_round"] == ks[name]
        assert one["rounds"] == 2 * 3 * TOKENS // (min(ks[name], 2) + 1)
        examined = min(ks[name], 3)
        assert one["acceptance"] == (None if not examined else pytest.approx(min(ks[name], 2) / examined))
        steps = 1000 * speedup[ks[name]]  # tokens per second: a step takes a millisecond
        assert one["tokens_per_second_as_it_ran"] == pytest.approx(steps)
    for name in CHOSEN:  # all texts alike: every resample has the same share
        share = found["contenders"][name]["of_best_k"]
        assert found["contenders"][name]["of_best_k_interval"] == pytest.approx((share, share))


def test_a_summary_is_the_same_whether_or_not_the_machine_was_disturbed(controllers: Any) -> None:
    run, texts = clean(controllers), greedy_texts(controllers)
    slow = disturbed(run, HALF_AS_FAST, 2.0)
    calm, rough = (controllers.summary([one], texts)["contenders"] for one in (run, slow))
    for name in controllers.CONTENDERS:
        for share in ("of_best_k", "speedup"):
            assert rough[name][share] == pytest.approx(calm[name][share], rel=1e-9), name
    assert rough["k = 0"]["tokens_per_second_as_it_ran"] < 0.95 * calm["k = 0"]["tokens_per_second_as_it_ran"]


def test_tokens_per_second_on_a_steady_machine_are_as_it_ran(controllers: Any) -> None:
    found = controllers.summary([clean(controllers)], greedy_texts(controllers))
    for one in found["contenders"].values():
        assert one["tokens_per_second"] == pytest.approx(one["tokens_per_second_as_it_ran"])


def test_repeats_at_another_pace_say_what_each_of_them_says(controllers: Any) -> None:
    """In the second repeat the machine is half as fast, and a controller drafts another number. No figure changes."""
    first, later = clean(controllers), disturbed(clean(controllers), {i: set(range(TOKENS)) for i in range(3)}, 2.0)
    first["cost model"][0] = greedy(2)
    found = controllers.summary([first, later], greedy_texts(controllers))
    for name, one in found["contenders"].items():
        assert one["tokens_per_second"] == pytest.approx(one["tokens_per_second_as_it_ran"]), name


def test_luck_on_a_sampled_text_is_not_credited(controllers: Any) -> None:
    """Both play four rounds of two tokens in the same time; one had all eight accepted, which α = 1/2 does not give."""
    texts = [controllers.Text((1, 2, 3), sd.Sampling())]

    def ran(accepted: tuple[int, ...]) -> Ran:
        rounds = [[2, a, microseconds(2)] for a in accepted]
        return {
            "tokens": sum(accepted) + len(accepted),
            "seconds": len(accepted) * microseconds(2) / 1e6,
            "rounds": rounds,
        }

    run = {name: [ran((0, 0, 1, 2))] for name in controllers.CONTENDERS} | {"cost model": [ran((2, 2, 2, 2))]}
    found = controllers.summary([run], texts)["contenders"]
    assert found["cost model"]["of_best_k"] == pytest.approx(1.0)
    as_ran = found["cost model"]["tokens_per_second_as_it_ran"], found["k = 2"]["tokens_per_second_as_it_ran"]
    assert as_ran[0] / as_ran[1] == pytest.approx(12 / 7)


@pytest.mark.parametrize(
    ("workload", "share", "speedup", "kept"),
    [
        ("easy code", 0.97, 1.5, [True]),
        ("easy code", 0.9499, 1.5, [False]),
        ("mixed stream", 1.0, 1.5, [False]),  # faster than any fixed k, not as fast
        ("mixed stream", 1.0001, 1.5, [True]),
        ("useless draft", 0.97, 0.95, [True, True]),
        ("useless draft", 0.97, 0.9499, [True, False]),
        ("useless draft", 0.94, 1.0, [False, True]),
    ],
)
def test_goals_are_kept_or_not(controllers: Any, workload: str, share: float, speedup: float, kept: list[bool]) -> None:
    cost_model = {"of_best_k": share, "speedup": speedup, "of_best_k_interval": (0, 2), "speedup_interval": (0, 3)}
    lines = controllers.goals({workload: {"contenders": {"cost model": cost_model}}})
    assert [line["kept"] for line in lines.values()] == kept
    assert [line["reached"] for line in lines.values()] == [share, speedup][: len(kept)]
    assert [line["interval"] for line in lines.values()] == [(0, 2), (0, 3)][: len(kept)]
    assert next(iter(lines)) == f"{workload}: cost model / best k"


@pytest.mark.slow
def test_the_benchmark_runs_and_continues_an_interrupted_run(controllers: Any, tmp_path: Path) -> None:
    """The second call finds everything on the disk, and measures nothing."""
    command = [sys.executable, str(BENCHMARKS / "controllers.py"), "--quick", "--only", "hard prose", "--device", "cpu"]
    command += ["--runs", str(tmp_path / "runs.jsonl")]  # --quick writes next to them, not over the recorded result
    reports = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        reports.append(json.loads((tmp_path / "runs_quick.json").read_text(encoding="utf-8")))
    assert "hard prose: cost model / best k" in done.stdout
    first, again = reports
    assert first["workloads"] == again["workloads"]
    assert list(first["workloads"]) == ["hard prose"]
    assert list(first["goals"]) == ["hard prose: cost model / best k"]
    everyone = first["workloads"]["hard prose"]["contenders"]
    assert list(everyone) == controllers.CONTENDERS
    assert all(one["tokens_per_second_as_it_ran"] > 0 for one in everyone.values())
    assert everyone["k = 0"]["speedup"] == 1
    assert max(everyone[name]["of_best_k"] for name in controllers.FIXED) == 1
    assert len((tmp_path / "runs_quick.jsonl").read_text(encoding="utf-8").splitlines()) >= 1
