"""The class that benchmarks/class_run.py grades."""

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE
from wrong import WRITES, WRONG

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run() -> Any:
    spec = importlib.util.spec_from_file_location("class_run", ROOT / "benchmarks" / "class_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_whole_class_has_everybody_and_enough_of_those_who_did_as_they_should(run: Any) -> None:
    everybody = run.everybody()
    kinds = Counter(one.kind for one in everybody)
    assert len(everybody) >= 200
    assert {one.name for one in everybody if one.kind == "hostile"} == set(HOSTILE)
    assert kinds["hostile"] == len(HOSTILE)
    assert 0.8 * len(WRONG) + len(WRITES) <= kinds["wrong"] <= len(WRONG) + len(WRITES)
    assert kinds["stub"] >= max(10, len(everybody) // 10)
    assert kinds["solution"] >= max(20, len(everybody) // 10)


@pytest.mark.parametrize("students", [12, 40])
def test_a_small_class_has_some_of_each_kind(students: int, run: Any) -> None:
    everybody = run.everybody(students)
    assert len(everybody) == students
    assert {one.kind for one in everybody} == {"hostile", "wrong", "stub", "solution"}


def test_a_larger_class_is_as_large_as_was_asked_for(run: Any) -> None:
    assert len(run.everybody(300)) == 300
    assert Counter(one.kind for one in run.everybody(300))["stub"] == 30
