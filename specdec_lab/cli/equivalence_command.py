"""`specdec equivalence`: test whether the output has the target's distribution, by experiment, proof, or greedily."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from specdec_lab.cli.common import check_verification_option
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from rich.table import Table

    from specdec_lab.equivalence.sampler import Sampler
    from specdec_ref.loading import Pair
    from specdec_ref.sampling import Sampling

PROMPT_TOKENS = 16
"""Held-out texts are cut to this many tokens. A short prompt is as good a test, and takes less time."""

GREEDY_TOKENS = 64
PICTURES = ".png", ".svg", ".pdf"

Progress = Callable[[int, int], None]


def equivalence(
    target: Annotated[
        str | None, typer.Option(help="Target model: a folder or hub name (default: the one that ships).")
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Draft model: a folder, hub name, or the name of one that ships.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, … (default: the GPU where there is one).")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, … (default: float32 on CPU, else bfloat16).")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="The engine to test: ours, autoregressive, transformers, assisted (k tokens in every round), "
            "assisted-default (transformers' own schedule), openai:URL, vllm, or a function of (pair, sampling) as "
            "module:attribute."
        ),
    ] = "ours",
    model: Annotated[str | None, typer.Option(help="The target's name on the server or for vLLM.")] = None,
    samples: Annotated[int, typer.Option(help="Samples, over all prompts.")] = 100_000,
    length: Annotated[int, typer.Option(help="Tokens of each sample.")] = 4,
    k: Annotated[int | None, typer.Option("-k", "--k", help="Tokens drafted per round (default: length − 2).")] = None,
    verification: Annotated[
        str, typer.Option(help="With --engine ours: how drafted tokens are verified, token or block.")
    ] = "token",
    drafter: Annotated[
        str,
        typer.Option(
            help="With --engine ours: draft (the draft model), head, parallel-head, tree, head-tree, lookup, "
            "suffix, tree-iid, tree-without-replacement, tree-top-k, or the folder of a head."
        ),
    ] = "draft",
    temperature: Annotated[float, typer.Option(help="Temperature of the sampling to test.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the most likely tokens up to this mass.")] = None,
    prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = 4,
    false_alarm: Annotated[float, typer.Option(help="How often a correct sampler may be refuted.")] = 0.001,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Instead: compare greedy decoding with the target's, token by token.")
    ] = False,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Instead: prove our loop exact with every method, by enumeration on small models."
        ),
    ] = False,
    museum: Annotated[
        bool, typer.Option("--museum", help="Instead: run every test on every wrong version of the museum.")
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="Also save a figure of the result as .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Test whether an engine samples exactly from the target. Exit status 0: consistent with the target, 1: refuted.

    It first prints how small a difference it can detect. Ctrl-C ends it with the result of the samples so far.
    """
    instead = [name for name, on in (("--greedy", greedy), ("--exact", exact), ("--museum", museum)) if on]
    if len(instead) > 1:
        raise SpecdecError(f"{' and '.join(instead)}: take one of them at a time")
    if prompts < 1:
        raise SpecdecError(f"--prompts {prompts}: takes a whole number ≥ 1")
    _check_figure(figure, instead)
    _check_verification(verification, engine, instead)
    _check_drafter(drafter, engine, instead)
    from specdec_lab.cli.common import headline, load

    console = Console(quiet=as_json, highlight=False)
    if exact:
        _finish(_exact(console), as_json)
    if museum:
        _finish(_museum(console, figure), as_json)
    from specdec_ref.loading import held_out_prompts
    from specdec_ref.sampling import GREEDY, Sampling

    sampling = GREEDY if greedy else Sampling(temperature, top_k, top_p)
    k = _drafted(engine, k, length, greedy)
    pair = load(target, draft, device, dtype)
    console.print(headline(pair))
    sampler = _engine(engine, pair, k, sampling, model, verification, drafter)
    texts = list(held_out_prompts().values())[:prompts]
    ids = [pair.tokenizer(text)["input_ids"] for text in texts]
    if greedy:
        longest = max(1, pair.context - GREEDY_TOKENS)
        _finish(_greedy(console, pair, sampler, [i[:longest] for i in ids]), as_json)
    settings = {"length": length, "samples": samples, "sampling": sampling, "false_alarm": false_alarm}
    facts = _empirical(console, pair, sampler, [i[:PROMPT_TOKENS] for i in ids], settings, seed, figure, as_json)
    _finish(facts, as_json)


def _empirical(
    console: Console,
    pair: "Pair",
    sampler: "Sampler",
    prompts: list[list[int]],
    settings: dict[str, Any],
    seed: int,
    figure: Path | None,
    as_json: bool,
) -> dict[str, Any]:
    """Print the plan, then sample, then print the result."""
    from specdec_lab.equivalence.empirical import carry_out, prepare
    from specdec_lab.equivalence.sampler import SamplerError, ends_of

    with _bar(console, "the target's probabilities") as progress:
        plan = prepare(pair, prompts, eos=ends_of(sampler), on_progress=progress, **settings)
    console.print(plan.explain(), "", soft_wrap=True)
    try:
        with _bar(console, "samples") as progress:
            result = carry_out(plan, sampler, seed=seed, on_progress=progress)
    except SamplerError as error:
        if error.partial is not None:
            partial = (
                json.dumps(error.partial.to_dict(), indent=1) if as_json else error.partial.explain(pair.tokenizer)
            )
            print(partial)
        raise
    console.print(result.explain(pair.tokenizer), style="bold" if not result.consistent else "", soft_wrap=True)
    if figure is not None:
        result.figure().savefig(figure)
        console.print(f"saved as {figure}")
    return result.to_dict() | {"sampling": asdict(settings["sampling"])}


def _greedy(console: Console, pair: "Pair", sampler: "Sampler", prompts: list[list[int]]) -> dict[str, Any]:
    from specdec_lab.equivalence.greedy import greedy_agreement

    with _bar(console, "greedy decoding") as progress:
        result = greedy_agreement(pair, prompts, GREEDY_TOKENS, sampler, on_progress=progress)
    console.print(result.explain(), soft_wrap=True)
    return result.to_dict()


def _exact(console: Console) -> dict[str, Any]:
    from specdec_lab.cli.common import result_table
    from specdec_lab.equivalence.proof_suite import cases, prove_all

    table = result_table("case", "what it covers", "difference", "")
    table.columns[1].no_wrap, table.columns[1].justify = False, "left"  # in a narrow terminal, the text wraps
    facts = []
    with _bar(console, "proofs by enumeration") as progress:
        total = len(cases())

        def on_case(case: Any, proof: Any) -> None:
            facts.append(
                {
                    "case": case.name,
                    "method": case.method,
                    "covers": case.covers,
                    "holds": proof.holds,
                    "difference": proof.difference,
                }
            )
            table.add_row(
                case.name, case.covers, f"{proof.difference:.0e}", "✓" if proof.holds else "✗ " + proof.explain()
            )
            progress(len(facts), total)

        prove_all(on_case)
    wrong = [fact["case"] for fact in facts if not fact["holds"]]
    console.print(table, "", _methods(facts), "")
    message = f"not proven: {', '.join(map(str, wrong))}" if wrong else "each of them exactly the target's distribution"
    console.print(f"{len(facts)} proofs, no sampling, tolerance 1e-9: {message}", soft_wrap=True)
    return {"consistent": not wrong, "proofs": facts}


def _methods(facts: list[dict[str, Any]]) -> "Table":
    """Every method that was proven, with its number of proofs and their largest difference."""
    from specdec_lab.cli.common import result_table

    table = result_table("method", "proofs", "largest difference", "")
    for method in sorted({fact["method"] for fact in facts}):
        proofs = [fact for fact in facts if fact["method"] == method]
        largest = max(fact["difference"] for fact in proofs)
        table.add_row(method, str(len(proofs)), f"{largest:.0e}", "✓" if all(f["holds"] for f in proofs) else "✗")
    return table


def _museum(console: Console, figure: Path | None) -> dict[str, Any]:
    from specdec_lab.equivalence.museum import matrix

    with _bar(console, "wrong versions × tests") as progress:
        result = matrix(on_cell=progress)
    console.print(result.table())
    for sentence in (*result.summary(), result.origins(), *result.failures()):
        console.print(sentence, soft_wrap=True)
    if figure is not None:
        from specdec_lab.equivalence.equivalence_figures import museum_figure

        museum_figure(result).savefig(figure)
        console.print(f"saved as {figure}")
    return {"consistent": not result.failures(), **result.to_dict()}


def _finish(facts: dict[str, Any], as_json: bool) -> None:
    """Print JSON if requested, and exit with status 1 if the engine is refuted, or 130 after an interrupt."""
    if as_json:
        print(json.dumps(facts, indent=1))
    raise typer.Exit(1 if not facts["consistent"] else 130 if facts.get("partial") else 0)


def _engine(
    name: str, pair: "Pair", k: int, sampling: "Sampling", model: str | None, verification: str, drafter: str
) -> "Sampler":
    from specdec_lab.equivalence.engines import engine_by_name

    return engine_by_name(name, pair, k=k, sampling=sampling, model=model, verification=verification, drafter=drafter)


def _check_verification(verification: str, engine: str, instead: list[str]) -> None:
    """Raise SpecdecError for an unknown rule, or if --verification would change nothing."""
    if verification == "token":
        return
    check_verification_option(verification)
    for option in ("--exact", "--museum"):
        if option in instead:
            raise SpecdecError(f"--verification {verification}: changes nothing with {option}, which covers both rules")
    if engine != "ours":
        raise SpecdecError(f"--verification {verification}: changes nothing with --engine {engine}; is for ours")


def _check_drafter(drafter: str, engine: str, instead: list[str]) -> None:
    """Raise SpecdecError if --drafter would change nothing."""
    if drafter == "draft":
        return
    for option in ("--exact", "--museum"):
        if option in instead:
            raise SpecdecError(f"--drafter {drafter}: changes nothing with {option}, which covers every method")
    if engine != "ours":
        raise SpecdecError(f"--drafter {drafter}: changes nothing with --engine {engine}; is for ours")


def _drafted(engine: str, k: int | None, length: int, greedy: bool) -> int:
    """Tokens drafted per round, few enough that a sample takes two rounds."""
    from specdec_lab.equivalence.engines import DRAFTING

    if k is not None and engine not in DRAFTING:
        raise SpecdecError(f"--k {k}: changes nothing with --engine {engine}; is for {', '.join(DRAFTING)}")
    if greedy or engine not in DRAFTING:
        return 4 if k is None else k
    k = max(1, length - 2) if k is None else k
    if not 1 <= k <= length - 2:
        why = f"a round gives up to {k + 1} tokens, and a sample has to take two"
        raise SpecdecError(f"--k {k} with --length {length}: {why}; takes 1 ≤ k ≤ length − 2")
    return k


def _check_figure(figure: Path | None, instead: list[str]) -> None:
    if figure is None:
        return
    if instead and instead != ["--museum"]:
        raise SpecdecError(f"--figure: {instead[0]} has none")
    if figure.suffix.lower() not in PICTURES or not figure.parent.is_dir():
        raise SpecdecError(f"--figure {figure}: takes a file ending in {', '.join(PICTURES)}, in a folder that exists")


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Progress]:
    """A progress bar that disappears at the end. Yields a function of the number done, and the number of all."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True, disable=console.quiet) as bar:
        task = bar.add_task(what, total=None)
        yield lambda completed, total: bar.update(task, completed=completed, total=total)
