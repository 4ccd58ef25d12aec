"""specdec vllm-config: what to tell vLLM."""

import json
from pathlib import Path
from typing import Annotated

import typer


def vllm_config(
    target: Annotated[str, typer.Argument(help="The target: a folder or a hub name.")],
    draft: Annotated[str | None, typer.Argument(help="The draft model; without one prompt lookup.")] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Tokens drafted per round.")] = 4,
    policy: Annotated[
        Path | None, typer.Option(help="A policy measured by `specdec bench --batch`, as JSON: k by batch size.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Speculate up to so many requests at once, beyond not.")] = None,
    greedy_draft: Annotated[
        bool, typer.Option("--greedy-draft", help="vLLM's own default: the draft's likeliest token, as certain.")
    ] = False,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs that share each layer.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option(help="Groups of layers, one after the other.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines; more than one runs on Ray.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the speculative_config alone.")] = False,
) -> None:
    """Print vLLM's speculative_config and the whole `vllm serve` command line."""
    from specdec_ref.errors import SpecdecError
    from specdec_ref.serving.configuration import for_latency, serve_command, speculative_config

    if policy is not None and max_batch is not None:
        raise SpecdecError("--policy and --max-batch: both say when to speculate; takes one of them")
    if policy is not None:
        from specdec_ref.measurement.policy import SpeculationPolicy

        try:
            data = json.loads(policy.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SpecdecError(f"--policy {str(policy)!r:.80}: cannot be read as JSON ({error})") from error
        said = SpeculationPolicy.from_json(data.get("policy", data)).to_vllm()
        schedule = said["num_speculative_tokens_per_batch_size"]
        config = speculative_config(draft, said["num_speculative_tokens"], exact_q=not greedy_draft, schedule=schedule)
    elif max_batch is not None:
        config = for_latency(draft, k, max_batch)
    else:
        config = speculative_config(draft, k, exact_q=not greedy_draft)
    command = serve_command(
        target, config, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel, nodes=nodes
    )
    if as_json:
        print(json.dumps(config))
        return
    print(json.dumps(config, indent=2))
    print()
    print(command)
