"""`specdec bench`: speedup of every k, the whole suite, all drafts side by side, the batch policy, or a server."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from specdec_lab.cli.common import (
    DeviceOption,
    DrafterOption,
    DraftOption,
    DtypeOption,
    JsonOption,
    TargetOption,
    check_can_draft,
    check_verification_option,
    headline,
    load,
    progress_bar,
    quiet_libraries,
    result_cells,
    result_facts,
    result_table,
)
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_lab.serving.load import ServerMeasurement
    from specdec_ref.sampling import Sampling

OnStep = Callable[[str, int, int], None]


def bench(
    target: TargetOption = None,
    draft: DraftOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    max_k: Annotated[int, typer.Option(help="Compare k = 1 … max-k with plain decoding.")] = 8,
    tokens: Annotated[int, typer.Option(help="New tokens per generation.")] = 128,
    prompts: Annotated[int, typer.Option(help="Held-out prompts (with --suite: of each length).")] = 6,
    repeats: Annotated[int, typer.Option(help="Timed runs of each contender on each prompt.")] = 2,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    verification: Annotated[
        str, typer.Option(help="How drafted tokens are verified: token or block (only for the table of every k).")
    ] = "token",
    drafter: DrafterOption = None,
    suite: Annotated[
        Path | None,
        typer.Option(help="Run the whole suite and write its report to this folder. A later run continues there."),
    ] = None,
    drafts: Annotated[
        bool, typer.Option("--drafts", help="Compare all ways to draft, at their best k: size, speed, speedup.")
    ] = False,
    batch: Annotated[
        bool, typer.Option("--batch", help="Measure at which batch sizes and context lengths drafting pays.")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(help="Measure an OpenAI-compatible server at http://… instead, and read vLLM's counters."),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="With --server: requests at a time.")] = 1,
    model: Annotated[
        str | None, typer.Option(help="With --server: the model to request (default: the server's only one).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the speedup of every k, and compare it with the formula.

    All k take turns on the same prompts. The table shows medians.

    With --suite it measures the baseline, all ways to draft at k = 2, 4, 8, and the controllers, on short, medium and
    long prompts. It writes latencies and an HTML report. After Ctrl-C the same command continues the run.
    """
    for name, value in (("max-k", max_k), ("tokens", tokens), ("prompts", prompts), ("repeats", repeats)):
        if value < 1:
            raise SpecdecError(f"--{name} {value}: takes a whole number ≥ 1")
    if sum((suite is not None, drafts, batch, server is not None)) > 1:
        raise SpecdecError("--suite, --drafts, --batch and --server: take one of them at a time")
    check_verification_option(verification)
    if drafter is not None and (suite is not None or drafts or server is not None):
        raise SpecdecError(f"--drafter {drafter}: changes nothing with --suite, --drafts or --server")
    if verification != "token" and (suite is not None or drafts or batch or server is not None):
        raise SpecdecError(
            f"--verification {verification}: changes nothing with --suite, --drafts, --batch or --server"
        )
    from specdec_ref.sampling import Sampling

    quiet_libraries()
    console = Console(quiet=as_json, highlight=False)
    models = target, draft, device, dtype, drafter
    work = Workload(tokens, prompts, repeats, Sampling(temperature=temperature), verification)
    if server is not None:
        _server(console, server, model, concurrency, work, as_json)
    elif batch:
        _policy(console, models, work.sampling, max_k, as_json)
    elif suite is not None or drafts:
        _suite(console, models, suite, max_k, work, as_json)
    else:
        _every_k(console, models, max_k, work, as_json)


ModelOptions = tuple[str | None, str | None, str | None, str | None, str | None]
"""Target, draft, device, dtype, drafter."""


@dataclass(frozen=True)
class Workload:
    """The generations to measure.

    Attributes:
        tokens: new tokens of each generation.
        prompts: number of prompts.
        repeats: runs on each prompt.
        sampling: temperature.
        verification: the verification rule.
    """

    tokens: int
    prompts: int
    repeats: int
    sampling: "Sampling"
    verification: str = "token"


PLAIN = "no drafts"
MOST_TIMED = 8
"""v is measured for every k up to this one, then for every eighth. c is the cost per token of drafting this many."""


def _every_k(console: Console, models: ModelOptions, max_k: int, work: Workload, as_json: bool) -> None:
    """Measure and print the table of every k."""
    from specdec_lab.measurement.benchmark import formula, ours, race, race_length
    from specdec_lab.measurement.costs import WARM_UP, measure_costs
    from specdec_lab.measurement.methods import is_tree, most_scored, usual_k
    from specdec_ref.loading import held_out_prompts

    pair = load(*models)
    check_can_draft(pair)
    max_k = usual_k(pair, max_k)
    longest = pair.context - work.tokens
    if longest < 1:
        raise SpecdecError(
            f"--tokens {work.tokens}: leaves no room for a prompt; the models hold {pair.context} tokens"
        )
    if max_k >= pair.context:
        raise SpecdecError(f"--max-k {max_k}: the models hold {pair.context} tokens")
    texts = list(held_out_prompts().values())[: work.prompts]
    ids = [pair.tokenizer(text)["input_ids"][-longest:] for text in texts]
    largest_draft = most_scored(pair, max_k)
    contenders = {
        (f"k = {k}" if k else PLAIN): ours(pair, k, work.sampling, work.tokens, work.verification)
        for k in range(max_k + 1)
    }
    runs = race_length(len(contenders), len(ids), work.repeats)
    with progress_bar(_stderr(console), runs + WARM_UP + 15) as step:
        costs = measure_costs(
            pair,
            max_k=largest_draft,
            sampling=work.sampling,
            context=min(200, pair.context - largest_draft - 1),
            scored={
                *range(1, min(largest_draft, MOST_TIMED) + 2),
                *range(MOST_TIMED + 1, largest_draft, 8),
                largest_draft + 1,
            },
            drafted=min(max_k, MOST_TIMED),
            on_step=lambda: step("step times"),
        )
        results = race(contenders, ids, baseline=PLAIN, repeats=work.repeats, on_sample=step)
    lines = []
    for k, result in enumerate(results.values()):
        predicted = formula(result, costs, pair, work.verification) if k else 1.0
        lines.append({"k": k, **result_facts(result), "formula": predicted})
    if as_json:
        costs_facts = {"c": costs.c, "v": {n: costs.v(n) for n in costs.scoring}, "target_step": costs.target_step}
        facts = {"headline": headline(pair), "verification": work.verification, "costs": costs_facts, "results": lines}
        print(json.dumps(facts, indent=1))
        return
    table = result_table("", "tokens/s", "speedup", "formula", "accepted", "tokens/round")
    for line in lines:
        speed, speedup, *drafts = result_cells(line)
        table.add_row(f"k = {line['k']}" if line["k"] else PLAIN, speed, speedup, f"{line['formula']:.2f}", *drafts)
    console.print(headline(pair), "", table, "")
    console.print(
        "speedup: times as fast as without drafts, whole generations · formula: the same, predicted from the "
        "acceptance, c and v · accepted: share of the examined tokens"
    )
    if work.verification != "token" or is_tree(pair):
        console.print("accepted is not α here: the formula takes the measured tokens per round instead")


def _stderr(console: Console) -> Console:
    """A console for progress on standard error. It is quiet unless that is a terminal."""
    progress = Console(stderr=True)
    progress.quiet = console.quiet or not progress.is_terminal
    return progress


def _suite(
    console: Console, models: ModelOptions, folder: Path | None, max_k: int, work: Workload, as_json: bool
) -> None:
    """Run the suite and write it to a folder. Without a folder, only measure the drafts, on medium prompts."""
    from specdec_lab.measurement.benchmark_suite import LENGTHS, Settings, load_drafts, run_suite
    from specdec_lab.measurement.report import write_report
    from specdec_lab.measurement.suite_result import DRAFT_NOTES
    from specdec_lab.measurement.tables_shown import rich_table

    settings = Settings(
        lengths=LENGTHS if folder else {"medium": LENGTHS["medium"]},
        prompts=work.prompts,
        repeats=work.repeats,
        max_new_tokens=work.tokens,
        ks=tuple(k for k in (2, 4, 8) if k <= max_k) or (max_k,),
        adaptive=folder is not None,
        sampling=work.sampling,
    )
    target, draft, device, dtype, _ = models
    pairs = load_drafts(target, draft, device=device, dtype=dtype)
    with _steps(console) as on_step:
        try:
            result = run_suite(pairs, settings, folder=folder, on_step=on_step)
        except KeyboardInterrupt:
            if folder is not None:
                console.print(f"every finished run is kept in {folder}; the same command continues from there")
            raise
    written = write_report(result, folder) if folder is not None else []
    if as_json:
        print(json.dumps(result.to_json(), indent=1, allow_nan=False))
        return
    drafts_alone = [rich_table(*result.draft_grid()), "", DRAFT_NOTES]
    for table in result.terminal_tables() if folder is not None else drafts_alone:
        console.print(table)
    for file in written:
        console.print(f"written: {file}", style="bold" if file.suffix == ".html" else None)


def _policy(console: Console, models: ModelOptions, sampling: "Sampling", max_k: int, as_json: bool) -> None:
    """Measure and print the batch policy, and the vLLM setting for it."""
    from specdec_lab.measurement.policy import CONTEXTS, KS, measure_policy

    pair = load(*models)
    check_can_draft(pair)
    contexts = sorted({min(n, pair.context) for n in CONTEXTS})
    with _steps(console) as on_step:
        policy = measure_policy(
            pair, contexts=contexts, ks=[k for k in KS if k <= max_k], sampling=sampling, on_step=on_step
        )
    if as_json:
        print(json.dumps({**policy.to_json(), "vllm": policy.to_vllm()}, indent=1, allow_nan=False))
        return
    console.print(headline(pair), "", policy, "")
    console.print(
        f"k: tokens to draft, 0 where no gain is clear · v({policy.ks[-1] + 1}): time to score so many tokens, in "
        "target steps"
    )
    console.print(f"for vLLM: --speculative-config with {json.dumps(policy.to_vllm())}", soft_wrap=True)


def _server(console: Console, url: str, model: str | None, concurrency: int, work: Workload, as_json: bool) -> None:
    """Measure and print a server's tokens per second, latencies and acceptance."""
    from specdec_lab.serving.load import measure_server
    from specdec_ref.loading import held_out_prompts

    texts = list(held_out_prompts().values())[: work.prompts] * work.repeats
    with _steps(console) as on_step:
        measured = measure_server(
            url,
            texts,
            concurrency=concurrency,
            max_new_tokens=work.tokens,
            sampling=work.sampling,
            model=model,
            on_done=lambda completed, total: on_step("requests", completed, total),
        )
    if as_json:
        print(json.dumps(measured.to_json(), indent=1, allow_nan=False))
    else:
        _print_served(console, measured)
    if measured.problem:
        raise SpecdecError(f"ended early, the above is what was measured: {measured.problem}")


def _print_served(console: Console, measured: "ServerMeasurement") -> None:
    """Print the measurement of a server."""

    def milliseconds(what: str) -> str:
        return ", ".join("–" if isnan(t) else f"{1000 * t:.1f}" for t in measured.percentiles(what))

    console.print(
        f"{measured.model} at {measured.url}: {len(measured.requests)} requests, {measured.concurrency} at a time"
    )
    for name, value in (
        ("tokens per second", f"{measured.tokens_per_second:.1f}"),
        ("ms to the first token, p50 and p99", milliseconds("first_seconds")),
        ("ms per token after it, p50 and p99", milliseconds("seconds_per_token")),
    ):
        console.print(f"{name:38}{value}")
    if measured.counters is None:
        console.print(f"speculation: unknown ({measured.no_counters})")
    elif measured.counters.drafts:
        console.print("the server's counters meanwhile:", measured.counters.statistics())
    else:
        console.print("speculation: the server drafted nothing meanwhile")


@contextmanager
def _steps(console: Console) -> Iterator[OnStep]:
    """A progress bar on standard error, which disappears at the end.

    Yields a function of the present step's name, the number of completed steps, and the number of all steps.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: Any = (TextColumn("{task.description:36}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _stderr(console)
    with Progress(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task("loading", total=None)
        yield lambda what, completed, total: bar.update(task, description=what, completed=completed, total=total)
