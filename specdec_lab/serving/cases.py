"""Recorded cases with measured speedups, to compare the decision tree with.

They come from this project's benchmarks: one machine, one day, the pair that ships.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from specdec_lab.serving.decision import Situation
from specdec_ref.errors import SpecdecError


@dataclass(frozen=True)
class MeasuredCase:
    """One deployment, with the measured speedup of each k.

    Attributes:
        name: in words.
        situation: the inputs of the decision.
        speedups: k → tokens per second relative to k = 0, which has 1.0.
    """

    name: str
    situation: Situation
    speedups: Mapping[int, float]

    def worth(self, k: int) -> float:
        """The measured speedup with that k. Raises SpecdecError where it was not measured."""
        if k not in self.speedups:
            raise SpecdecError(f"k={k!r:.40}: was not measured here; takes one of {sorted(self.speedups)}")
        return self.speedups[k]

    @property
    def best(self) -> float:
        """The largest measured speedup, known only afterward."""
        return max(self.speedups.values())


def policy_cases(path: Path) -> list[MeasuredCase]:
    """The cases of `benchmarks/batch_policy.py`, one per batch size and context length. Raises SpecdecError."""

    def read(report: dict[str, Any]) -> list[MeasuredCase]:
        cases = []
        for cell in report["policy"]["cells"]:
            step = cell["costs"]["target_step"]
            v = {int(n): seconds / step for n, seconds in cell["costs"]["scoring"].items() if int(n) > 1}
            situation = Situation(cell["batch"], cell["alpha"], cell["costs"]["draft_step"] / step, v)
            speedups = {int(k): value for k, value in cell["measured"].items()}
            cases.append(MeasuredCase(f"batch {cell['batch']}, {cell['context']} tokens", situation, speedups))
        return cases

    return _read(path, read)


def peer_cases(path: Path) -> list[MeasuredCase]:
    """The cases of `benchmarks/compare_peers.py`: batch 1, k = 0 … 8, at temperature 1 and greedy.

    Raises SpecdecError.
    """

    def read(report: dict[str, Any]) -> list[MeasuredCase]:
        cases = []
        for name, mode in report["modes"].items():
            costs = mode["costs"]
            v = {int(n): cost for n, cost in costs["v"].items() if int(n) > 1}
            ours = {
                n.removeprefix("ours, k = "): contender
                for n, contender in mode["contenders"].items()
                if n.startswith("ours")
            }
            speedups = {int(k): contender["speedup"] for k, contender in ours.items() if k.isdigit()}
            situation = Situation(1, mode["ratios"]["acceptance"], costs["c"], v)
            cases.append(MeasuredCase(f"batch 1, {name}", situation, {0: 1.0} | speedups))
        return cases

    return _read(path, read)


def held_out(cases: Sequence[MeasuredCase]) -> list[MeasuredCase]:
    """The same cases, each with costs from the other cases of its batch size, so that no case predicts itself.

    c and v become the medians over the other cases of the same batch size. Raises SpecdecError if there are none.
    """
    return [replace(case, situation=_from_others(case, cases)) for case in cases]


def _from_others(case: MeasuredCase, cases: Sequence[MeasuredCase]) -> Situation:
    situations = [
        candidate.situation
        for candidate in cases
        if candidate is not case and candidate.situation.batch == case.situation.batch
    ]
    if not situations:
        raise SpecdecError(f"cases: hold no other case of batch {case.situation.batch} than {case.name!r:.60}")
    v = {n: median(situation.v[n] for situation in situations) for n in case.situation.v}
    return replace(case.situation, c=median(situation.c for situation in situations), v=v)


def _read(path: Path, read: Callable[[dict[str, Any]], list[MeasuredCase]]) -> list[MeasuredCase]:
    try:
        return read(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SpecdecError(f"path={str(path)!r:.80}: holds no such recorded run ({error!r:.80})") from error
