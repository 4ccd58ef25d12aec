"""What several test files share: tiny random models of each architecture, a tokenizer with half characters, a pair.

Nothing here touches the network or a shipped weight; torch runs on one thread; every test starts from the same seed.
"""

import copy
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start: threads of several processes hinder each other
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # transformers' own bars as well

from collections.abc import Callable
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from specdec_ref import Pair

# One profile for all files: the same examples in every run, and no deadline, since machines are busy.
hypothesis.settings.register_profile("tests", max_examples=100, deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")

VOCAB = 64
WINDOW = 16

# 64 tokens of byte-level BPE: an end token, 30 plain characters, the bytes of é and …, 28 merges.
END = "<|end|>"
CHARACTERS = [*"abcdefghijklmnopqrstuvwxyz.,", "Ġ", "Ċ"]
HALVES = ["Ã", "©", "â", "Ģ", "¦"]
MERGES = "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou".split()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    """Its tokens are single bytes and pairs, so that characters, stop strings and words fall across tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([END, *CHARACTERS, *HALVES, *MERGES])}
    assert len(vocabulary) == VOCAB
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[(m[0], m[1]) for m in MERGES]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=END, clean_up_tokenization_spaces=False)


def build_model(kind: str = "llama", seed: int = 0, **changes: object) -> "PreTrainedModel":
    """A random causal LM of 2 layers, 4 query and 2 key-value heads, that ends at no token.

    Its weights are scaled up: as initialized, logits are near constant and any mistake in the cache would pass.
    """
    import transformers as tf

    torch.manual_seed(seed)
    size: dict[str, object] = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    gemma = {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
    mixed = {"layer_types": ["sliding_attention", "full_attention"]}
    make: dict[str, tuple[type, dict[str, object]]] = {
        "llama": (tf.LlamaConfig, size),
        "qwen2": (tf.Qwen2Config, size),
        "qwen3": (tf.Qwen3Config, size | {"head_dim": 8}),
        "gpt2": (tf.GPT2Config, {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
        "mistral": (tf.MistralConfig, size | {"sliding_window": WINDOW}),
        "gemma2": (tf.Gemma2Config, size | gemma | mixed),
        "gemma3": (tf.Gemma3TextConfig, size | gemma | mixed),
    }
    config, arguments = make[kind]
    no_special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = tf.AutoModelForCausalLM.from_config(config(**(arguments | no_special | changes))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(15)
    return model


def disturb(model: "PreTrainedModel", noise: float = 0.05, seed: int = 1) -> "PreTrainedModel":
    """A copy whose weights differ a little: a draft that the target accepts often, but not always."""
    torch.manual_seed(seed)
    draft = copy.deepcopy(model)
    with torch.no_grad():
        for weight in draft.parameters():
            if weight.ndim >= 2:
                weight.add_(torch.randn_like(weight) * weight.std() * noise)
    return draft


@pytest.fixture(scope="session")
def tiny_model() -> "Callable[..., PreTrainedModel]":
    """`tiny_model(kind, seed, **changes to the configuration)`: a new random model."""
    return build_model


@pytest.fixture(scope="session")
def disturbed() -> "Callable[..., PreTrainedModel]":
    """`disturbed(model, noise, seed)`: a draft for that model."""
    return disturb


@pytest.fixture(scope="session")
def pair(tokenizer: "PreTrainedTokenizerFast") -> "Pair":
    """A Llama and a draft that it accepts often, but not always. Shared: not to be changed."""
    from specdec_ref import Pair

    target = build_model("llama")
    return Pair(target, disturb(target), tokenizer)


@pytest.fixture
def check_wrong_use(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[tuple[str, ...], str], None]:
    """A check that `specdec` reports wrong arguments in one line with these words, and ends with status 2."""
    from specdec_lab.cli.main import main

    def check(arguments: tuple[str, ...], words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["specdec", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        said = capfd.readouterr().err
        assert words in said
        assert len(said.strip().splitlines()) == 1

    return check
