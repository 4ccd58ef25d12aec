"""SmolLM2-135M-Instruct, a real model: `make test-real` installs it and runs these tests.

The reference is transformers: its own `generate`, and a forward pass over a whole text without a cache, both by a
second copy of the model that this package has not touched. Some minutes on one idle core, half of them for the test at
the end of the context.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import specdec_ref as sd

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.real

FOLDER = Path(__file__).parents[2] / ".venv" / "smollm2-135m-instruct"
NEW = 80
ROUNDING = 2e-3
"""Logits of the same text differ by at most so much between one pass and steps with a cache and packed weights. They
are sums of the same terms in another order: 4e-4 was measured, on logits between -20 and 40."""

QUESTION = "Explain in three sentences why the sky is blue."
LETTER = "Dear Ms. Weber,\nthank you for your letter of 3 May. We have read it with care, and we will answer it soon.\n"
PROMPTS = {
    "a story": "Once upon a time, in a small village by the sea,",
    "code": "def fibonacci(n):\n    ",
    "a repetition": LETTER * 2 + "Dear Ms. Weber,\nthank you",
    "Chinese and emoji": "今天天气很好。🌍🚀 \n" * 4,
}
EMOJI = "🌍🚀 你好。世界。 こんにちは 👩‍👩‍👧 안녕하세요\n"


@pytest.fixture(scope="module")
def pair() -> sd.Pair:
    """The model without a draft, as `load_pair` gives it."""
    assert FOLDER.is_dir(), "the model is not installed: run `make test-real`"
    return sd.load_pair(FOLDER)


@pytest.fixture(scope="module")
def reference() -> "PreTrainedModel":
    """The same model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def rounded(pair: sd.Pair, reference: "PreTrainedModel", tmp_path_factory: pytest.TempPathFactory) -> sd.Pair:
    """The model with a draft that it accepts about 4 times in 5: its own weights, rounded to 8 bits."""
    draft = copy.deepcopy(reference)
    for weight in draft.parameters():
        weight.data = weight.data.to(torch.float8_e5m2).float()
    folder = tmp_path_factory.mktemp("rounded")
    draft.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return sd.Pair(pair.target, sd.load_pair(FOLDER, folder).draft, pair.tokenizer)


@pytest.fixture(scope="module")
def shallow(pair: sd.Pair, reference: "PreTrainedModel", tmp_path_factory: pytest.TempPathFactory) -> sd.Pair:
    """The model with a draft that it hardly ever accepts: its own first 10 of 30 layers."""
    draft = copy.deepcopy(reference)
    draft.model.layers = draft.model.layers[:10]
    draft.config.num_hidden_layers = 10
    folder = tmp_path_factory.mktemp("shallow")
    draft.save_pretrained(folder)
    pair.tokenizer.save_pretrained(folder)
    return sd.Pair(pair.target, sd.load_pair(FOLDER, folder).draft, pair.tokenizer)


def chat(pair: sd.Pair, question: str) -> str:
    """The prompt of one question, in the model's own chat template."""
    messages = [{"role": "user", "content": question}]
    return str(pair.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


_expected: dict[tuple[int, ...], list[int]] = {}


def expected(reference: "PreTrainedModel", prompt: tuple[int, ...], new: int = NEW) -> list[int]:
    """What transformers' `generate` emits for a prompt, greedily. Computed once for each prompt."""
    if prompt not in _expected:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        out = reference.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, use_cache=True)
        _expected[prompt] = out[0, len(prompt) :].tolist()
    return _expected[prompt]


@torch.inference_mode()
def shortfall(reference: "PreTrainedModel", prompt: tuple[int, ...], tokens: tuple[int, ...]) -> float:
    """By how much the logit of an emitted token is below the largest, at most, in one pass over the whole text."""
    text = torch.tensor([[*prompt, *tokens[:-1]]])
    logits = reference(text, logits_to_keep=len(tokens)).logits[0]
    emitted = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float((logits.max(1).values - emitted).max())


def check_greedy(reference: "PreTrainedModel", generation: sd.Generation) -> None:
    """The tokens are those of transformers' `generate`.

    Steps of several tokens add up in another order, so two tokens that score the same within rounding may change
    places, and what follows is another text. Then each emitted token must score as high as any other, within rounding,
    by a forward pass over the emitted text itself.
    """
    prompt, tokens = generation.prompt_tokens, generation.tokens
    if list(tokens) != expected(reference, prompt):
        assert shortfall(reference, prompt, tokens) < ROUNDING
        assert shortfall(reference, prompt, tuple(expected(reference, prompt))) < ROUNDING


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_output_is_that_of_transformers(name: str, k: int, pair: sd.Pair, reference: "PreTrainedModel") -> None:
    """k = 4 is by prompt lookup."""
    drafter = sd.PromptLookupDrafter() if k else None
    generation = sd.generate_speculative(
        pair, PROMPTS[name], k=k, max_new_tokens=NEW, sampling=sd.GREEDY, drafter=drafter
    )
    assert len(generation.tokens) == NEW
    check_greedy(reference, generation)


@pytest.mark.parametrize(("draft", "least", "most"), [("rounded", 0.5, 1.0), ("shallow", 0.0, 0.5)])
@pytest.mark.parametrize("name", ["a story", "Chinese and emoji"])
def test_greedy_output_with_a_draft_model_is_that_of_transformers(
    name: str, draft: str, least: float, most: float, reference: "PreTrainedModel", request: pytest.FixtureRequest
) -> None:
    """least, most: how much is accepted, so that both drafts are what they are meant to be."""
    pair = request.getfixturevalue(draft)
    generation = sd.generate_speculative(pair, PROMPTS[name], k=4, max_new_tokens=NEW, sampling=sd.GREEDY)
    check_greedy(reference, generation)
    assert least <= generation.acceptance_rate < most


def test_a_text_that_is_not_greedy_is_recognized(pair: sd.Pair, reference: "PreTrainedModel") -> None:
    """A wrong token is far beyond rounding: the least margin between two tokens of these texts is 0.003."""
    generation = sd.generate_speculative(pair, PROMPTS["a story"], k=0, max_new_tokens=16, sampling=sd.GREEDY)
    wrong = [*generation.tokens]
    wrong[8] += 1
    assert shortfall(reference, generation.prompt_tokens, generation.tokens) < ROUNDING
    assert shortfall(reference, generation.prompt_tokens, tuple(wrong)) > 1


def test_rounding_is_as_small_as_the_tests_take_it_to_be(pair: sd.Pair, reference: "PreTrainedModel") -> None:
    """Steps of 1 to 5 tokens, often enough to be recorded, against one pass without a cache."""
    ids = pair.tokenizer(LETTER * 20)["input_ids"][:400]
    model = sd.TransformersModel(pair.target)
    model.start(1, len(ids))
    scores = []
    with torch.inference_mode():
        rest = torch.tensor([ids])
        for n in range(1, 6):
            for _ in range(16):
                scores.append(model.extend(rest[:, :n]))
                rest = rest[:, n:]
        ours = torch.cat(scores, 1)
        plain = reference(torch.tensor([ids[: ours.shape[1]]])).logits
    difference = float((ours - plain).abs().max())
    assert 0 < difference < ROUNDING / 2


@pytest.mark.parametrize("k", [0, 4])
def test_an_answer_in_a_chat_ends_with_its_marker(k: int, pair: sd.Pair, reference: "PreTrainedModel") -> None:
    drafter = sd.PromptLookupDrafter() if k else None
    prompt = chat(pair, QUESTION)
    answer = sd.generate_speculative(pair, prompt, k=k, max_new_tokens=NEW, sampling=sd.GREEDY, drafter=drafter)
    assert answer.finish == "eos"
    assert pair.tokenizer.decode(answer.tokens[-1:]) == "<|im_end|>"
    assert answer.text == pair.tokenizer.decode(answer.tokens[:-1])
    assert "<|" not in answer.text
    assert "scatter" in answer.text
    check_greedy(reference, answer)


def test_a_chat_prompt_as_text_and_as_ids_is_the_same(pair: sd.Pair) -> None:
    prompt = chat(pair, QUESTION)
    messages = [{"role": "user", "content": QUESTION}]
    ids = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    by_text, by_ids = (
        sd.generate_speculative(pair, p, k=0, max_new_tokens=4, sampling=sd.GREEDY) for p in (prompt, ids)
    )
    assert by_text.prompt_tokens == tuple(ids)
    assert by_text.tokens == by_ids.tokens


@pytest.mark.parametrize("k", [0, 3])
def test_a_stream_never_shows_half_a_character(k: int, pair: sd.Pair) -> None:
    """Most of these characters take two tokens or more, and rounds end within them."""
    done: list[sd.Generation] = []
    chunks = sd.stream_speculative(
        pair,
        EMOJI * 3,
        k=k,
        max_new_tokens=60,
        sampling=sd.GREEDY,
        drafter=sd.PromptLookupDrafter() if k else None,
        on_end=done.append,
    )
    texts = []
    within = 0
    for chunk in chunks:
        texts.append(chunk.text)
        within += "\N{REPLACEMENT CHARACTER}" in pair.tokenizer.decode(chunk.round.emitted)
    assert "".join(texts) == done[0].text
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts[:-1])
    assert done[0].text.startswith(EMOJI)
    assert within > 3


@pytest.mark.parametrize("k", [0, 4])
def test_a_stop_string_across_tokens_ends_the_text_before_it(k: int, pair: sd.Pair) -> None:
    """'ill answer i' begins within one token and ends within another."""
    drafter = sd.PromptLookupDrafter() if k else None
    prompt = PROMPTS["a repetition"]
    settings = {"k": k, "max_new_tokens": NEW, "sampling": sd.GREEDY, "drafter": drafter}
    whole = sd.generate_speculative(pair, prompt, **settings)
    stopped = sd.generate_speculative(pair, prompt, stop=["ill answer i", "no such text"], **settings)
    streamed = sd.stream_speculative(pair, prompt, stop="ill answer i", **settings)
    assert "ill answer i" not in [pair.tokenizer.decode([token]) for token in whole.tokens]
    assert stopped.finish == "stop"
    assert stopped.text == whole.text[: whole.text.index("ill answer i")]
    assert stopped.text.endswith("and we w")
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]
    assert "".join(chunk.text for chunk in streamed) == stopped.text


@pytest.mark.parametrize("draft", ["none", "lookup", "rounded"])
def test_rows_of_a_ragged_batch_are_what_they_are_alone(
    draft: str, pair: sd.Pair, reference: "PreTrainedModel", request: pytest.FixtureRequest
) -> None:
    """Rows of 7 to 84 tokens, one of which ends early with the end marker."""
    prompts = [*PROMPTS.values(), chat(pair, QUESTION)]
    drafter = sd.PromptLookupDrafter() if draft == "lookup" else None
    used = request.getfixturevalue("rounded") if draft == "rounded" else pair
    rows = sd.generate_speculative(
        used, prompts, k=0 if draft == "none" else 4, max_new_tokens=NEW, sampling=sd.GREEDY, drafter=drafter
    )
    assert [row.finish for row in rows] == ["length"] * len(PROMPTS) + ["eos"]
    for row in rows:
        check_greedy(reference, row)


@pytest.mark.parametrize("k", [0, 4])
def test_a_prompt_near_the_context_ends_there(k: int, pair: sd.Pair, reference: "PreTrainedModel") -> None:
    """The context is set to 300 tokens, which changes nothing else of this model.

    The prompt leaves 4, and one more token is emitted, which need not be held.
    """
    ids = tuple(pair.tokenizer(LETTER * 20)["input_ids"][:296])
    config = pair.target.config
    before = config.max_position_embeddings
    config.max_position_embeddings = 300
    try:
        generation = sd.generate_speculative(
            pair, ids, k=k, max_new_tokens=NEW, sampling=sd.GREEDY, drafter=sd.PromptLookupDrafter()
        )
    finally:
        config.max_position_embeddings = before
    assert generation.finish == "context"
    assert list(generation.tokens) == expected(reference, ids)[:5]


def test_a_prompt_near_the_end_of_the_models_own_context(pair: sd.Pair, reference: "PreTrainedModel") -> None:
    """8,188 of 8,192 tokens: positions, masks and cache at the far end, against one pass over all of them."""
    ids = tuple(pair.tokenizer(LETTER * 400)["input_ids"][:8188])
    assert pair.context == 8192
    assert len(ids) == 8188
    generation = sd.generate_speculative(
        pair, ids, k=4, max_new_tokens=NEW, sampling=sd.GREEDY, drafter=sd.PromptLookupDrafter()
    )
    assert generation.finish == "context"
    assert len(generation.tokens) == 5
    assert max(len(r.drafted) for r in generation.rounds) == 4
    assert shortfall(reference, ids, generation.tokens) < ROUNDING
    assert generation.text in LETTER * 2


RUN = """
import json, sys
from pathlib import Path
import specdec_ref as sd

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

import transformers.models.llama.modeling_llama, specdec_ref.decoding
libraries = peak()
pair = sd.load_pair(sys.argv[1], device="cpu")
loaded = peak()
prompt = "Dear Ms. Weber, thank you for your letter of 3 May. " * 4
for k in range(5):
    drafter = sd.PromptLookupDrafter() if k else None
    sd.generate_speculative(pair, prompt, k=k, max_new_tokens=80, sampling=sd.GREEDY, drafter=drafter)
print(json.dumps([libraries, loaded, peak()]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads what Linux says of a process")
def test_a_run_takes_its_weights_twice_and_little_more(pair: sd.Pair) -> None:
    """At most at once, in a process of its own, beyond the libraries.

    While loading: the file and the copy of its weights. While decoding: the weights, their packed copy, the largest
    matrix that is just being packed, and the records of steps of 1 to 5 tokens, 50 MB each. With the file still mapped
    and records of 70 MB it was more than 1.8 GB.
    """
    run = subprocess.run([sys.executable, "-c", RUN, str(FOLDER)], check=True, capture_output=True, text=True)
    libraries, loaded, decoded = json.loads(run.stdout)
    weights = sum(p.nbytes for p in pair.target.parameters())
    assert loaded - libraries < 2 * weights + 200e6
    assert decoded - libraries < 2 * weights + 500e6
