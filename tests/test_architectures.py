"""Every causal language model of transformers is decoded exactly, or refused in one line.

The models are small and random, made from each configuration class, so a new release of transformers is covered as it
is. The oracle is the model's own uncached forward pass.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import transformers as tf
from architectures import kinds, small_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from specdec_lab.equivalence.empirical import prompt_ids
from specdec_lab.equivalence.engines import OurLoop
from specdec_ref import GREEDY, Pair, Sampling, SpecdecError, generate_speculative, load_pair
from specdec_ref.cache import cache_argument
from specdec_ref.consistency import check_consistent, largest_difference, length_thresholds

WORK = """
afmoe apertus arcee aria_text bert bert-generation big_bird biogpt bitnet codegen cohere cohere2 ctrl cwm deepseek_v3
diffllama electra ernie ernie4_5 ernie4_5_moe exaone4 flex_olmo gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2
gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoeshared helium jais2 llama
megatron-bert mistral mixtral mpt nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe
qwen3 qwen3_moe rembert seed_oss smollm3 stablelm starcoder2 vaultgemma xglm
""".split()
"""Those that must work; others may work or be refused."""

REFUSED = """
camembert deepseek_v2 llama4_text minimax moshi openai-gpt qwen3_next roberta roformer rwkv trocr xlm xlm-roberta
""".split()
"""Those that must be refused: they ignore positions or mask, cannot be rewound, or take no cache."""

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16]]
"""The second becomes longer than a sliding window."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers says of unusual configurations."""
    level = tf.logging.get_verbosity()
    tf.logging.set_verbosity(50)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        tf.logging.set_verbosity(level)


def uncached(model: PreTrainedModel, text: list[int]) -> Tensor:
    """Logits [n, V] of a forward pass without a cache."""
    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
    return logits


def refusal(model: PreTrainedModel) -> str | None:
    """What `check_consistent` says against a model; None where it has nothing to say."""
    try:
        check_consistent(model)
    except SpecdecError as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", kinds())
def test_a_model_decodes_as_it_scores_or_is_refused(
    kind: str, tokenizer: PreTrainedTokenizerFast, disturbed: Callable[..., PreTrainedModel]
) -> None:
    """With itself as the draft every token is accepted; with a disturbed copy, some are rejected and taken back."""
    with quiet():
        try:
            model = small_model(kind)
        except Exception as error:
            if kind in WORK:
                raise
            pytest.skip(f"no small model of it: {type(error).__name__}")
        if (message := refusal(model)) is not None:
            assert kind not in WORK
            assert "\n" not in message
            return
        assert kind not in REFUSED
        for draft in (model, disturbed(model, noise=0.3)):
            pair = Pair(model, draft, tokenizer)
            found = generate_speculative(pair, PROMPTS, k=3, max_new_tokens=12, sampling=GREEDY)
            for prompt, generation in zip(PROMPTS, found, strict=True):
                logits = uncached(model, [*prompt, *generation.tokens[:-1]])
                assert generation.tokens == tuple(logits[len(prompt) - 1 :].argmax(-1).tolist())
                assert generation.acceptance_rate == 1 or draft is not model


def test_the_lists_name_models_that_exist() -> None:
    assert {*WORK, *REFUSED} <= set(kinds())


@pytest.mark.parametrize("kind", "bert big_bird megatron-bert rembert roformer".split())
def test_an_encoder_that_was_not_made_a_decoder_is_refused(kind: str) -> None:
    with quiet(), pytest.raises(SpecdecError):
        check_consistent(small_model(kind, is_decoder=False))


def test_loading_refuses_a_model_that_disagrees_with_itself(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = tmp_path_factory.mktemp("roformer")
    with quiet():
        small_model("roformer").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with pytest.raises(SpecdecError, match=r"target: roformer .* logits differ by \d+\.\d%"):
            load_pair(folder, device="cpu")


# Rotary scaling ------------------------------------------------------------------------------------------------------

THRESHOLD = 32
SCALING: dict[str, dict[str, object]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": THRESHOLD},
    "longrope": {
        "original_max_position_embeddings": THRESHOLD,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [4.0, 3.0, 2.0, 5.0],
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": THRESHOLD,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
Scaled = tuple[str, str]
CASES: list[Scaled] = [
    *(("llama", scaling) for scaling in SCALING),
    ("qwen3", "dynamic"),
    ("phi3", "longrope"),
    ("phimoe", "longrope"),
]
RAGGED = [[5, 6, 7], [8] * 26, [9] * 40]
"""Prompts on both sides of the threshold. With 16 new tokens the first ends below it and the second crosses it."""
NEW = 16


def scaled_model(case: Scaled, **changes: object) -> PreTrainedModel:
    """A model with one kind of rotary scaling. Phi-3's family has its own places for some of the numbers."""
    kind, scaling = case
    rotary: dict[str, object] = {"rope_type": scaling, "rope_theta": 1e4} | SCALING[scaling]
    if kind == "phimoe":
        rotary |= {"short_mscale": 1.2, "long_mscale": 1.5}
    if kind in ("phi3", "phimoe"):
        changes["original_max_position_embeddings"] = THRESHOLD
    with quiet():
        return small_model(kind, rope_parameters=rotary, **changes)


def forget_earlier_lengths(model: PreTrainedModel) -> None:
    """A pass over one token: `dynamic` scaling keeps the length of the longest pass otherwise."""
    uncached(model, [1])


@pytest.fixture(params=CASES, ids="-".join)
def scaled(request: pytest.FixtureRequest) -> PreTrainedModel:
    return scaled_model(request.param)


def test_every_kind_of_rotary_scaling_of_transformers_is_tested() -> None:
    assert set(SCALING) >= set(ROPE_INIT_FUNCTIONS)


@pytest.mark.parametrize("k", [0, 3])
def test_every_row_scores_as_an_uncached_pass_over_its_final_length(
    k: int, scaled: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    found = generate_speculative(Pair(scaled, scaled, tokenizer), RAGGED, k=k, max_new_tokens=NEW, sampling=GREEDY)
    for prompt, generation in zip(RAGGED, found, strict=True):
        assert len(generation.tokens) == NEW
        forget_earlier_lengths(scaled)
        logits = uncached(scaled, [*prompt, *generation.tokens])  # as long as the row became
        assert generation.tokens == tuple(logits[len(prompt) - 1 : -1].argmax(-1).tolist())


def test_a_model_that_drafts_for_itself_is_always_accepted(
    scaled: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    twins = Pair(scaled, scaled, tokenizer)
    for generation in generate_speculative(twins, RAGGED, k=4, max_new_tokens=NEW, sampling=Sampling(), seed=0):
        assert generation.acceptance_rate > 0.999


def test_a_batch_gives_each_row_what_it_gets_alone(scaled: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    twins = Pair(scaled, scaled, tokenizer)
    together = generate_speculative(twins, RAGGED, k=3, max_new_tokens=NEW, sampling=GREEDY)
    for prompt, generation in zip(RAGGED, together, strict=True):
        alone = generate_speculative(twins, prompt, k=3, max_new_tokens=NEW, sampling=GREEDY)
        assert alone.tokens == generation.tokens


def test_texts_decoded_before_change_nothing(scaled: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Also a pass beyond the context, which stretches `dynamic` scaling until a short pass resets it."""
    twins = Pair(scaled, scaled, tokenizer)

    def decode() -> tuple[int, ...]:
        tokens: tuple[int, ...] = generate_speculative(twins, RAGGED[1], k=3, max_new_tokens=60, sampling=GREEDY).tokens
        return tokens

    before = decode()
    uncached(scaled, [3] * 140)
    assert decode() == before


def test_the_equivalence_test_samples_by_the_same_rule(
    scaled: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    twins = Pair(scaled, scaled, tokenizer)
    for prompt in RAGGED[0], RAGGED[2]:
        rows = OurLoop(twins, 2, GREEDY).sample(prompt, 3, 8, seed=0)
        alone = generate_speculative(twins, prompt, k=2, max_new_tokens=8, sampling=GREEDY)
        assert rows.tolist() == [list(alone.tokens)] * 3


def test_the_equivalence_test_takes_no_text_that_changes_its_scaling(tokenizer: PreTrainedTokenizerFast) -> None:
    model = scaled_model(("llama", "longrope"))
    twins = Pair(model, model, tokenizer)
    for n in (THRESHOLD - 5, THRESHOLD + 1):
        assert prompt_ids(twins, [[5] * n], 5) == [(5,) * n]
    with pytest.raises(SpecdecError, match="rotary scaling of llama changes beyond 32"):
        prompt_ids(twins, [[5] * THRESHOLD], 5)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_scaled_model_agrees_with_itself_on_both_sides_of_its_threshold(case: Scaled) -> None:
    model = scaled_model(case)
    thresholds = length_thresholds(model.config)
    if case[1] == "longrope":
        assert THRESHOLD in thresholds
    for length in (24, *(threshold + 16 for threshold in thresholds if threshold < 100)):
        assert largest_difference(model, length=length) < 1e-4


def test_the_cache_is_passed_under_the_name_that_the_model_takes(tokenizer: PreTrainedTokenizerFast) -> None:
    """transformers 5.24 renames `past_key_values` to `cache`, warns of the old name, and will remove it."""

    own_name = cache_argument(small_model("gpt2"))

    class NewName(tf.GPT2LMHeadModel):
        def forward(self, *, cache: object = None, **more: object) -> object:
            return super().forward(**{own_name: cache}, **more)

    model = small_model("gpt2")
    new = NewName(model.config).eval()
    new.load_state_dict(model.state_dict())
    assert cache_argument(new) == "cache"
    for one in (new, model):
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            check_consistent(one)
    tokens = [
        generate_speculative(Pair(one, one, tokenizer), PROMPTS[0], k=3, max_new_tokens=12, sampling=GREEDY).tokens
        for one in (new, model)
    ]
    assert tokens[0] == tokens[1]
