"""The promises of the memory profile: exact weights and KV cache before loading, a peak within tolerance.

20 s of CPU time in all.
"""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import specdec_ref as sd
from specdec_lab.measurement.memory_peak import MemoryComparison, decode_to_the_end, measure_memory
from specdec_lab.measurement.memory_profile import (
    available_memory,
    container_memory,
    memory_figure,
    memory_profile,
    skeleton,
    tensors_of,
)
from specdec_ref.fast.packing import pack
from specdec_ref.fast.steps import choose_steps

KINDS = ["llama", "qwen3", "gpt2", "mistral", "gemma3"]


def config(**changes: object) -> LlamaConfig:
    size = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
    return LlamaConfig(**(size | changes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_weights_and_cache_of_a_llama_are_what_its_sizes_say(tied: bool, dtype: str, size: int) -> None:
    """By hand: embedding, per layer q k v o, gate up down and two norms, a last norm; two caches of kv heads."""
    profile = memory_profile((config(tie_word_embeddings=tied), None), batch=5, context=100, k=4, dtype=dtype)
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 160 + 2 * 64
    parameters = 1000 * 64 * (1 if tied else 2) + 3 * layer + 64
    rotary = 2 * 8 * 4  # inverse frequencies and a copy of them, always float32
    assert profile.weights == parameters * size + rotary
    assert profile.kv == 2 * 3 * 2 * 16 * 5 * (100 + 4) * size
    assert profile.alone.kv == 2 * 3 * 2 * 16 * 5 * 100 * size
    assert profile.draft is None


@pytest.mark.parametrize("kind", KINDS)
def test_prediction_is_what_is_allocated(
    kind: str,
    tiny_model: Callable[..., PreTrainedModel],
    disturbed: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Promised within 5 %; both are counted from the same shapes, so they are equal."""
    target = tiny_model(kind)
    pair = sd.Pair(target, disturbed(target), tokenizer)
    profile = memory_profile((target.config, pair.draft.config), batch=3, context=50, k=4, dtype="float32")
    assert profile.weights == sum(t.nbytes for m in (pair.target, pair.draft) for t in tensors_of(m))
    assert profile.kv == decode_to_the_end(pair, 3, 50, 4)
    assert profile.alone.kv == decode_to_the_end(pair, 3, 50, 0)


def test_prediction_is_what_is_allocated_where_steps_are_captured(
    tiny_model: Callable[..., PreTrainedModel],
    disturbed: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Their caches come in multiples of 256 tokens, as far as the model holds so many."""
    target = tiny_model("llama")
    pair = sd.Pair(target, disturbed(target), tokenizer)
    for model in (pair.target, pair.draft):
        choose_steps(model, "graphs")
    profile = memory_profile(pair, batch=3, context=50, k=4)
    assert profile.kv == decode_to_the_end(pair, 3, 50, 4)
    assert profile.alone.kv == decode_to_the_end(pair, 3, 50, 0)
    assert profile.kv > memory_profile((target.config, pair.draft.config), batch=3, context=50, k=4).kv


def test_a_cache_never_has_more_slots_than_the_model_has_positions() -> None:
    profile = memory_profile((config(), config(max_position_embeddings=100)), context=100, k=8)
    assert profile.kv == 2 * profile.alone.kv


def test_a_configuration_is_enough_no_weights_are_read(tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    one, other = (memory_profile((source, source), dtype="float32") for source in (str(tmp_path), config()))
    assert one.weights == other.weights
    assert one.total == other.total


def test_eight_billion_parameters_are_computed_without_allocating_them() -> None:
    """Llama 3 8B has 8,030,261,248 parameters, 16 GB in 16 bit; a token takes 32 layers × 8 heads × 128 × 2."""
    big = LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                      num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192)  # fmt: skip
    before = psutil.Process().memory_info().rss
    profile = memory_profile((big, None), batch=8, context=4096, k=4, dtype="bfloat16")
    assert psutil.Process().memory_info().rss - before < 1e9
    assert profile.weights == pytest.approx(2 * 8_030_261_248, rel=1e-6)
    assert profile.kv == 2 * 32 * 8 * 128 * 2 * 8 * 4100


def test_one_sequence_on_a_cpu_takes_a_packed_copy() -> None:
    """As much as is packed, of the models whose steps are packed, with and without drafts."""
    if torch.cuda.is_available():
        pytest.skip("configurations are taken to be for the GPU here")
    model = LlamaForCausalLM(config())
    packed = sum(weight.numel() * 4 for weight in pack(model)[0])
    assert packed in (0, sum(m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Linear)))
    profile = memory_profile((config(), config()), batch=1, context=100)
    assert (profile.target.packed, profile.packed, profile.alone.packed) == (packed, 2 * packed, packed)
    assert profile.total == profile.weights + profile.packed + profile.kv + profile.activations
    for models, changes in (((config(), None), {"batch": 2}), ((GPT2Config(), None), {})):
        assert memory_profile(models, **({"batch": 1, "context": 100} | changes)).packed == 0


def test_activations_grow_with_the_batch_and_cover_the_widest_layer() -> None:
    """Reading 100 tokens, the MLP holds gate and up, [B, 100, 160] each in float32, at once at least."""
    one, eight = (memory_profile((config(), None), batch=b, context=100, dtype="float32") for b in (1, 8))
    assert one.activations > 2 * 100 * 160 * 4
    assert 6 * one.activations < eight.activations <= 8 * one.activations  # all but masks and positions


@pytest.fixture(scope="module")
def compared(tokenizer: PreTrainedTokenizerFast) -> MemoryComparison:
    """A pair large enough that the system's own pages do not matter: 33 M parameters, 133 MB."""
    from transformers import AutoModelForCausalLM

    big = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 8}
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(config(num_hidden_layers=9, vocab_size=2000, **big)).eval()
    draft = AutoModelForCausalLM.from_config(config(num_hidden_layers=1, vocab_size=2000, **big)).eval()
    return measure_memory(sd.Pair(target, draft, tokenizer), batch=4, context=200, k=4)


def test_prediction_and_measurement_agree(compared: MemoryComparison) -> None:
    """Weights and cache within 5 %, the promise; the peak of a process, which also holds its libraries' own and depends
    on what else runs, within a factor of 2."""
    assert max(map(abs, compared.errors.values())) < 0.05
    assert len(compared.errors) == 4
    assert 0.5 < compared.measured.peak / compared.predicted.total < 2
    assert 0.5 < compared.measured_alone.peak / compared.predicted.total_alone < 2


def test_speculation_takes_the_drafts_memory_more(compared: MemoryComparison) -> None:
    assert compared.predicted.draft is not None
    assert compared.measured.weights - compared.measured_alone.weights == compared.predicted.draft.weights
    assert compared.predicted.total > compared.predicted.total_alone


def test_results_show_themselves_in_terminals_and_notebooks(compared: MemoryComparison) -> None:
    for result in (compared, compared.predicted):
        out = StringIO()
        Console(file=out, width=100).print(result)
        for shown in (out.getvalue(), result._repr_html_()):
            assert "KV cache" in shown
            assert f"{compared.predicted.weights / 2**20:.1f} MiB" in shown
        json.dumps(result.to_dict())


def test_bars_of_the_figure_add_up_to_the_totals() -> None:
    profile = memory_profile((config(), config(num_hidden_layers=1)), batch=2, context=100)
    axes = memory_figure(profile, available=2**20).axes[0]
    ends = {0: 0.0, 1: 0.0}
    for bar in axes.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends[row], bar.get_x() + bar.get_width())
    assert ends[0] * 2**20 == pytest.approx(profile.total_alone)
    assert ends[1] * 2**20 == pytest.approx(profile.total)
    assert "MiB" in axes.get_xlabel()


def test_available_memory_is_between_nothing_and_all_of_it() -> None:
    """No more is asserted: how much is free depends on what else runs, and some sandboxes report it late."""
    assert 0 < available_memory("cpu") <= psutil.virtual_memory().total


CONTROL_GROUPS = {
    "half of the limit is used": ("1000\n", "500\n", "anon 500\nfile 0\ninactive_file 0\n", 500),
    "all is used, but a part is inactive cache": ("1000\n", "1000\n", "anon 700\nfile 300\ninactive_file 200\n", 200),
    "more than the limit is used": ("1000\n", "1200\n", "anon 1200\ninactive_file 0\n", 0),
    "statistics without the cache": ("1000\n", "400\n", "anon 400\n", 600),
    "no limit": ("max\n", "500\n", "inactive_file 0\n", None),
}


@pytest.mark.parametrize(("limit", "used", "statistics", "left"), CONTROL_GROUPS.values(), ids=CONTROL_GROUPS)
def test_memory_of_a_container(tmp_path: Path, limit: str, used: str, statistics: str, left: int | None) -> None:
    """A control group's files, written here; the same code reads those of the system."""
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(used)
    (tmp_path / "memory.stat").write_text(statistics)
    assert container_memory(tmp_path) == left


def test_a_system_without_control_groups_sets_no_limit(tmp_path: Path) -> None:
    assert container_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 0}, "batch=0"),
        ({"context": 0}, "context=0"),
        ({"k": -1}, "k=-1"),
        ({"context": 257}, "context=257"),
        ({"dtype": "int3"}, "dtype='int3'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(sd.SpecdecError, match=words):
        memory_profile((config(), None), **{"context": 64, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(("models", "words"), [("target", "models="), (("no/such/folder/here", None), "target=")])
def test_models_that_are_none_are_named(models: object, words: str) -> None:
    with pytest.raises(sd.SpecdecError, match=words):
        memory_profile(models)  # type: ignore[arg-type]


def test_a_skeleton_holds_no_numbers() -> None:
    assert {t.device.type for t in tensors_of(skeleton(config(), torch.float32))} == {"meta"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prediction_and_measurement_agree_on_cuda() -> None:
    compared = measure_memory(sd.load_pair(device="cuda"), batch=16, context=512, k=4)
    assert max(map(abs, compared.errors.values())) < 0.05
    assert compared.measured.peak == pytest.approx(compared.predicted.total, rel=0.5)
    assert available_memory("cuda") <= torch.cuda.get_device_properties(0).total_memory
