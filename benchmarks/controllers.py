"""Who chooses k best: the source text's heuristic, the cost model and the confidence stop against every fixed k.

    python benchmarks/controllers.py [--quick] [--tokens 160] [--texts 10] [--repeats 3] [--only NAME …] [--json FILE]

Eight workloads, each a stream of generations. Everyone generates the same texts with the same seeds, in turn, text by
text; a controller lives through its stream. A text's time is the median over repeats of seconds per token, a stream's
pace the tokens of all its texts over the sum of those times. 'Best k' is the fixed k that turns out fastest afterwards,
which nobody knows before. What is done is written as it comes: the same command goes on where it was stopped.
"""

import argparse
import ast
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import specdec_ref as sd
from specdec_ref.control import AdaptiveSpeculation, CostModelSpeculation
from specdec_ref.measurement.benchmark import repeated_share
from specdec_ref.training.corpus import collect

MAX_K = 8
CONFIDENCE = 0.4
FIXED = [f"k = {k}" for k in range(MAX_K + 1)]
HEURISTIC, COST_MODEL, STOP = "heuristic", "cost model", "confidence stop"
CONTENDERS = [*FIXED, HEURISTIC, COST_MODEL, STOP]
PROMPT = 160
"""Tokens of a prompt that is cut out of a held-out module."""
GOALS = {"of the best k": 0.97, "of one by one, useless draft": 0.95, "of the best k, mixed stream": 1.0}


@dataclass(frozen=True)
class Text:
    """One generation of a stream. garbled: with a draft that proposes nonsense, and says with which probabilities."""

    prompt: tuple[int, ...]
    sampling: sd.Sampling
    garbled: bool = False


class MayGarble:
    """A language model that can be made useless: its logits are then those of other tokens. It costs what it cost."""

    def __init__(self, model: sd.LanguageModel):
        self.model = model
        self.vocab_size, self.context, self.device = model.vocab_size, model.context, model.device
        self.garbled = False
        self.start, self.prefill, self.rewind, self.keep = model.start, model.prefill, model.rewind, model.keep

    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.model.extend(tokens)
        return logits.roll(self.vocab_size // 2, -1) if self.garbled else logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 texts of 64 tokens, once: to see that it runs")
    parser.add_argument("--tokens", type=int, default=160, help="new tokens of each text (160)")
    parser.add_argument("--texts", type=int, default=10, help="texts of a stream (10)")
    parser.add_argument("--repeats", type=int, default=3, help="times that every stream is run (3)")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="workloads to run; default all")
    parser.add_argument("--draft", default=None, help="another draft: a shipped name or a folder")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "controllers.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.texts, arguments.repeats = 64, 3, 1
    transformers.logging.set_verbosity_error()
    console = Console()
    pair = sd.load_pair(draft=arguments.draft, device=arguments.device)
    everything = workloads(pair, arguments.texts)
    names = arguments.only or list(everything)
    if unknown := [name for name in names if name not in everything]:
        parser.error(f"--only {unknown[0]!r}: takes {', '.join(map(repr, everything))}")
    bench = Bench(pair, arguments.tokens)
    report = opened(arguments.json, machine(pair), settings(pair, arguments))
    with Progress(TextColumn("{task.description:42}"), BarColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("warm-up", total=len(names) * arguments.repeats)
        bench.record_steps(everything[names[0]][0])
        for repeat in range(arguments.repeats):
            for name in names:
                bar.update(task, description=f"{name}, {repeat + 1} of {arguments.repeats}")
                done = report["runs"].setdefault(name, [])
                if len(done) <= repeat:
                    done.append(bench.stream(everything[name], repeat))
                    report["workloads"] = {n: summary(runs) for n, runs in report["runs"].items()}
                    report["goals"] = goals(report["workloads"])
                    write(arguments.json, report)
                bar.advance(task)
    console.print(table(report["workloads"]), "")
    for name, goal in report["goals"].items():
        console.print(f"  {name:60}{goal['reached']:.3f}   goal {goal['goal']}   {'✓' if goal['kept'] else '✗'}")
    console.print(f"\nwritten to {arguments.json}")


class Bench:
    """Runs streams with everyone in turn."""

    def __init__(self, pair: sd.Pair, tokens: int):
        assert pair.draft is not None
        self.pair, self.tokens = pair, tokens
        self.model = MayGarble(sd.TransformersModel(pair.draft, sd.TransformersModel(pair.target).vocab_size))

    def record_steps(self, text: Text) -> None:
        """Let every shape of step occur until it is recorded, so that nobody pays for it on the clock."""
        for k in range(MAX_K + 1):
            while_rounds = 12 * (k + 1)  # no fewer than 12 rounds
            self.generate(text, k, 0.0, seed=0, tokens=while_rounds)

    def stream(self, texts: list[Text], repeat: int) -> dict[str, list[dict[str, float]]]:
        """Every text by every contender, in an order that moves on from text to text. By contender, text by text."""
        controllers = {name: controller(name) for name in CONTENDERS}
        for i, text in enumerate(texts[:2]):  # unclocked: controllers learn the costs of this machine
            for name in (HEURISTIC, COST_MODEL):
                self.generate(text, controllers[name], 0.0, seed=10_000 + i)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for i, text in enumerate(texts):
            first = (i + repeat) % len(CONTENDERS)
            for name in [*CONTENDERS[first:], *CONTENDERS[:first]]:
                confidence = CONFIDENCE if name == STOP else 0.0
                ran = self.generate(text, controllers[name], confidence, seed=1000 * repeat + i)
                found[name].append(
                    {
                        "tokens": len(ran.tokens),
                        "seconds": ran.seconds,
                        "rounds": len(ran.rounds),
                        "drafted": sum(len(r.drafted) for r in ran.rounds),
                        "accepted": sum(r.accepted for r in ran.rounds),
                        "judged": sum(min(r.accepted + 1, len(r.drafted)) for r in ran.rounds),
                    }
                )
        return found

    def generate(
        self, text: Text, k: int | sd.Controller, confidence: float, seed: int, tokens: int | None = None
    ) -> sd.Generation:
        self.model.garbled = text.garbled
        ran: sd.Generation = sd.generate_speculative(
            self.pair,
            text.prompt,
            k=k,
            drafter=sd.ModelDrafter(self.model, confidence),
            max_new_tokens=tokens or self.tokens,
            sampling=text.sampling,
            seed=seed,
        )
        return ran


def controller(name: str) -> int | sd.Controller:
    """A new one of that name."""
    if name == HEURISTIC:
        return AdaptiveSpeculation(max_k=MAX_K)
    if name == COST_MODEL:
        return CostModelSpeculation(MAX_K)
    return MAX_K if name == STOP else FIXED.index(name)


def workloads(pair: sd.Pair, n: int) -> dict[str, list[Text]]:
    """Streams of n texts, by name. Nothing of their prompts was trained on."""
    prompts = [pair.tokenizer(text)["input_ids"] for text in sd.held_out_prompts().values()]
    code, prose = repetitive_code(pair), docstrings(pair)

    def texts(source: list[list[int]], temperature: float, garbled: bool = False) -> list[Text]:
        every = [source[i % len(source)] for i in range(n)]
        return [Text(tuple(ids), sd.Sampling(temperature), garbled) for ids in every]

    easy, hard, usual = texts(code, 0.0), texts(prose, 1.0), texts(prompts, 0.8)
    useless = texts(prompts, 0.8, garbled=True)
    kinds = easy, hard, useless
    return {
        "easy code": easy,
        "hard prose": hard,
        "temperature 0": texts(prompts, 0.0),
        "temperature 0.8": usual,
        "temperature 1.2": texts(prompts, 1.2),
        "draft turns bad": [*usual[: n // 2], *useless[n // 2 :]],
        "mixed stream": [kinds[i % 3][i] for i in range(n)],
        "useless draft": useless,
    }


def repetitive_code(pair: sd.Pair) -> list[list[int]]:
    """Of each held-out file the piece that repeats itself most, the most repetitive first."""
    pieces = []
    for document in collect().held_out:
        ids = pair.tokenizer(document.text)["input_ids"]
        cuts = [ids[i : i + PROMPT] for i in range(0, len(ids) - PROMPT + 1, PROMPT // 2)]
        if cuts:
            pieces.append(max(cuts, key=lambda cut: repeated_share(cut, 4)))
    return sorted(pieces, key=lambda cut: -repeated_share(cut, 4))[:16]


def docstrings(pair: sd.Pair) -> list[list[int]]:
    """Beginnings of long English docstrings of held-out files, those with the largest share of letters first."""
    found = []
    for document in collect().held_out:
        for node in ast.walk(ast.parse(document.text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                ids = pair.tokenizer(f'"""{text}')["input_ids"][: PROMPT // 2]
                if len(ids) == PROMPT // 2 and ">>>" not in pair.tokenizer.decode(ids):
                    found.append((sum(c.isalpha() or c == " " for c in text) / len(text), ids))
    return [ids for _, ids in sorted(found, key=lambda pair: -pair[0])][:16]


def summary(runs: list[dict[str, list[dict[str, float]]]]) -> dict[str, Any]:
    """What a stream took everyone."""
    everyone = {}
    for name in CONTENDERS:
        each = [run[name] for run in runs]
        per_token = [median(text["seconds"] / text["tokens"] for text in same) for same in zip(*each, strict=True)]
        total = {key: sum(text[key] for run in each for text in run) for key in each[0][0]}
        everyone[name] = {
            "tokens_per_second": len(per_token) / sum(per_token),
            "acceptance": total["accepted"] / total["judged"] if total["judged"] else None,
            "tokens_per_round": total["tokens"] / total["rounds"],
            "drafted_per_round": total["drafted"] / total["rounds"],
        }
    paces = {name: one["tokens_per_second"] for name, one in everyone.items()}
    best = max(FIXED, key=lambda name: paces[name])
    return {
        "repeats": len(runs),
        "best_k": FIXED.index(best),
        "of_best_k": {name: pace / paces[best] for name, pace in paces.items()},
        "speedup": {name: pace / paces[FIXED[0]] for name, pace in paces.items()},
        "of_best_k_each_repeat": {
            name: [throughput(run[name]) / max(throughput(run[k]) for k in FIXED) for run in runs]
            for name in (HEURISTIC, COST_MODEL, STOP)
        },
        "contenders": everyone,
    }


def throughput(texts: list[dict[str, float]]) -> float:
    """Texts of equal length per second."""
    return 1 / sum(text["seconds"] / text["tokens"] for text in texts)


def goals(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the cost model has to reach, and what it reached. A mixed stream has to be faster than with any fixed k."""
    lines = {}
    for name, one in found.items():
        mixed = name == "mixed stream"
        goal = GOALS["of the best k, mixed stream" if mixed else "of the best k"]
        reached = one["of_best_k"][COST_MODEL]
        lines[f"{name}: cost model / best k"] = {
            "goal": goal,
            "reached": reached,
            "kept": reached > goal if mixed else reached >= goal,
        }
    if "useless draft" in found:
        goal, reached = GOALS["of one by one, useless draft"], found["useless draft"]["speedup"][COST_MODEL]
        lines["useless draft: cost model / one by one"] = {"goal": goal, "reached": reached, "kept": reached >= goal}
    return lines


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Speedup over one by one of everyone, a line for each workload."""
    lines = Table(title="tokens per second, times those of k = 0", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("", "best k", *FIXED[1:], HEURISTIC, COST_MODEL, STOP, "cost model / best k"):
        lines.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for name, one in found.items():
        everyone = [f"{one['speedup'][contender]:.2f}" for contender in CONTENDERS[1:]]
        lines.add_row(name, str(one["best_k"]), *everyone, f"{one['of_best_k'][COST_MODEL]:.3f}")
    return lines


def opened(path: Path, where: dict[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    """The report so far where it is of the same settings, models and machine; else a new one."""
    if path.is_file():
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (report["machine"], report["settings"]) == (where, how):
            return report
    return {"date": time.strftime("%Y-%m-%d"), "machine": where, "settings": how, "runs": {}}


def write(path: Path, report: dict[str, Any]) -> None:
    """All at once, so that a stop in the middle leaves the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)


def settings(pair: sd.Pair, arguments: argparse.Namespace) -> dict[str, Any]:
    """All that decides the figures, but the machine."""
    return {
        "tokens": arguments.tokens,
        "texts": arguments.texts,
        "repeats": arguments.repeats,
        "draft": arguments.draft,
        "confidence": CONFIDENCE,
        "weights": {role: fingerprint(getattr(pair, role)) for role in ("target", "draft")},
    }


def fingerprint(model: Any) -> list[float]:
    """Number of parameters, and the sum of their sizes: other weights, other numbers."""
    parameters = list(model.parameters())
    return [sum(p.numel() for p in parameters), round(sum(float(p.detach().abs().sum()) for p in parameters), 3)]


def machine(pair: sd.Pair) -> dict[str, Any]:
    """What the figures were measured on."""
    cuda = pair.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(pair.target.dtype),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
