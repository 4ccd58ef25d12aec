"""`specdec doctor`: find what is wrong with a pair, including pairs that `load_pair` rejects.

If possible, problems are found before the weights are loaded.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from specdec_lab.cli.common import (
    DeviceOption,
    DrafterOption,
    DraftOption,
    DtypeOption,
    JsonOption,
    TargetOption,
    check_verification_option,
    head_or_draft,
    quiet_libraries,
)
from specdec_ref.errors import SpecdecError

if TYPE_CHECKING:
    from specdec_lab.measurement.findings import Examination
    from specdec_lab.measurement.parts import Models

SECONDS = 120.0
"""Default limit. The shipped pair needs 30 s; a model of 135 M parameters on two busy cores needs all of it."""


def doctor(
    target: TargetOption = None,
    draft: DraftOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Tokens drafted per round.")] = 4,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many most likely tokens only.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most likely tokens with this total probability, in (0, 1].")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text to continue; repeat for more (default: four held-out texts).")
    ] = None,
    drafter: DrafterOption = None,
    verification: Annotated[str, typer.Option(help="How drafted tokens are verified: token or block.")] = "token",
    batch: Annotated[int, typer.Option(help="Sequences at once that the pair is meant for.")] = 1,
    context: Annotated[
        int | None, typer.Option(help="Tokens per sequence that must fit into memory, prompt and new ones.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(help="Time limit for measuring; loading does not count. The report names what was left out."),
    ] = SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Examine a pair: vocabularies, memory, caches, output, acceptance, speed.

    The exit status is 1 if a problem was found. Checks that were left out for lack of time do not change it.
    """
    check_verification_option(verification)
    with _progress(as_json, seconds) as on_step:
        quiet_libraries()
        from specdec_lab.measurement.diagnosis_setup import prepare_setup
        from specdec_lab.measurement.diagnostics import examine
        from specdec_ref.sampling import Sampling

        models = parts(target, draft, device, dtype, lambda: on_step("loading the weights"), drafter)
        setup = prepare_setup(
            models,
            prompts=prompt or None,
            k=k,
            sampling=Sampling(temperature, top_k, top_p),
            verification=verification,
            batch=batch,
            context=context,
            seconds=seconds,
        )
        examination = examine(setup, on_step)
    if as_json:
        print(json.dumps(examination.to_dict(), indent=1, allow_nan=False))
    else:
        console = Console(highlight=False)
        console.print(examination)
        console.print(f"\n{_verdict(examination)}", style="bold")
    if not examination.healthy:
        raise typer.Exit(1)


@contextmanager
def _progress(quiet: bool, seconds: float) -> Iterator[Callable[[str], None]]:
    """A line on standard error with the present step and its duration, which disappears at the end.

    Yields a function of the next step's name.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    limit = TextColumn(f"(measuring: at most {seconds:g} s)")
    columns = SpinnerColumn(), TextColumn("{task.description:40}"), TimeElapsedColumn(), limit
    console = Console(stderr=True)
    disable = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, refresh_per_second=2, disable=disable) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what: bar.update(task, description=what)


def parts(
    target: str | None,
    draft: str | None,
    device: str | None,
    dtype: str | None,
    on_load: Callable[[], None],
    drafter: str | None = None,
) -> "Models":
    """The configurations and tokenizers of a target and a draft. The two need not fit together.

    on_load: called before the weights are loaded. drafter: one of `METHODS`.
    """
    from specdec_lab.measurement.memory_profile import configuration
    from specdec_lab.measurement.methods import with_method
    from specdec_lab.measurement.parts import Models
    from specdec_ref.beyond.heads import load_head
    from specdec_ref.loading import (
        DEFAULT_DRAFT,
        HEADS,
        Pair,
        is_head,
        load_model,
        load_tokenizer,
        shipped,
        usable_device,
        usable_dtype,
        usable_source,
    )

    draft = head_or_draft(draft, drafter)
    if target is None and draft is None:
        draft = DEFAULT_DRAFT
    if target is None and "target" not in shipped():
        raise SpecdecError(
            "target: the pair that ships is missing from this installation; make it with `specdec train`"
        )
    target = target or "target"
    where = usable_device(device)
    kind = usable_dtype(dtype, where)
    tokenizer = load_tokenizer("target", target)
    head = usable_source("draft", draft) if draft is not None and is_head(draft) else None
    model_name = None if head else draft

    def load() -> "Pair":
        on_load()
        model = load_model("draft", model_name, where, kind) if model_name else None
        pair = Pair(load_model("target", target, where, kind), model, tokenizer)
        if head is not None:
            return Pair(pair.target, None, tokenizer, load_head(pair.target, head))
        return pair if drafter is None or drafter in HEADS else with_method(pair, drafter)

    return Models(
        configuration(target, "target"),
        configuration(model_name, "draft") if model_name else None,
        tokenizer,
        load_tokenizer("draft", model_name) if model_name else None,
        where,
        kind,
        load,
        drafts=draft is not None or drafter is not None,
    )


def _verdict(examination: "Examination") -> str:
    """The last line of the report."""
    if not examination.healthy:
        return "a problem was found"
    remarks = len(examination.findings)
    words = ["healthy"]
    if examination.left_out:
        words = ["no problem in what was checked"]
    if remarks:
        words.append(f"{remarks} remark{'s' if remarks > 1 else ''}")
    return ", ".join(words)
