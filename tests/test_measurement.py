"""The promises of the measurements: contenders take turns, ratios are taken where both ran, the script runs."""

import copy
import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import specdec_ref as sd
from specdec_lab.measurement.benchmark import Sample, race, race_length, repeated_share
from specdec_lab.measurement.costs import Costs, measure_costs

ROOT = Path(__file__).parents[1]


def test_contenders_take_turns_on_every_prompt() -> None:
    ran: list[tuple[str, int, int]] = []

    def contender(name: str, seconds: float):
        def run(prompt: list[int], seed: int) -> Sample:
            ran.append((name, prompt[0], seed))
            return Sample((1, 2, 3, 4), seconds)

        return run

    heard: list[str] = []
    everyone = {"slow": contender("slow", 2.0), "fast": contender("fast", 0.5)}
    results = race(everyone, [[7], [8]], baseline="slow", repeats=2, on_sample=heard.append)
    timed = ran[2:]  # after one warm-up of each
    assert timed == [(n, p, s) for s in (0, 1) for p in (7, 8) for n in ("slow", "fast")]
    assert len(heard) == len(ran) == race_length(2, 2, 2)
    assert results["fast"].speedup == 4.0
    assert results["slow"].tokens_per_second == 2.0


def test_speedup_is_the_median_of_ratios_not_the_ratio_of_medians() -> None:
    """A machine that slows down ten times half-way leaves the ratio alone."""
    clock = iter([1, 1, 1, 0.5, 10, 5, 10, 5, 10, 5])  # warm-up of both, then pairs

    def run(prompt: list[int], seed: int) -> Sample:
        return Sample((0,), next(clock))

    assert race({"a": run, "b": run}, [[0]], baseline="a", repeats=4)["b"].speedup == 2.0


@pytest.mark.parametrize(
    ("tokens", "share"), [(range(20), 0.0), ([5] * 20, 12 / 13), ([], 0.0), ([1] * 8, 0.0), ([1, 2] * 8, 7 / 9)]
)
def test_repeated_share_counts_sequences_that_occurred_before(tokens: list[int], share: float) -> None:
    assert repeated_share(list(tokens)) == pytest.approx(share)


def test_costs_are_ratios_to_one_target_step() -> None:
    costs = Costs(target_step=2.0, draft_step=0.5, scoring={1: 2.0, 2: 3.0, 4: 5.0}, context=100)
    assert (costs.c, costs.v(1), costs.v(2), costs.v(3)) == (0.25, 1.0, 1.5, 2.0)
    with pytest.raises(sd.SpecdecError, match="n=9"):
        costs.v(9)


def test_costs_show_themselves_in_terminal_and_notebook() -> None:
    costs = Costs(target_step=0.002, draft_step=0.0005, scoring={1: 0.002, 2: 0.003, 5: 0.005}, context=100)
    out = StringIO()
    Console(file=out, width=80).print(costs)
    for shown in (out.getvalue(), costs._repr_html_()):
        assert all(words in shown for words in ("after 100 tokens", "draft, one token: c", "0.25", "v(5)", "2.50"))


def test_a_draft_step_of_the_shipped_pair_costs_less_than_a_target_step() -> None:
    """The two differ by a factor of seven, so no noise of the machine can turn this round."""
    costs = measure_costs(sd.load_pair(device="cpu"), max_k=2, context=64, repeats=5)
    assert costs.c < 1
    assert costs.v(1) == 1.0


def test_costs_need_room_and_a_draft() -> None:
    pair = sd.load_pair(device="cpu")
    with pytest.raises(sd.SpecdecError, match="context=1024"):
        measure_costs(pair, context=1024)
    with pytest.raises(sd.SpecdecError, match="no draft"):
        measure_costs(sd.Pair(pair.target, None, pair.tokenizer))
    with pytest.raises(sd.SpecdecError, match="takes 1, 9 and"):
        measure_costs(pair, scored=(1, 3))


@pytest.mark.parametrize(("drafted", "each"), [(None, 6), (2, 2)])
def test_a_draft_is_timed_for_as_many_tokens_as_asked(pair: sd.Pair, drafted: int | None, each: int) -> None:
    """c of short drafts is not taken from a long one: the draft model makes one step for each token."""
    draft = copy.deepcopy(pair.draft)
    assert draft is not None
    steps: list[int] = []
    draft.register_forward_pre_hook(lambda module, arguments: steps.append(1))
    costs = measure_costs(
        sd.Pair(pair.target, draft, pair.tokenizer), max_k=6, context=20, repeats=3, warm_up=2, drafted=drafted
    )
    prefill = 1
    assert len(steps) == prefill + (2 + 3) * each
    assert sorted(costs.scoring) == list(range(1, 8))


def test_more_tokens_than_max_k_are_not_drafted(pair: sd.Pair) -> None:
    for drafted in (0, 7):
        with pytest.raises(sd.SpecdecError, match=f"drafted={drafted}"):
            measure_costs(pair, max_k=6, context=20, drafted=drafted)


@pytest.mark.slow
def test_compare_peers_measures_us_and_transformers(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "compare_peers.py"), "--tokens", "12", "--prompts", "1"]
    done = subprocess.run(
        [*command, "--repeats", "1", "--device", "cpu", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text(encoding="utf-8"))
    modes = report["modes"]
    assert {name: len(mode["contenders"]) for name, mode in modes.items()} == {"temperature 1": 26, "greedy": 21}
    for mode in modes.values():
        names = set(mode["contenders"])
        assert names >= {f"ours, k = {k}" for k in range(1, 9)} | {"ours, autoregressive", "transformers generate"}
        assert names >= {"ours, head, k = 4", "ours, head-tree, k = 4", "ours, suffix, k = 8"}
        assert all(facts["tokens_per_second"] > 0 for facts in mode["contenders"].values())
        assert set(mode["goals"]) <= set(mode["ratios"])
    assert "ours, head, block, k = 6" in modes["temperature 1"]["contenders"]
    assert modes["temperature 1"]["ratios"]["best k"] in range(1, 9)
    assert len(modes["temperature 1"]["goals"]) == 7
    weights = {name: added["weights"] for name, added in report["memory"].items()}
    assert weights["head"] == weights["head-tree"] > 0 == weights["lookup"] == weights["suffix"]
