"""`specdec doctor`: what is wrong with a pair, also one that `load_pair` refuses, told before its weights are loaded
where that is possible."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_ref.measurement.parts import Models


def doctor(
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
    k: Annotated[int, typer.Option("-k", "--k", help="Tokens drafted per round.")] = 4,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Keep the so many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest tokens with this mass, in (0, 1].")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text to continue; give it again for more (default: four held-out ones).")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once that the pair is meant for.")] = 1,
    context: Annotated[
        int | None, typer.Option(help="Tokens of each, prompt and new ones, that there has to be room for.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Examine a pair: vocabularies, memory, caches, output, acceptance, speed. Status 1: a problem was found."""
    from specdec_ref.cli import _progress, _quiet_libraries

    _quiet_libraries()
    from specdec_ref.measurement.case import open_case
    from specdec_ref.measurement.diagnostics import CHECKS, examine
    from specdec_ref.sampling import Sampling

    console = Console(quiet=as_json, highlight=False)
    sampling = Sampling(temperature, top_k, top_p)
    models = parts(target, draft, device, dtype)
    case = open_case(models, prompts=prompt or None, k=k, sampling=sampling, batch=batch, context=context)
    with _progress(console, len(CHECKS)) as step:
        examination = examine(case, step)
    if as_json:
        print(json.dumps(examination.to_dict(), indent=1, allow_nan=False))
    else:
        console.print(examination)
        console.print(f"\n{_verdict(len(examination.findings), examination.healthy)}", style="bold")
    if not examination.healthy:
        raise typer.Exit(1)


def parts(target: str | None, draft: str | None, device: str | None, dtype: str | None) -> "Models":
    """A pair's configurations and tokenizers, and how to load its weights; the two need not belong together."""
    from specdec_ref.measurement.memory import configuration
    from specdec_ref.measurement.parts import Models
    from specdec_ref.models import DEFAULT_DRAFT, Pair, _dtype, _load_model, _load_tokenizer, shipped, usable_device

    if target is None and draft is None:
        draft = DEFAULT_DRAFT
    if target is None and "target" not in shipped():
        raise SpecdecError(
            "target: the pair that ships is missing from this installation; make it with `specdec train`"
        )
    target = target or "target"
    where = usable_device(device)
    kind = _dtype(dtype, where)
    tokenizer = _load_tokenizer("target", target)

    def load() -> "Pair":
        model = _load_model("draft", draft, where, kind) if draft else None
        return Pair(_load_model("target", target, where, kind), model, tokenizer)

    return Models(
        configuration(target, "target"),
        configuration(draft, "draft") if draft else None,
        tokenizer,
        _load_tokenizer("draft", draft) if draft else None,
        where,
        kind,
        load,
    )


def _verdict(findings: int, healthy: bool) -> str:
    if not healthy:
        return "a problem was found"
    return f"healthy, with {findings} remark{'s' if findings > 1 else ''}" if findings else "healthy"
