"""vLLM's methods and acceptance rules: what each configuration holds, and every warning where it is due."""

from typing import Any

import pytest

from specdec_lab.serving.configuration import for_latency, speculative_config
from specdec_lab.serving.vllm_methods import METHODS, RULES, warnings_for

BLOCK = speculative_config("d", rule="block")
SUFFIX = speculative_config(None, method="suffix")
PARALLEL = speculative_config("d", parallel_drafting=True, rule="block")
OTHER_VOCABULARY = speculative_config("d", heterogeneous_vocab=True, rule="block")


@pytest.mark.parametrize("method", METHODS)
def test_a_configuration_names_its_method_and_a_model_only_where_one_is_needed(method: str) -> None:
    needs_model = METHODS[method].needs_model
    config = speculative_config("org/weights" if needs_model else None, 3, method=method)
    assert config["method"] == method
    assert ("model" in config) == needs_model
    assert ("draft_sample_method" in config) == METHODS[method].has_q


def test_drafters_that_always_draft_in_parallel_need_no_key_for_it() -> None:
    assert speculative_config("d", method="eagle3", parallel_drafting=True)["parallel_drafting"] is True
    assert "parallel_drafting" not in speculative_config("d", method="dflash", parallel_drafting=True)


def test_a_heterogeneous_vocabulary_drafts_greedily_since_vllm_refuses_the_other() -> None:
    assert OTHER_VOCABULARY["use_heterogeneous_vocab"] is True
    assert OTHER_VOCABULARY["draft_sample_method"] == "greedy"


def test_the_default_rule_needs_no_key_and_the_others_have_theirs() -> None:
    assert "rejection_sample_method" not in speculative_config("d")
    assert [name for name, rule in RULES.items() if rule.exact] == ["standard", "block"]
    synthetic = speculative_config("d", 4, rule="synthetic", synthetic_length=3.5)
    assert synthetic["synthetic_acceptance_length"] == 3.5


def warned(config: dict[str, Any], *words: str, **deployment: Any) -> bool:
    return any(all(word in warning for word in words) for warning in warnings_for(config, **deployment))


@pytest.mark.parametrize(
    ("config", "deployment", "reason"),
    [
        (BLOCK, {"cpu": True}, "a CPU"),
        (SUFFIX | {"rejection_sample_method": "block"}, {}, "suffix decoding"),
        (PARALLEL, {}, "a parallel draft model"),
        (OTHER_VOCABULARY, {}, "a heterogeneous vocabulary"),
    ],
    ids=["cpu", "suffix", "parallel", "vocabulary"],
)
def test_block_is_warned_of_wherever_vllm_uses_runner_v1(
    config: dict[str, Any], deployment: dict[str, Any], reason: str
) -> None:
    assert warned(config, "block: ", f"{reason} runs on model runner V1, which still decides", **deployment)


def test_block_on_runner_v1_also_loses_the_sampled_draft() -> None:
    assert warned(BLOCK, "block", "its draft becomes greedy", cpu=True)
    assert not warned(OTHER_VOCABULARY, "block", "its draft becomes greedy")  # it was greedy before


def test_block_is_silent_on_a_gpu_and_gains_nothing_from_a_one_hot_q() -> None:
    assert not warned(BLOCK, "block")
    assert warned(speculative_config("d", rule="block", exact_q=False), "block: gains nothing")
    assert warned(speculative_config(None, rule="block"), "block: gains nothing")


@pytest.mark.parametrize(
    ("config", "deployment", "words"),
    [
        (speculative_config("d", rule="fly"), {}, "fly: lossy"),
        (speculative_config("d", rule="fly"), {"cpu": True}, "refuses it on a CPU"),
        (speculative_config("d", rule="synthetic", synthetic_length=2.0), {}, "never for users"),
        (speculative_config("d"), {}, "#54282"),
        (speculative_config("d"), {"cpu": True}, "#55005"),
        (OTHER_VOCABULARY | {"draft_sample_method": "probabilistic"}, {}, "vLLM refuses it together"),
        (for_latency("d"), {"data_parallel": 2}, "dropped with data parallelism (2)"),
        (for_latency("d"), {}, "tokens beyond k are thrown away"),
        (for_latency("d"), {"cpu": True}, "#47014"),
        (SUFFIX | {"num_speculative_tokens_per_batch_size": [[1, 4, 2]]}, {}, "dropped with suffix decoding"),
        (SUFFIX, {}, "arctic-inference"),
        (PARALLEL, {}, "trained to predict k tokens in one pass"),
    ],
)
def test_every_other_warning(config: dict[str, Any], deployment: dict[str, Any], words: str) -> None:
    assert warned(config, words, **deployment)


@pytest.mark.parametrize(
    "config",
    [
        speculative_config(None),
        speculative_config("d", exact_q=False),
        speculative_config("h", method="eagle3", exact_q=False),
        speculative_config("h", method="eagle3", exact_q=False, schedule=[[1, 4, 2], [5, 64, 0]]),
    ],
)
def test_nothing_is_said_where_everything_takes_effect(config: dict[str, Any]) -> None:
    assert warnings_for(config) == []
