"""Suffix decoding on repetitive work, compared with prompt lookup and with the draft model, on the pair that ships.

    python benchmarks/suffix.py [--repeats 3] [--no-times] [--json FILE]

- edit: the prompt holds a function, the answer is a second version with small changes.
- records: the prompt holds the first lines of a table in code, the answer is the rest.
- retries: one request, answered four times with small changes, as an agent does until the tests pass.
- same request: two requests, each sent three times; the target writes its own text, greedy and at temperature 0.7.

The target that ships is too small to edit well. In the first three tasks its scores are therefore replaced by those of
a target that is certain of the given answer; its steps still take their time. In the last two tasks a drafter keeps
its memory from one answer to the next, the first of which has to do without.

All contestants take turns on each text. Speedups are medians of the ratio to the autoregressive run of the same text,
without the time of the prompt. A first repeat warms up and is not counted. Leave the machine idle meanwhile, or use
--no-times, which records only counts and needs no warm-up.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

import specdec_ref as sd
from specdec_lab.measurement.benchmark_workload import machine_facts, machine_line

RESULTS = Path(__file__).parent / "results" / "suffix.json"
PLAIN = "autoregressive"
OWN_TOKENS = 128
"""Length of an answer that the target writes itself."""

READ_LINES = '''\
def read_lines(path, encoding="utf-8"):
    """Return the lines of a file, without comments and empty lines."""
    result = []
    with open(path, encoding=encoding) as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            result.append((number, line))
    return result'''

GET_WIDTH = '''\
    def get_width(self, name, default=None):
        """Return the width of a column, or the default."""
        try:
            value = self._columns[name].width
        except KeyError:
            if default is None:
                raise ValueError("unknown column: %r" % name) from None
            return default
        if value < 0:
            raise ValueError("negative width: %r" % value)
        return value'''

REQUEST_ERROR = '''\
class RequestError(Exception):
    """Raised when a request fails.

    Attributes:
        message -- explanation of the error
        request -- the request that failed
    """

    def __init__(self, message, request=None):
        super().__init__(message)
        self.message = message
        self.request = request

    def __str__(self):
        if self.request is None:
            return self.message
        return "%s (request %r)" % (self.message, self.request)'''

TOKENS = [
    ("LPAR", "(", "operator"), ("RPAR", ")", "operator"), ("LSQB", "[", "operator"), ("RSQB", "]", "operator"),
    ("COLON", ":", "operator"), ("COMMA", ",", "operator"), ("SEMI", ";", "operator"), ("PLUS", "+", "operator"),
    ("NAME", "", "word"), ("NUMBER", "", "literal"), ("STRING", "", "literal"), ("NEWLINE", "", "space"),
]  # fmt: skip
OPTIONS = "all brief count date every first grouped hidden ignore joined".split()
METHODS = [("add", 3), ("sub", -1), ("mul", 2), ("div", 0.5), ("mod", 1), ("pow", 1), ("minimum", 1), ("maximum", 2)]


def edited(text: str, *changes: tuple[str, str]) -> str:
    """The text with each of the changes made."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def edits() -> list[tuple[str, str]]:
    """Prompt and answer: a function or class with the first line of its second version, and the rest of that."""
    pairs = [
        (READ_LINES, edited(READ_LINES, ("lines", "records"), ("(number, line)", "line.split()"), ('"#"', '";"'))),
        (GET_WIDTH, edited(GET_WIDTH, ("width", "height"), ("value < 0", "value <= 0"))),
        (REQUEST_ERROR, edited(REQUEST_ERROR, ("Request", "Response"), ("request", "response"))),
    ]
    prompts_and_answers = []
    for first, second in pairs:
        head, newline, rest = second.partition("\n")
        prompts_and_answers.append((f"{first}\n\n\n{head}", newline + rest))
    return prompts_and_answers


def records() -> list[tuple[str, str]]:
    """Prompt and answer: the first lines of a table in code, and the rest."""
    tables = [
        [f'    {{"name": "{name}", "text": "{text}", "kind": "{kind}"}},' for name, text, kind in TOKENS],
        [f'    parser.add_argument("-{o[0]}", "--{o}", action="store_true", help="show {o}")' for o in OPTIONS],
        [
            f"    def test_{name}(self):\n        self.assertEqual(self.module.{name}(1, 2), {result})\n"
            f"        self.assertRaises(TypeError, self.module.{name}, 1)\n"
            for name, result in METHODS
        ],
    ]
    return [("\n".join(lines[:3]), "\n" + "\n".join(lines[3:])) for lines in tables]


def retries() -> list[tuple[str, str]]:
    """One request, and four answers, each with one more change."""
    request = "# Return the lines of a file, without comments and empty lines, and close the file.\n\n"
    changes = [
        ('encoding="utf-8"', "encoding=None"),
        ("not line or", "not line.strip() or"),
        ("start=1", "1"),
    ]
    return [(request.rstrip(), "\n\n" + edited(READ_LINES, *changes[:n])) for n in range(len(changes) + 1)]


@dataclass(frozen=True)
class Task:
    """Work to do.

    Attributes:
        name: for tables.
        texts: prompts and answers; without an answer the target writes its own.
        sampling: how the target samples.
        keeps_memory: whether one drafter serves all texts of a repeat; otherwise each text gets a new drafter.
    """

    name: str
    texts: list[tuple[str, str]]
    sampling: sd.Sampling = sd.GREEDY
    keeps_memory: bool = False


def tasks() -> list[Task]:
    """All of the work."""
    requests = [(text.rstrip(), "") for text in list(sd.held_out_prompts().values())[:2] for _ in range(3)]
    return [
        Task("edit", edits()),
        Task("records", records()),
        Task("retries", retries(), keeps_memory=True),
        Task("same request, greedy", requests, keeps_memory=True),
        Task("same request, temperature 0.7", requests, sd.Sampling(temperature=0.7), keeps_memory=True),
    ]


class DictatedModel:
    """A target whose steps take their usual time, and whose scores are those of a target certain of a given text."""

    def __init__(self, model: sd.TransformersModel, text: list[int]):
        self.model = model
        self.text = text

    def extend(self, tokens: Tensor) -> Tensor:
        """Logits [1, n, V] that leave only the text's next token possible."""
        logits = self.model.extend(tokens)
        first = self.model.cache.lengths[0] - tokens.shape[1] + 1
        following = [self.text[min(i, len(self.text) - 1)] for i in range(first, first + tokens.shape[1])]
        return torch.full_like(logits, -torch.inf).scatter_(-1, torch.tensor(following)[None, :, None], 0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@dataclass(frozen=True)
class Contestant:
    """A way to decode: how its drafter is made, and k."""

    new_drafter: Callable[[sd.Pair], sd.Drafter]
    k: int


def draft_model(pair: sd.Pair) -> sd.Drafter:
    """The pair's own draft model."""
    assert pair.draft is not None  # the pair that ships has one
    return sd.ModelDrafter(sd.TransformersModel(pair.draft))


CONTESTANTS = {
    PLAIN: Contestant(draft_model, 0),
    "draft model, k = 4": Contestant(draft_model, 4),
    "prompt lookup, k = 4": Contestant(lambda pair: sd.PromptLookupDrafter(), 4),
    "prompt lookup, k = 8": Contestant(lambda pair: sd.PromptLookupDrafter(), 8),
    "suffix, k = 4": Contestant(lambda pair: sd.SuffixDrafter(), 4),
    "suffix, k = 8": Contestant(lambda pair: sd.SuffixDrafter(), 8),
}

Rounds = list[sd.Round]


def rounds_of(pair: sd.Pair, task: Task, number: int, k: int, drafter: sd.Drafter, seed: int) -> Rounds:
    """The rounds of one answer. number: which of the task's texts."""
    prompt, answer = (pair.tokenizer(text)["input_ids"] if text else [] for text in task.texts[number])
    target = sd.TransformersModel(pair.target)
    row = sd.Row(tuple(prompt), len(answer) or OWN_TOKENS)
    model: Any = DictatedModel(target, [*prompt, *answer]) if answer else target
    randomness = sd.SeededRandomness(seed)
    for _ in sd.speculate(model, drafter, [row], sd.FixedK(k), task.sampling, randomness):
        pass
    assert not answer or row.new == answer
    return row.rounds


def play(pair: sd.Pair, task: Task, repeats: range, on_run: Callable[[str], None]) -> dict[str, list[Rounds]]:
    """Decode all texts with all contestants, in turn. Returns the rounds by contestant, without repeat 0."""
    rounds_by_name: dict[str, list[Rounds]] = {name: [] for name in CONTESTANTS}
    for repeat in repeats:
        drafters = {name: contestant.new_drafter(pair) for name, contestant in CONTESTANTS.items()}
        for number in range(len(task.texts)):
            for name, contestant in CONTESTANTS.items():
                on_run(f"{task.name}: {name}")
                drafter = drafters[name] if task.keeps_memory else contestant.new_drafter(pair)
                rounds = rounds_of(pair, task, number, contestant.k, drafter, seed=100 * repeat + number)
                if repeat > 0:
                    rounds_by_name[name].append(rounds)
    return rounds_by_name


def pace(rounds: Rounds) -> float:
    """Tokens per second after the prompt."""
    return sum(len(r.emitted) for r in rounds) / sum(r.draft_seconds + r.verify_seconds for r in rounds)


@dataclass(frozen=True)
class SuffixRun:
    """One contestant on one task, over all texts and repeats.

    Attributes:
        tokens_per_round, drafted_per_round: means.
        acceptance: accepted / examined tokens; None where nothing was drafted.
        tokens_per_second, speedup: medians; None without times.
    """

    tokens_per_round: float
    drafted_per_round: float
    acceptance: float | None
    tokens_per_second: float | None
    speedup: float | None


def summary(answers: list[Rounds], plain: list[Rounds], times: bool) -> SuffixRun:
    """One contestant's answers, compared with the autoregressive ones."""
    rounds = [r for answer in answers for r in answer]
    examined = sum(min(r.accepted + 1, len(r.drafted)) for r in rounds)
    return SuffixRun(
        tokens_per_round=sum(len(r.emitted) for r in rounds) / len(rounds),
        drafted_per_round=sum(len(r.drafted) for r in rounds) / len(rounds),
        acceptance=sum(r.accepted for r in rounds) / examined if examined else None,
        tokens_per_second=median(map(pace, answers)) if times else None,
        speedup=median(pace(a) / pace(b) for a, b in zip(answers, plain, strict=True)) if times else None,
    )


def table(title: str, runs: dict[str, SuffixRun]) -> Table:
    """One line for each contestant."""
    lines = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    lines.add_column("", no_wrap=True)
    for column in ("tokens\nper round", "drafted\nper round", "accepted", "tokens\nper s", "speedup"):
        lines.add_column(column, justify="right")
    for name, run in runs.items():
        lines.add_row(
            name,
            f"{run.tokens_per_round:.2f}",
            f"{run.drafted_per_round:.2f}",
            "" if run.acceptance is None else f"{run.acceptance:.0%}",
            "" if run.tokens_per_second is None else f"{run.tokens_per_second:.0f}",
            "" if run.speedup is None else f"{run.speedup:.2f}",
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each on each text that are counted (3)")
    parser.add_argument("--no-times", action="store_true", help="record only counts, for a busy machine")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    console = Console(highlight=False)
    pair = sd.load_pair(device="cpu")
    facts: dict[str, Any] = machine_facts(pair) | {"date": time.strftime("%Y-%m-%d")}
    console.print(machine_line(facts))
    work = tasks()
    repeats = range(1 if arguments.no_times else 0, arguments.repeats + 1)
    report: dict[str, Any] = {
        "machine": facts,
        "repeats": arguments.repeats,
        "own_tokens": OWN_TOKENS,
        "load_before": psutil.getloadavg()[0],
        "tasks": {},
    }
    runs = sum(len(task.texts) for task in work) * len(repeats) * len(CONTESTANTS)
    columns = TextColumn("{task.description:46}"), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        progress = bar.add_task("", total=runs)
        for task in work:
            answers = play(pair, task, repeats, lambda what: bar.update(progress, advance=1, description=what))
            runs_by_name = {name: summary(own, answers[PLAIN], not arguments.no_times) for name, own in answers.items()}
            console.print("", table(task.name, runs_by_name), sep="\n")
            report["tasks"][task.name] = {name: asdict(run) for name, run in runs_by_name.items()}
    report["load_after"] = psutil.getloadavg()[0]
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"\nwritten to {arguments.json}")


if __name__ == "__main__":
    main()
