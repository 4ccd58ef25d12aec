"""The promises of `models`: an unmodified transformers model with our cache scores as it does without any cache,
however ragged the rows and whatever was rejected; what cannot be rewound is refused; a pair is checked when it is
loaded.
"""

import itertools
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from specdec_ref import GREEDY, Pair, SpecdecError, TransformersModel, generate_speculative, load_pair
from specdec_ref.loading import check_compatible
from specdec_ref.models import check_rewindable

KINDS = "llama qwen2 qwen3 gpt2 mistral gemma2 gemma3".split()
VOCAB = 64
LENGTH = 60  # well past the sliding window of 16


@dataclass(frozen=True)
class Case:
    """A model, three random texts [3, LENGTH], and the logits that it gives them in one pass without a cache."""

    model: PreTrainedModel
    tokens: Tensor
    logits: Tensor

    def slice(self, of: Tensor, starts: list[int], n: int) -> Tensor:
        """n positions of each row from its start on."""
        return torch.stack([row[start : start + n] for row, start in zip(of, starts, strict=True)])


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tiny_model: Callable[..., PreTrainedModel]) -> Case:
    model = tiny_model(request.param)
    tokens = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(input_ids=tokens, use_cache=False).logits
    assert logits.std(1).mean() > 1, "a model that says the same everywhere would pass every test"
    return Case(model, tokens, logits)


def rejected(batch: int, n: int) -> Tensor:
    """Tokens of another text, to be taken back."""
    return torch.randint(0, VOCAB, (batch, n))


def begun(case: Case, lengths: list[int]) -> TransformersModel:
    """Our model with the first so many tokens of each text."""
    model = TransformersModel(case.model)
    model.start(len(lengths), 80)
    model.prefill([row[:n].tolist() for row, n in zip(case.tokens, lengths, strict=True)])
    return model


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [512, 7], ids=["prefill at once", "prefill in chunks"])
def test_ragged_prefill_and_extend_give_the_logits_of_a_fresh_forward(
    case: Case, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specdec_ref.models.PREFILL_CHUNK", chunk)
    lengths = [30, 20, 5]
    model = begun(case, lengths)
    close(model.extend(case.slice(case.tokens, lengths, 12)), case.slice(case.logits, lengths, 12))


def test_autocast_around_the_loop_changes_nothing(pair: Pair) -> None:
    """Steps compute in the number type of the weights; records made inside serve outside, too."""
    plain = generate_speculative(pair, [1, 2, 3], k=3, max_new_tokens=60, seed=0).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate_speculative(pair, [1, 2, 3], k=3, max_new_tokens=60, seed=0).tokens == plain
    assert generate_speculative(pair, [1, 2, 3], k=3, max_new_tokens=60, seed=0).tokens == plain


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantize_per_tensor")
def test_a_model_with_quantised_linear_layers_is_decoded_as_it_scores(pair: Pair) -> None:
    """Its layers are other modules, without a weight that could be looked at."""
    target = torch.ao.quantization.quantize_dynamic(pair.target, {torch.nn.Linear}, dtype=torch.qint8)
    assert type(target.lm_head) is not torch.nn.Linear
    quantised = Pair(target, pair.draft, pair.tokenizer)
    found = generate_speculative(quantised, [1, 2, 3], k=3, max_new_tokens=20, sampling=GREEDY).tokens
    assert found == generate_speculative(quantised, [1, 2, 3], k=0, max_new_tokens=20, sampling=GREEDY).tokens


def test_rejected_tokens_leave_no_trace_in_the_logits(case: Case) -> None:
    lengths = [30, 14, 1]
    model = begun(case, lengths)
    for step, accepted in ((6, [0, 3, 6]), (4, [4, 0, 1]), (1, [1, 0, 1]), (9, [2, 9, 0])):
        right = case.slice(case.tokens, lengths, step)
        keep = torch.tensor(accepted)[:, None] > torch.arange(step)
        logits = model.extend(torch.where(keep, right, rejected(3, step)))
        for row, n in enumerate(accepted):
            close(logits[row, :n], case.logits[row, lengths[row] : lengths[row] + n])
        lengths = [length + n for length, n in zip(lengths, accepted, strict=True)]
        model.rewind(lengths)
        close(model.extend(case.slice(case.tokens, lengths, 3)), case.slice(case.logits, lengths, 3))
        model.rewind(lengths)


def test_a_text_can_be_rewound_to_before_its_sliding_window_and_go_on(case: Case) -> None:
    model = begun(case, [50, 40, 30])
    model.extend(rejected(3, 5))
    model.rewind([2, 17, 1])
    close(model.extend(case.slice(case.tokens, [2, 17, 1], 40)), case.slice(case.logits, [2, 17, 1], 40))


def test_after_every_rewind_the_cache_is_that_of_a_fresh_prefill(case: Case) -> None:
    model = begun(case, [30, 20, 5])
    for step, lengths in ((5, [33, 20, 9]), (9, [34, 29, 9]), (1, [35, 29, 10]), (2, [1, 18, 4])):
        right = case.slice(case.tokens, model.cache.lengths, step)
        keep = torch.tensor(lengths)[:, None] > torch.tensor(model.cache.lengths)[:, None] + torch.arange(step)
        model.extend(torch.where(keep, right, rejected(3, step)))
        model.rewind(lengths)
        for row, length in enumerate(lengths):
            fresh = begun(case, [0, 0, 0])
            fresh.start(1, 80)
            fresh.prefill([case.tokens[row, :length].tolist()])
            ours, theirs = model.cache.row(row), fresh.cache.row(0)
            assert ours.keys() == theirs.keys() == set(range(2))
            for layer in ours:
                close(ours[layer][0], theirs[layer][0])
                close(ours[layer][1], theirs[layer][1])


def test_rows_that_are_kept_go_on_as_if_alone(case: Case) -> None:
    model = begun(case, [30, 20, 5])
    model.extend(rejected(3, 4))
    model.rewind([30, 20, 5])
    model.keep([2, 0])
    logits = model.extend(torch.stack([case.tokens[2, 5:15], case.tokens[0, 30:40]]))
    close(logits, torch.stack([case.logits[2, 5:15], case.logits[0, 30:40]]))


def test_more_tokens_than_the_capacity_raise(case: Case) -> None:
    model = begun(case, [60, 20, 5])
    with pytest.raises(AssertionError, match="cache for 80"):
        model.extend(rejected(3, 21))


def test_bfloat16_gives_the_logits_of_a_fresh_bfloat16_forward(case: Case) -> None:
    plain = tf.AutoModelForCausalLM.from_config(case.model.config)
    plain.load_state_dict(case.model.state_dict())
    ours = Case(plain.bfloat16().eval(), case.tokens, case.logits)
    with torch.inference_mode():
        expected = ours.model(input_ids=case.tokens, use_cache=False).logits
    model = begun(ours, [30, 20, 5])
    model.extend(rejected(3, 4))
    model.rewind([30, 20, 5])
    logits = model.extend(case.slice(case.tokens, [30, 20, 5], 8))
    assert logits.dtype == model.cache.row(0)[0][0].dtype == torch.bfloat16
    # Eight bits of mantissa: the same rounding errors as between bfloat16 and float32 themselves, and a margin.
    allowed = 3 * float((expected.float() - case.logits).abs().max())
    assert float((logits.float() - case.slice(expected, [30, 20, 5], 8).float()).abs().max()) < allowed < 1.5


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_cache_holds_only_the_shared_heads_of_grouped_query_attention(
    heads: int, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    plain = tiny_model("llama", num_key_value_heads=heads)
    tokens = rejected(2, 12)
    model = TransformersModel(plain)
    model.start(2, 20)
    with torch.inference_mode():
        close(model.extend(tokens), plain(input_ids=tokens, use_cache=False).logits)
    assert model.cache.row(1)[0][0].shape == (heads, 12, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_context_is_what_the_configuration_says(kind: str, tiny_model: Callable[..., PreTrainedModel]) -> None:
    assert TransformersModel(tiny_model(kind)).context == 128


def test_scores_end_at_the_vocabulary_asked_for(tiny_model: Callable[..., PreTrainedModel]) -> None:
    plain = tiny_model("llama")
    model = TransformersModel(plain, vocab_size=50)
    model.start(1, 4)
    tokens = rejected(1, 3)
    with torch.inference_mode():
        close(model.extend(tokens), plain(input_ids=tokens, use_cache=False).logits[..., :50])
    assert model.vocab_size == 50


@pytest.mark.parametrize("what", ["module", "parameter"])
def test_a_part_that_was_replaced_is_the_one_that_scores(what: str, tiny_model: Callable[..., PreTrainedModel]) -> None:
    """As adapters and quantisation do, after the model has scored already: nothing old may be replayed."""
    plain, tokens = tiny_model("llama"), rejected(1, 3)

    def ours() -> Tensor:
        model = TransformersModel(plain)
        model.start(1, 8)
        model.prefill([[5, 6]])
        return model.extend(tokens)

    before = ours()
    weight = torch.nn.Parameter(plain.lm_head.weight.detach() * 2)
    if what == "module":
        plain.lm_head = torch.nn.Linear(32, VOCAB, bias=False)
    plain.lm_head.weight = weight
    close(ours(), 2 * before)


SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
EXPERTS = {"head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
REFUSED: dict[str, tuple[type, dict[str, object], str]] = {
    "recurrent": (tf.MambaConfig, {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}, "mamba"),
    "recurrent and attention": (
        tf.RecurrentGemmaConfig,
        {k: v for k, v in SMALL.items() if k != "num_key_value_heads"} | {"num_hidden_layers": 3, "lru_width": 32},
        "recurrent_gemma",
    ),
    "recurrent without layer types": (
        tf.RwkvConfig, {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2}, "rwkv"
    ),
    "chunked attention": (
        tf.Llama4TextConfig,
        SMALL | {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 16},
        "chunked_attention",
    ),
    "linear attention": (
        tf.Qwen3NextConfig, SMALL | EXPERTS | {"layer_types": ["linear_attention", "full_attention"]},
        "linear_attention"
    ),
    "positions of its own": (
        tf.FalconConfig, {k: v for k, v in SMALL.items() if k not in ("intermediate_size", "num_key_value_heads")}
        | {"alibi": True}, "alibi"
    ),
    "attention both ways": (
        tf.BertConfig, {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}, "looks at later tokens"
    ),
    "convolution": (tf.Lfm2Config, SMALL | {"layer_types": ["conv", "full_attention"]}, "conv"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_keeps_a_running_state_or_looks_elsewhere_than_back_is_refused(what: str) -> None:
    config, arguments, word = REFUSED[what]
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(config(**arguments))
    with pytest.raises(SpecdecError, match=word):
        TransformersModel(model)


def test_an_encoder_decoder_model_is_refused() -> None:
    with torch.device("meta"):
        model = tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=1))
    with pytest.raises(SpecdecError, match="encoder-decoder"):
        TransformersModel(model)


def test_windows_inside_a_model_that_ignore_our_positions_are_refused_or_right() -> None:
    """GPT-Neo's local layers build their own window from the longest row: wrong for the shorter rows of a ragged
    batch."""
    size = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128}
    kinds = {"window_size": 8, "attention_types": [[["global", "local"], 1]]}
    config = tf.GPTNeoConfig(**size, **kinds, bos_token_id=None, eos_token_id=None)
    plain = tf.AutoModelForCausalLM.from_config(config).eval()
    try:
        check_rewindable(plain)
    except SpecdecError:
        return
    tokens = rejected(2, 40)
    with torch.inference_mode():
        logits = plain(input_ids=tokens, use_cache=False).logits
    model = begun(Case(plain, tokens, logits), [30, 20])
    close(model.extend(torch.stack([tokens[0, 30:35], tokens[1, 20:25]]))[1], logits[1, 20:25])


@pytest.fixture
def saved(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[PreTrainedModel], Path]:
    """Saves a model with the tokenizer (or another one) in a new folder, and returns that."""
    number = itertools.count()

    def save(model: PreTrainedModel, own: PreTrainedTokenizerFast = tokenizer) -> Path:
        folder = tmp_path / f"model-{next(number)}"
        model.save_pretrained(folder)
        own.save_pretrained(folder)
        return folder

    return save


Saved = Callable[..., Path]
Tiny = Callable[..., PreTrainedModel]


def changed(tokenizer: PreTrainedTokenizerFast, change: Callable[[dict[str, int]], object]) -> PreTrainedTokenizerFast:
    """The same tokenizer with another map from string to id."""
    from tokenizers import Tokenizer

    description = json.loads(tokenizer.backend_tokenizer.to_str())
    change(description["model"]["vocab"])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)))


def swap(a: str, b: str) -> Callable[[dict[str, int]], object]:
    return lambda vocabulary: vocabulary.update({a: vocabulary[b], b: vocabulary[a]})


def test_a_pair_loads_from_two_folders_with_the_weights_it_was_saved_with(saved: Saved, tiny_model: Tiny) -> None:
    target, draft = tiny_model("llama"), tiny_model("qwen3", seed=1)
    pair = load_pair(saved(target), str(saved(draft)), device="cpu")
    for loaded, original in ((pair.target, target), (pair.draft, draft)):
        assert loaded is not None
        state = original.state_dict()
        assert all(torch.equal(weight, state[name]) for name, weight in loaded.state_dict().items())
        assert not loaded.training
        assert loaded.dtype == torch.float32
    assert pair.tokenizer.decode(pair.tokenizer("the end … é")["input_ids"]) == "the end … é"
    assert pair.device == torch.device("cpu")


def test_a_loaded_model_can_be_saved_again(saved: Saved, tiny_model: Tiny) -> None:
    original = tiny_model("llama")
    again = load_pair(saved(load_pair(saved(original), device="cpu").target), device="cpu").target
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in original.state_dict().items())


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16], ids=str)
def test_a_pair_loads_in_the_number_type_asked_for(dtype: object, saved: Saved, tiny_model: Tiny) -> None:
    pair = load_pair(saved(tiny_model()), saved(tiny_model()), device="cpu", dtype=dtype)  # type: ignore[arg-type]
    assert pair.target.dtype == pair.draft.dtype == torch.bfloat16  # type: ignore[union-attr]


def test_a_target_alone_makes_a_pair_without_a_draft(saved: Saved, tiny_model: Tiny) -> None:
    assert load_pair(saved(tiny_model()), device="cpu").draft is None


@pytest.mark.parametrize("rows", [(64, 72), (72, 64), (70, 80)])
def test_rows_of_padding_may_differ(rows: tuple[int, int], saved: Saved, tiny_model: Tiny) -> None:
    models = [saved(tiny_model(vocab_size=n)) for n in rows]
    pair = load_pair(*models, device="cpu")
    assert (pair.target.config.vocab_size, pair.draft.config.vocab_size) == rows  # type: ignore[union-attr]


def test_another_map_from_string_to_id_is_refused_with_the_first_difference(
    saved: Saved, tiny_model: Tiny, tokenizer: PreTrainedTokenizerFast
) -> None:
    draft = saved(tiny_model(), changed(tokenizer, swap("e", "k")))  # ids 5 and 11
    with pytest.raises(SpecdecError, match=r"draft: .*id 5 is 'e' for the target and 'k' for the draft"):
        load_pair(saved(tiny_model()), draft, device="cpu")


def test_a_vocabulary_that_is_only_longer_is_refused(
    saved: Saved, tiny_model: Tiny, tokenizer: PreTrainedTokenizerFast
) -> None:
    draft = saved(tiny_model(vocab_size=72), changed(tokenizer, lambda vocabulary: vocabulary.update({"zz": 64})))
    with pytest.raises(SpecdecError, match=r"draft: .*id 64"):
        load_pair(saved(tiny_model()), draft, device="cpu")


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_tokenizer_with_more_ids_than_the_model_scores_is_refused(role: str, saved: Saved, tiny_model: Tiny) -> None:
    good, short = saved(tiny_model()), saved(tiny_model(vocab_size=60))
    with pytest.raises(SpecdecError, match=f"{role}: .*60 tokens"):
        load_pair(*((short, good) if role == "target" else (good, short)), device="cpu")


def test_a_model_that_cannot_be_rewound_is_refused_at_the_door(saved: Saved, tiny_model: Tiny) -> None:
    config = tf.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4)
    recurrent = saved(tf.AutoModelForCausalLM.from_config(config))
    with pytest.raises(SpecdecError, match="rewound"):
        load_pair(saved(tiny_model()), recurrent, device="cpu")


def test_a_checkpoint_that_lacks_weights_is_refused_not_filled_with_random_ones(saved: Saved, tiny_model: Tiny) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tiny_model())
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpecdecError, match="target"):
        load_pair(folder, device="cpu")


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.file,)


def test_a_pickled_checkpoint_is_refused_and_never_opened(saved: Saved, tiny_model: Tiny, tmp_path: Path) -> None:
    folder = saved(tiny_model())
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "opened")))
    with pytest.raises(SpecdecError, match="safetensors"):
        load_pair(folder, device="cpu")
    assert not (tmp_path / "opened").exists()


def test_a_models_own_code_is_never_run(saved: Saved, tiny_model: Tiny, tmp_path: Path) -> None:
    folder = saved(tiny_model())
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    with pytest.raises(SpecdecError, match="target"):
        load_pair(folder, device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_context_of_a_pair_is_what_both_can_hold(tiny_model: Tiny, tokenizer: PreTrainedTokenizerFast) -> None:
    long, short = tiny_model(), tiny_model("gpt2", n_positions=100)
    assert Pair(long, short, tokenizer).context == Pair(short, long, tokenizer).context == 100


@pytest.mark.parametrize(("eos", "expected"), [(None, set()), (7, {7}), ([7, 9], {7, 9}), (0, {0})])
def test_the_end_tokens_are_the_targets(
    eos: object, expected: set[int], tiny_model: Tiny, tokenizer: PreTrainedTokenizerFast
) -> None:
    target = tiny_model()
    target.generation_config.eos_token_id = eos
    assert Pair(target, tiny_model(eos_token_id=3), tokenizer).eos == expected


def test_a_model_that_does_not_fit_on_the_device_is_one_line(
    saved: Saved, tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

    folder = saved(tiny_model())
    monkeypatch.setattr(tf.PreTrainedModel, "to", full)
    with pytest.raises(SpecdecError, match=r"target=.*cannot be loaded: .*out of memory"):
        load_pair(folder, device="cpu")


def test_two_names_for_one_id_raise(saved: Saved, tiny_model: Tiny) -> None:
    class Words:
        def __init__(self, vocabulary: dict[str, int]):
            self.get_vocab = lambda: vocabulary

    words: Any = Words({"a": 0, "b": 1, "c": 1}), Words({"a": 0, "c": 1})
    with pytest.raises(SpecdecError, match=r"draft: its vocabulary is not the target's: id 1"):
        check_compatible(tiny_model(), words[0], tiny_model(), words[1])


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="reads which files Linux has mapped")
@pytest.mark.parametrize("tied", [True, False])
def test_a_loaded_model_holds_no_pages_of_its_file(
    tied: bool,
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """They would be in memory in addition to the weights, which are copied into another order."""
    tiny_model("llama", tie_word_embeddings=tied).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_pair(tmp_path, device="cpu")
    assert loaded.target.get_output_embeddings().weight.abs().max() > 0
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
