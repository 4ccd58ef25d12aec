"""vLLM's configuration: what is written, what legacy arguments become, and the command line."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from specdec_lab.cli.main import app
from specdec_lab.serving.configuration import (
    for_latency,
    for_throughput,
    serve_command,
    speculative_config,
    translate,
)
from specdec_ref.errors import SpecdecError

OLD = {
    "model": "meta-llama/Llama-2-70b-hf",
    "speculative_model": "meta-llama/Llama-2-7b-hf",
    "num_speculative_tokens": 4,
    "use_v2_block_manager": True,
    "tensor_parallel_size": 4,
    "gpu_memory_utilization": 0.9,
}


def test_a_draft_model_is_sampled_and_its_q_decides() -> None:
    assert speculative_config("org/draft", 5) == {
        "method": "draft_model",
        "model": "org/draft",
        "num_speculative_tokens": 5,
        "draft_sample_method": "probabilistic",
    }
    assert speculative_config("org/draft", exact_q=False)["draft_sample_method"] == "greedy"


def test_without_a_draft_it_looks_up() -> None:
    config = speculative_config(None, 3, lookup=(2, 4))
    assert config == {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 2, "prompt_lookup_max": 4}


def test_legacy_arguments_are_translated() -> None:
    new = translate(OLD)
    assert new.engine == {k: OLD[k] for k in ("model", "tensor_parallel_size", "gpu_memory_utilization")}
    assert new.speculative_config == {
        "model": "meta-llama/Llama-2-7b-hf",
        "num_speculative_tokens": 4,
        "method": "draft_model",
    }
    assert new.notes["use_v2_block_manager"].startswith("gone")
    assert set(new.notes) == set(OLD)


def test_a_legacy_configuration_class_is_translated_without_its_nones() -> None:
    """`LLM(**vars(config))` passes None and unknown names; the translation leaves them out."""
    latency = {
        "speculative_model": None,
        "num_speculative_tokens": 2,
        "speculative_draft_tensor_parallel_size": 1,
        "speculative_max_model_len": None,
        "speculative_disable_by_batch_size": 1,
        "speculative_model_quantization": None,
        "gpu_memory_utilization": 0.9,
    }
    assert translate(latency).speculative_config is None  # it names no draft
    new = translate(latency | {"speculative_model": "org/draft", "speculative_model_quantization": "fp8"})
    assert new.engine == {"gpu_memory_utilization": 0.9}
    assert new.speculative_config == {
        "model": "org/draft",
        "num_speculative_tokens": 2,
        "draft_tensor_parallel_size": 1,
        "quantization": "fp8",
        "method": "draft_model",
        "num_speculative_tokens_per_batch_size": [[1, 1_000_000, 0]],  # 'disable from batch 1 on' never speculated
    }


def test_what_vllm_would_not_start_with_is_left_out_with_a_note() -> None:
    old = {"speculative_model": "org/draft", "speculative_draft_tensor_parallel_size": 1, "tensor_parallel_size": 4}
    new = translate(old | {"speculative_disable_by_batch_size": 1})
    assert new.speculative_config is not None
    assert "draft_tensor_parallel_size" not in new.speculative_config
    assert "as many GPUs as its target, here 4" in new.notes["speculative_draft_tensor_parallel_size"]
    assert new.notes["speculative_disable_by_batch_size"].startswith("vLLM never accepted a value below 2")
    same = translate(old | {"tensor_parallel_size": 1}).speculative_config
    assert same is not None
    assert same["draft_tensor_parallel_size"] == 1


def test_legacy_prompt_lookup() -> None:
    new = translate({"speculative_model": "[ngram]", "num_speculative_tokens": 3, "ngram_prompt_lookup_max": 4})
    assert new.speculative_config == {"num_speculative_tokens": 3, "prompt_lookup_max": 4, "method": "ngram"}


def test_presets_do_what_their_names_say() -> None:
    few = for_latency("org/draft", k=5, max_batch=8)
    assert few["num_speculative_tokens_per_batch_size"] == [[1, 8, 5], [9, 1_000_000, 0]]
    many = for_throughput("org/draft", [[1, 4, 4], [5, 16, 2], [17, 256, 0]])
    assert many["num_speculative_tokens"] == 4
    for preset in (for_latency("d", exact_q=False), for_throughput("d", [[1, 4, 2]], exact_q=False)):
        assert preset["draft_sample_method"] == "greedy"
    with pytest.raises(SpecdecError, match="k rises with the batch"):
        for_throughput("org/draft", [[1, 8, 2], [9, 64, 8]])


def test_the_command_line_can_be_pasted() -> None:
    config = speculative_config("org/draft", 4)
    words = shlex.split(serve_command("org/target", config, tensor_parallel=8, pipeline_parallel=2, nodes=2))
    assert words[:3] == ["vllm", "serve", "org/target"]
    assert json.loads(words[words.index("--speculative-config") + 1]) == config
    assert words[words.index("--tensor-parallel-size") + 1] == "8"
    assert words[words.index("--distributed-executor-backend") + 1] == "ray"
    assert "--speculative-config" not in serve_command("org/target", None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: speculative_config("d", 0), "k=0: takes a whole number ≥ 1"),
        (lambda: speculative_config(None, 2, lookup=(3, 1)), "lookup="),
        (lambda: speculative_config("d", 2, schedule=[[2, 4, 1]]), "row \\[2, 4, 1\\] does not fit"),
        (lambda: speculative_config("d", 2, schedule=[[1, 4, 3]]), "does not fit"),
        (lambda: speculative_config("d", 2, schedule=[]), "schedule="),
        (lambda: serve_command("", None), "target=''"),
        (lambda: serve_command("t", None, tensor_parallel=3, nodes=2), "cannot be divided"),
        (lambda: speculative_config("d", method="medusa"), "method='medusa': left vLLM in 0.33"),
        (lambda: speculative_config("d", method="eagle9"), "method='eagle9': takes one of draft_model"),
        (lambda: speculative_config(None, method="eagle3"), "method='eagle3': needs a draft"),
        (lambda: speculative_config("d", method="suffix"), "method='suffix': takes no draft model"),
        (lambda: speculative_config(None, method="mtp", parallel_drafting=True), "parallel_drafting: takes method"),
        (lambda: speculative_config("d", method="eagle3", heterogeneous_vocab=True), "heterogeneous_vocab: takes"),
        (lambda: speculative_config("d", rule="typical"), "rule='typical': takes one of standard"),
        (lambda: speculative_config("d", synthetic_length=2.0), "synthetic_length: takes the rule 'synthetic'"),
        (lambda: speculative_config("d", 3, rule="synthetic", synthetic_length=4.5), "synthetic_length=4.5"),
        (lambda: speculative_config("d", 3, rule="synthetic"), "synthetic_length=None"),
        (lambda: serve_command("t", None, data_parallel=0), "data_parallel=0"),
        (lambda: for_latency("d", max_batch=0), "max_batch=0"),
        (lambda: translate({"speculative_model": "d", "num_speculative_tokens": "four"}), "num_speculative_tokens="),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(SpecdecError, match=message):
        make()


def test_on_the_command_line(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["vllm-config", "org/target", "org/draft", "-k", "3"]).output
    assert '"num_speculative_tokens": 3' in said
    assert "vllm serve org/target" in said
    recorded = Path(__file__).parents[1] / "benchmarks" / "results" / "batch_policy.json"
    arguments = ["vllm-config", "org/target", "org/draft", "--policy", str(recorded), "--json"]
    config = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert config["num_speculative_tokens_per_batch_size"][0][0] == 1
    (tmp_path / "list.json").write_text("[]")
    no_policy = CliRunner().invoke(app, ["vllm-config", "t", "--policy", str(tmp_path / "list.json")])
    assert isinstance(no_policy.exception, SpecdecError)
    broken = CliRunner().invoke(app, ["vllm-config", "t", "--policy", str(tmp_path / "no.json")])
    assert isinstance(broken.exception, SpecdecError)


def test_warnings_go_to_the_error_stream_so_that_json_stays_json() -> None:
    result = CliRunner().invoke(app, ["vllm-config", "t", "d", "--rejection", "block", "--cpu", "--json"])
    assert json.loads(result.stdout)["rejection_sample_method"] == "block"
    assert "warning: block: a CPU runs on model runner V1" in result.stderr
    copies = CliRunner().invoke(app, ["vllm-config", "t", "d", "--max-batch", "4", "--data-parallel", "2"])
    assert "--data-parallel-size 2" in copies.stdout
    assert "warning: schedule: dropped with data parallelism (2)" in copies.stderr


def test_every_method_can_be_asked_for_on_the_command_line() -> None:
    for arguments in (("t", "--method", "suffix"), ("t", "--method", "mtp"), ("t", "head", "--method", "eagle3")):
        config = json.loads(CliRunner().invoke(app, ["vllm-config", *arguments, "--json"]).stdout)
        assert config["method"] == arguments[-1]


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["vllm-config", *arguments])
    assert result.exit_code == 0, result.exception
    return result.stdout


def test_the_greedy_draft_reaches_every_preset() -> None:
    assert json.loads(said("t", "d", "--max-batch", "4", "--greedy-draft", "--json"))["draft_sample_method"] == "greedy"


def test_gpus_are_sized_from_the_models_shapes(tmp_path: Path) -> None:
    """A target of 70B's shape: 129 GiB of weights in 16 bit, eight key/value heads."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=32_000, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, max_position_embeddings=4096, tie_word_embeddings=False,
    ).save_pretrained(tmp_path)  # fmt: skip
    target = str(tmp_path)
    assert "--tensor-parallel-size 2" in said(target, "--gpu-memory", "80")
    small = said(target, "--gpu-memory", "24", "--gpus-per-node", "4", "--context", "1024")
    assert "--tensor-parallel-size 4 --pipeline-parallel-size 2" in small
    assert "--distributed-executor-backend ray" in small
    assert "# first `ray start --head" in small
    assert "--tensor-parallel-size" not in said(target, "--gpu-memory", "200")
    uneven = said(target, "--gpu-memory", "24", "--gpus-per-node", "3", "--context", "1024")
    tensor, pipeline = (int(word) for word in re.findall(r"parallel-size (\d+)", uneven))
    assert tensor in (1, 2)  # divides the heads
    assert pipeline % -(-pipeline // (3 // tensor)) == 0  # as many groups on every node
    both = CliRunner().invoke(app, ["vllm-config", target, "--gpu-memory", "80", "--tensor-parallel", "2"])
    assert "--gpu-memory" in str(both.exception)
    none = CliRunner().invoke(app, ["vllm-config", str(tmp_path / "no"), "--gpu-memory", "80"])
    assert isinstance(none.exception, SpecdecError)
