"""`specdec vllm-config`: vLLM's configuration for a pair, with a warning for each setting without effect."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer


def vllm_config(
    target: Annotated[str, typer.Argument(help="The target: a folder or a hub name.")],
    draft: Annotated[
        str | None, typer.Argument(help="The draft model or head. Default: a method that needs none.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Tokens drafted per round.")] = 4,
    method: Annotated[
        str | None,
        typer.Option(
            help="draft_model, ngram, suffix, eagle3, mtp or dflash. Default: draft_model with a draft, else ngram."
        ),
    ] = None,
    parallel_drafting: Annotated[
        bool, typer.Option("--parallel-drafting", help="All k tokens in one pass, by a draft trained for it.")
    ] = False,
    heterogeneous_vocab: Annotated[
        bool, typer.Option("--heterogeneous-vocab", help="The draft has another vocabulary. Drafts greedily.")
    ] = False,
    rule: Annotated[
        str, typer.Option("--rejection", help="Acceptance rule: standard, block, synthetic or fly.")
    ] = "standard",
    synthetic_length: Annotated[
        float | None, typer.Option(help="With --rejection synthetic: tokens per round to simulate.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A policy measured by `specdec bench --batch`, as JSON: k by batch size.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Speculate for at most this many requests at once.")] = None,
    greedy_draft: Annotated[
        bool, typer.Option("--greedy-draft", help="vLLM's default: draft the most likely token, with a one-hot q.")
    ] = False,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="The server runs on a CPU: warn about settings without effect there.")
    ] = False,
    tensor_parallel: Annotated[
        int, typer.Option(help="GPUs that share each layer. Use as few as possible, in one node.")
    ] = 1,
    pipeline_parallel: Annotated[int, typer.Option(help="Groups of layers, one per node.")] = 1,
    data_parallel: Annotated[int, typer.Option(help="Copies of the whole model.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines; more than one runs on Ray.")] = 1,
    gpu_memory: Annotated[
        float | None,
        typer.Option(help="GiB of one GPU. Chooses the three sizes above from both models' configurations."),
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(help="With --gpu-memory: GPUs of a machine.")] = 8,
    batch: Annotated[int, typer.Option(help="With --gpu-memory: requests at once.")] = 8,
    context: Annotated[int | None, typer.Option(help="With --gpu-memory: tokens of each, answer included.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Largest number of requests at once.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the speculative_config alone.")] = False,
) -> None:
    """Print vLLM's speculative_config and the whole `vllm serve` command line."""
    from specdec_lab.serving.configuration import serve_command, speculative_config
    from specdec_lab.serving.vllm_methods import warnings_for
    from specdec_ref.errors import SpecdecError

    k, schedule = _draft_length(k, policy, max_batch)
    config = speculative_config(
        draft,
        k,
        method=method,
        exact_q=not greedy_draft,
        schedule=schedule,
        parallel_drafting=parallel_drafting,
        heterogeneous_vocab=heterogeneous_vocab,
        rule=rule,
        synthetic_length=synthetic_length,
    )
    warnings = warnings_for(config, cpu=cpu, data_parallel=data_parallel)
    notes = []
    if gpu_memory is not None:
        if (tensor_parallel, pipeline_parallel, nodes) != (1, 1, 1):
            raise SpecdecError("--gpu-memory: sizes --tensor-parallel, --pipeline-parallel and --nodes itself")
        asked = config["num_speculative_tokens"], batch, context
        tensor_parallel, pipeline_parallel, needed = _sizes(target, draft, *asked, gpu_memory, gpus_per_node)
        nodes = -(-pipeline_parallel // (gpus_per_node // tensor_parallel))
        pipeline_parallel = nodes * -(-pipeline_parallel // nodes)  # as many groups of layers on every node
        notes.append(
            f"{needed:.1f} GiB in 16 bit for {batch} requests at once; vLLM uses 90 % of {gpu_memory:g} GiB per GPU"
        )
    if pipeline_parallel > 1:
        notes.append("vLLM's guide used to exclude pipeline parallel with speculation: try it before you rely on it")
    if nodes > 1:
        notes.append("first `ray start --head --port 6379` here, `ray start --address=THIS:6379` on the other nodes")
    command = serve_command(
        target,
        config,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        nodes=nodes,
        max_num_seqs=max_num_seqs,
        data_parallel=data_parallel,
    )
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        print(json.dumps(config))
        return
    print(json.dumps(config, indent=2))
    print()
    for note in notes:
        print(f"# {note}")
    print(command)


def _draft_length(k: int, policy: Path | None, max_batch: int | None) -> tuple[int, Sequence[Sequence[int]] | None]:
    """k and the schedule: from a measured policy, up to a batch size, or none."""
    from specdec_lab.serving.configuration import up_to
    from specdec_ref.errors import SpecdecError

    if policy is not None and max_batch is not None:
        raise SpecdecError("--policy and --max-batch: both choose when to speculate; takes one of them")
    if policy is not None:
        measured = _policy_for_vllm(policy)
        return measured["num_speculative_tokens"], measured["num_speculative_tokens_per_batch_size"]
    return k, None if max_batch is None else up_to(max_batch, k)


def _policy_for_vllm(path: Path) -> dict[str, Any]:
    from specdec_lab.measurement.policy import SpeculationPolicy
    from specdec_ref.errors import SpecdecError

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data = data.get("policy", data)
    except (OSError, ValueError, AttributeError) as error:
        raise SpecdecError(f"--policy {str(path)!r:.80}: holds no policy as JSON ({error})") from error
    return SpeculationPolicy.from_json(data).to_vllm()


def _sizes(
    target: str, draft: str | None, k: int, batch: int, context: int | None, gpu_memory: float, gpus_per_node: int
) -> tuple[int, int, float]:
    """(tensor parallel, pipeline parallel, GiB in all), from the models' configurations. No weights are loaded."""
    from specdec_lab.measurement.memory_profile import configuration, memory_profile
    from specdec_lab.serving.decision import parallel_for

    profile = memory_profile((target, draft), batch=batch, context=context, k=k, dtype="bfloat16")
    shape = configuration(target, "target").get_text_config()
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    sizes = parallel_for(
        profile.total,
        gpu_memory * 2**30,
        heads,
        attention_heads=shape.num_attention_heads,
        cache=profile.kv,
        gpus_per_node=gpus_per_node,
    )
    return *sizes, profile.total / 2**30
