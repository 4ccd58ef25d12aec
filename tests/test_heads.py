"""The promises of `heads`: the output is exact, whatever a head proposes. Its distributions are those of a head that
reads the whole text afresh, after any rejections in any batch. Training practices the same steps that drafting makes.
"""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import specdec_ref as sd
from specdec_lab.equivalence.enumeration import Script
from specdec_lab.training.corpus import Document, collect_text
from specdec_lab.training.fitting import Tick, TrainingPlan
from specdec_lab.training.heads import HEAD_RECIPES, HeadTraining, draft_logits, head_acceptance, head_costs, new_head
from specdec_lab.training.tokenizer import save_tokenizer, train_tokenizer
from specdec_ref import GREEDY, Draft, FixedK, Pair, Round, Row, Sampling, SeededRandomness, TransformersModel
from specdec_ref.beyond import heads
from specdec_ref.beyond.heads import FeatureHead, Head, HeadConfig, HeadDrafter, ParallelHead, ParallelHeadDrafter
from specdec_ref.decoding import speculate
from specdec_ref.fast.steps import choose_steps

PROMPTS = [[5, 9, 33, 2, 60, 7, 1], [8], [40, 3, 12, 12]]
KINDS = ["feature", "parallel"]
AnyDrafter = HeadDrafter | ParallelHeadDrafter


def random_head(target: PreTrainedModel, kind: str = "feature", seed: int = 3, num_tokens: int = 4) -> Head:
    """A head that was never trained. Its output layer is scaled up, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = sd.head_config(target, kind, num_tokens=num_tokens)
    head: Head = FeatureHead(config) if kind == "feature" else ParallelHead(config)
    with torch.no_grad():
        head.output.weight.mul_(5)
    return head.to(target.dtype)


def drafter_of(head: Head, target: PreTrainedModel) -> AnyDrafter:
    model = TransformersModel(target, feature_layers=head.config.feature_layers)
    return HeadDrafter(head, model) if isinstance(head, FeatureHead) else ParallelHeadDrafter(head, model)


@torch.inference_mode()
def features_of(target: PreTrainedModel, text: list[int], layers: tuple[int, ...]) -> Tensor:
    """What transformers itself gives for these layers, [1, n, m · d]."""
    output = target(input_ids=torch.tensor([text]), use_cache=False, output_hidden_states=True)
    return torch.cat([output.hidden_states[layer] for layer in layers], -1)


@torch.inference_mode()
def afresh(head: Head, target: PreTrainedModel, text: list[int], drafted: list[int], sampling: Sampling) -> Tensor:
    """q after `drafted`, from a head without a cache and a target without a cache, one row alone."""
    d = head.config.hidden_size * len(head.config.feature_layers)
    features = torch.zeros(1, 1, d, dtype=target.dtype)
    if len(text) > 1:
        features = torch.cat([features, features_of(target, text[:-1], head.config.feature_layers)], 1)
    if isinstance(head, ParallelHead):
        logits = head(features[:, -1:], torch.tensor([text[-1:]]))[0, 0, len(drafted)]
        return sampling.probabilities(logits)
    states = head.fuse(features)
    tokens = torch.tensor([text + drafted])
    for _ in range(len(drafted) + 1):
        n = states.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        hidden = head(states, tokens[:, :n], torch.arange(n)[None], causal)[:, -1:]
        states = torch.cat([states, hidden], 1)
    return sampling.probabilities(head.logits(hidden)[0, -1])


class Afresh:
    """A drafter each of whose drafts is compared with that of a head that reads everything afresh."""

    def __init__(self, drafter: AnyDrafter):
        self.drafter, self.drafts, self.batches = drafter, 0, set[int]()
        self.start, self.keep = drafter.start, drafter.keep

    def propose(self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: sd.Randomness) -> Draft:
        draft = self.drafter.propose(sequences, k, sampling, randomness)
        for row, text in enumerate(sequences if k else []):
            assert draft.probabilities is not None
            for i, q in enumerate(draft.probabilities[row]):
                before = draft.tokens[row, :i].tolist()
                expected = afresh(self.drafter.head, self.drafter.target.model, text, before, sampling)
                torch.testing.assert_close(q, expected, rtol=0, atol=1e-4)
                assert q[draft.tokens[row, i]] > 0
        self.drafts += k > 0
        self.batches.add(len(sequences))
        return draft


class Changing:
    """A controller that chooses these k in turn."""

    def __init__(self, *ks: int):
        self.max_k, self.ks = max(ks), list(ks)

    def next_k(self) -> int:
        self.ks.append(self.ks.pop(0))
        return self.ks[-1]

    def observe(self, rounds: list[Round]) -> None:
        pass


def decode(drafter: Any, target: TransformersModel, ks: tuple[int, ...], new: list[int], seed: int = 3) -> list[Row]:
    rows = [Row(tuple(prompt), n) for prompt, n in zip(PROMPTS, new, strict=True)]
    for _ in speculate(target, drafter, list(rows), Changing(*ks), Sampling(2.0), SeededRandomness(seed)):
        pass
    return rows


# Drafting.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ks", [(4,), (1,), (4, 0), (3, 0, 0, 2)])
def test_the_distributions_are_those_of_a_head_that_reads_everything_afresh(
    kind: str, ks: tuple[int, ...], pair: Pair
) -> None:
    """Ragged prompts, one of a single token; rows that finish at different times; rounds without a draft."""
    drafter = drafter_of(random_head(pair.target, kind), pair.target)
    checked = Afresh(drafter)
    rows = decode(checked, drafter.target, ks, [26, 9, 17])
    assert [len(row.new) for row in rows] == [26, 9, 17]
    assert checked.drafts > 3
    assert checked.batches == {1, 2, 3}
    rounds = [r for row in rows for r in row.rounds if r.drafted]
    assert any(r.accepted > 0 for r in rounds)
    assert any(r.accepted < len(r.drafted) for r in rounds)


def neighbours_features(target: TransformersModel, positions: Tensor) -> Tensor:
    return RIGHT(target, positions).roll(1, 0)


def own_features(target: TransformersModel, positions: Tensor) -> Tensor:
    return RIGHT(target, positions + 1)


RIGHT = heads.features_before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [neighbours_features, own_features])
def test_that_comparison_catches_features_of_another_row_or_token(
    kind: str, wrong: Callable[..., Tensor], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = drafter_of(random_head(pair.target, kind), pair.target)
    monkeypatch.setattr(heads, "features_before", wrong)
    with pytest.raises(AssertionError):
        decode(Afresh(drafter), drafter.target, (3,), [12, 12, 12])


def test_it_catches_a_head_that_keeps_what_it_made_of_drafted_tokens(pair: Pair) -> None:
    """The slots of accepted tokens were computed without the target's features: they have to be computed again."""

    class Keeping(HeadDrafter):
        def keep_drafted(self, sequences: list[list[int]]) -> None:
            self._read = [min(n, len(s) - 1) for n, s in zip(self.cache.lengths, sequences, strict=True)]

        def propose(self, sequences: list[list[int]], k: int, *chance: Any) -> Draft:
            self.keep_drafted(sequences)
            return super().propose(sequences, k, *chance)

    head = random_head(pair.target)
    assert isinstance(head, FeatureHead)
    drafter = Keeping(head, TransformersModel(pair.target, feature_layers=head.config.feature_layers))
    with pytest.raises(AssertionError):
        decode(Afresh(drafter), drafter.target, (4,), [30, 30, 30])


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_start_proposes_the_same_as_a_rewound_head(kind: str, pair: Pair) -> None:
    head = random_head(pair.target, kind)
    used, fresh = drafter_of(head, pair.target), drafter_of(head, pair.target)
    rows = decode(used, used.target, (3,), [12, 12, 12])
    texts = [row.sequence for row in rows]
    for drafter in (used, fresh):
        drafter.target.start(3, 40)
        drafter.start(3, 40)
        drafter.target.prefill([text[:-1] for text in texts])
    used.propose(texts, 4, Sampling(), SeededRandomness(1))  # leaves its own draft in its cache
    drafts = [d.propose(texts, 4, Sampling(), SeededRandomness(7)) for d in (used, fresh)]
    assert torch.equal(drafts[0].tokens, drafts[1].tokens)
    torch.testing.assert_close(drafts[0].probabilities, drafts[1].probabilities, rtol=0, atol=1e-5)


def test_a_parallel_head_drafts_at_most_what_one_pass_gives(pair: Pair) -> None:
    drafter = drafter_of(random_head(pair.target, "parallel", num_tokens=2), pair.target)
    drafter.target.start(3, 20)
    drafter.target.prefill([prompt[:-1] for prompt in PROMPTS])
    assert drafter.propose(PROMPTS, 5, Sampling(), SeededRandomness(0)).tokens.shape == (3, 2)
    assert drafter.propose(PROMPTS, 1, Sampling(), SeededRandomness(0)).tokens.shape == (3, 1)


def test_a_feature_head_reads_each_token_once_and_each_drafted_token_once(pair: Pair) -> None:
    head = random_head(pair.target)
    drafter = drafter_of(head, pair.target)
    fed: list[int] = []
    head.register_forward_pre_hook(lambda module, inputs: fed.append(inputs[1].shape[1]))
    choose_steps(pair.target, "plain")  # so that the hook sees every step
    row = Row(tuple(PROMPTS[0]), 30)
    for _ in speculate(drafter.target, drafter, [row], Changing(3, 3, 0), Sampling(2.0), SeededRandomness(0)):
        pass
    choose_steps(pair.target, "auto")
    expected, unread = list[int](), len(PROMPTS[0])
    for r in row.rounds:
        if r.drafted:
            expected += [unread, *[1] * (len(r.drafted) - 1)]
            unread = 0
        unread += len(r.emitted)
    assert fed == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 3, 5])
def test_greedy_decoding_gives_the_targets_own_tokens(kind: str, k: int, pair: Pair) -> None:
    drafter = drafter_of(random_head(pair.target, kind), pair.target)
    settings: dict[str, Any] = {"max_new_tokens": 24, "sampling": GREEDY}
    plain = sd.generate_speculative(pair, PROMPTS, k=0, **settings)
    drafted = sd.generate_speculative(pair, PROMPTS, k=k, drafter=drafter, **settings)
    assert [g.tokens for g in drafted] == [g.tokens for g in plain]


@pytest.mark.parametrize("kind", KINDS)
def test_two_streams_with_one_head_do_not_disturb_each_other(kind: str, pair: Pair) -> None:
    drafter = drafter_of(random_head(pair.target, kind), pair.target)
    settings: dict[str, Any] = {"k": 3, "max_new_tokens": 16, "sampling": GREEDY, "drafter": drafter}
    done: list[sd.Generation] = []
    streams = [sd.stream_speculative(pair, p, **settings, on_end=done.append) for p in PROMPTS[:2]]
    while any([next(stream, None) for stream in streams]):
        pass
    alone = [sd.generate_speculative(pair, g.prompt_tokens, k=0, max_new_tokens=16, sampling=GREEDY) for g in done]
    assert [g.tokens for g in done] == [g.tokens for g in alone]
    assert len(done) == 2


def small_target(make: Callable[..., PreTrainedModel], vocab_size: int) -> PreTrainedModel:
    """Small enough to play every outcome; in float64."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    return make("llama", vocab_size=vocab_size, **sizes).double()


def chain_rule(target: PreTrainedModel, prompt: list[int], n: int) -> dict[tuple[int, ...], float]:
    """Probability of every text of n new tokens, from whole forward passes."""
    done: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(n):
        longer: dict[tuple[int, ...], float] = {}
        for new, chance in done.items():
            with torch.inference_mode():
                logits = target(input_ids=torch.tensor([[*prompt, *new]]), use_cache=False).logits[0, -1]
            for token, p in enumerate(logits.softmax(-1).tolist()):
                longer[(*new, token)] = chance * p
        done = longer
    return done


def every_outcome(
    drafter: Any, target: TransformersModel, prompts: list[list[int]], new: list[int], k: int
) -> dict[tuple[tuple[int, ...], ...], float]:
    """Probability of all that the loop can emit, by playing each outcome of each random decision."""
    emitted: dict[tuple[tuple[int, ...], ...], float] = defaultdict(float)
    choices: list[Any] | None = []
    while choices is not None:
        script = Script(choices)
        rows = [Row(tuple(prompt), n) for prompt, n in zip(prompts, new, strict=True)]
        for _ in speculate(target, drafter, list(rows), FixedK(k), Sampling(), script):
            pass
        emitted[tuple(tuple(row.new) for row in rows)] += script.probability(0)
        choices = script.following(0)
    return emitted


def largest_error(drafter: Any, target: TransformersModel, prompts: list[list[int]], new: list[int], k: int) -> float:
    emitted = every_outcome(drafter, target, prompts, new, k)
    expected: dict[tuple[tuple[int, ...], ...], float] = {(): 1.0}
    for prompt, n in zip(prompts, new, strict=True):
        alone = chain_rule(target.model, prompt, n)
        expected = {(*o, one): p * q for o, p in expected.items() for one, q in alone.items()}
    return max(abs(emitted.get(o, 0.0) - expected.get(o, 0.0)) for o in {*emitted, *expected})


CASES = [([[0, 2, 1]], [3], 2), ([[2, 0, 1, 1], [1]], [2, 2], 1)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prompts", "new", "k"), CASES, ids=["one row", "ragged batch"])
def test_the_output_is_exact(
    kind: str, prompts: list[list[int]], new: list[int], k: int, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    """Norms compute in float32, so probabilities agree to about 1e-7."""
    target = small_target(tiny_model, 3)
    drafter = drafter_of(random_head(target, kind), target)
    assert largest_error(drafter, drafter.target, prompts, new, k) < 1e-5


def test_the_enumeration_catches_a_head_that_reports_another_q(tiny_model: Callable[..., PreTrainedModel]) -> None:
    class Misreporting(HeadDrafter):
        def propose(self, *arguments: Any) -> Draft:
            draft = super().propose(*arguments)
            q = draft.probabilities
            return draft if q is None else replace(draft, probabilities=q.roll(1, -1))

    target = small_target(tiny_model, 3)
    head = random_head(target)
    assert isinstance(head, FeatureHead)
    drafter = Misreporting(head, TransformersModel(target, feature_layers=head.config.feature_layers))
    assert largest_error(drafter, drafter.target, *CASES[0]) > 1e-3


# The target's features.


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2"])
def test_features_are_transformers_hidden_states_after_rewinds_in_a_ragged_batch(
    family: str, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    target = tiny_model(family)
    model = TransformersModel(target, feature_layers=(0, 1, 2))
    texts = [[5, 9, 33, 2, 60, 7, 1, 4], [8, 3, 3], [40, 3, 12, 12, 9]]
    model.start(3, 40)
    model.prefill([text[:-2] for text in texts])
    model.extend(torch.tensor([[1, 2, 3]] * 3))
    model.rewind([len(text) - 2 for text in texts])
    model.extend(torch.tensor([text[-2:] for text in texts]))
    model.keep([2, 0])
    for row, text in enumerate([texts[2], texts[0]]):
        expected = features_of(target, text, (0, 1, 2))[0]
        found = model.features[row, : len(text)]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_recorded_steps_keep_the_same_features_as_plain_ones(
    batch: int, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    target = tiny_model("llama")
    features = {}
    for steps in ("plain", "recorded"):
        choose_steps(target, steps)
        model = TransformersModel(target, feature_layers=(1, 2))
        model.start(batch, 100)
        model.prefill([[3, 1, 4]] * batch)
        for i in range(40):
            model.extend(torch.full((batch, 2), i))
        features[steps] = model.features[:, :83].clone()
    torch.testing.assert_close(features["recorded"], features["plain"], rtol=1e-4, atol=1e-4)


def test_scores_are_the_same_to_the_last_bit_with_and_without_features(pair: Pair) -> None:
    scores = []
    for layers in ((), (0, 1, 2)):
        model = TransformersModel(pair.target, feature_layers=layers)
        model.start(1, 60)
        model.prefill([PROMPTS[0]])
        scores.append([model.extend(torch.tensor([[i, 3]])) for i in range(20)])
    assert all(torch.equal(a, b) for a, b in zip(*scores, strict=True))


def test_a_model_without_feature_layers_keeps_no_features(pair: Pair) -> None:
    model = TransformersModel(pair.target)
    model.start(1, 20)
    model.prefill([[1, 2, 3]])
    assert model.features.shape == (1, 0, 0)
    assert sorted(model.cache.slots) == [0, 1]


# Files.


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_head_drafts_the_same_once_loaded(kind: str, pair: Pair, tmp_path: Path) -> None:
    head = random_head(pair.target, kind).bfloat16().float()
    sd.save_head(head, tmp_path / "head")
    loaded = sd.load_head(pair.target, tmp_path / "head")
    assert loaded.head.config == head.config
    for name, weights in head.state_dict().items():
        assert torch.equal(loaded.head.state_dict()[name], weights), name
    settings: dict[str, Any] = {"k": 3, "max_new_tokens": 20, "seed": 4}
    ours = sd.generate_speculative(pair, PROMPTS, drafter=drafter_of(head, pair.target), **settings)
    theirs = sd.generate_speculative(pair, PROMPTS, drafter=loaded, **settings)
    assert [g.tokens for g in ours] == [g.tokens for g in theirs]


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def other_shapes(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["output.weight"] = tensors["output.weight"][:, :5].contiguous()
    save_file(tensors, folder / "model.safetensors")


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["fuse.weight"]
    save_file(tensors, folder / "model.safetensors")


def edited(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))

    return edit


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (without_weights, "cannot be loaded"),
    (broken_weights, "cannot be loaded"),
    (other_shapes, "output.weight"),
    (without_a_tensor, "fuse.weight"),
    (no_json, "has no config.json of a head"),
    (a_list, "has no config.json of a head"),
    (edited(kind="medusa"), "kind='medusa'"),
    (edited(inner=0), "inner=0"),
    (edited(feature_layers=[0, 9]), "feature_layers=(0, 9)"),
    (edited(feature_layers=[]), "feature_layers=()"),
    (edited(attention_heads=3), "attention_heads=3"),
    (edited(surprise=1), "has no config.json of a head"),
    (edited(vocab_size=63), "2 layers × 32, 63 token ids; this one has 2 layers × 32, 64 token ids"),
    (edited(layers=5), "5 layers × 32"),
]


@pytest.mark.parametrize(("change", "words"), BROKEN, ids=[words for _, words in BROKEN])
def test_a_folder_that_holds_no_head_for_this_target_is_one_line(
    change: Callable[[Path], None], words: str, pair: Pair, tmp_path: Path
) -> None:
    sd.save_head(random_head(pair.target), tmp_path)
    change(tmp_path)
    with pytest.raises(sd.SpecdecError) as error:
        sd.load_head(pair.target, tmp_path)
    assert words in str(error.value)
    assert f"head={str(tmp_path)!r}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_head_of_another_target_is_refused_in_one_line(
    pair: Pair, tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    other = tiny_model("llama", hidden_size=64)
    sd.save_head(random_head(other), tmp_path)
    with pytest.raises(sd.SpecdecError, match="belongs to a target of 2 layers × 64, 64 token ids; this one has 2 "):
        sd.load_head(pair.target, tmp_path)
    with pytest.raises(sd.SpecdecError, match="head: belongs to a target of 2 layers × 64"):
        drafter_of(random_head(other), pair.target)


def test_wrong_uses_are_one_line(pair: Pair, tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    head, parallel = random_head(pair.target), random_head(pair.target, "parallel")
    other = Pair(tiny_model("llama", seed=9), None, pair.tokenizer)
    bare = TransformersModel(pair.target)
    drafter = drafter_of(head, pair.target)

    def without_its_target() -> None:
        rows = [Row((1, 2, 3), 5)]
        list(speculate(bare, drafter, rows, FixedK(2), Sampling(), SeededRandomness(0)))

    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: HeadDrafter(parallel, bare), "head="),  # type: ignore[arg-type]
        (lambda: ParallelHeadDrafter(head, bare), "head="),  # type: ignore[arg-type]
        (lambda: HeadDrafter(head, pair.target), "target="),  # type: ignore[arg-type]
        (lambda: ParallelHeadDrafter(parallel, pair.target), "target="),  # type: ignore[arg-type]
        (lambda: HeadDrafter(head, bare), "target: keeps features of layers ()"),  # type: ignore[arg-type]
        (lambda: TransformersModel(pair.target, feature_layers=(3,)), "feature_layers=(3,): takes layers"),
        (lambda: TransformersModel(pair.target, feature_layers="1"), "feature_layers='1'"),  # type: ignore[arg-type]
        (lambda: sd.head_config(pair.target, "eagle"), "kind='eagle': takes one of feature, parallel"),
        (lambda: sd.load_head(pair.target, tmp_path / "none"), "has no config.json of a head"),
        (lambda: sd.load_head(pair, tmp_path), "target="),  # type: ignore[arg-type]
        (lambda: sd.generate_speculative(other, "a", drafter=drafter), "drafter: this head reads another target"),
        (without_its_target, "decode with the model that is `drafter.target`"),
    ]
    for use, words in cases:
        with pytest.raises(sd.SpecdecError) as error:
            use()
        assert words in str(error.value)
        assert "\n" not in str(error.value)


# Training.


@pytest.mark.parametrize("kind", KINDS)
def test_training_practises_the_steps_that_drafting_makes(kind: str, pair: Pair) -> None:
    """Draft step i at every position, simulated at once, gives what the head drafts after that text and i tokens."""
    head = random_head(pair.target, kind, num_tokens=4)
    text = [5, 9, 33, 2, 60, 7, 1, 40, 3]
    features = features_of(pair.target, text, head.config.feature_layers)
    with torch.inference_mode():
        steps = list(draft_logits(head, features, torch.tensor([text]), 4))
    assert [logits.shape for logits in steps] == [(1, 9 - i, 64) for i in range(4)]
    for i, logits in enumerate(steps):
        for t in range(len(text) - i):
            read, drafted = text[: t + 1], text[t + 1 : t + 1 + i]
            expected = afresh(head, pair.target, read, drafted, Sampling())
            torch.testing.assert_close(logits[0, t].softmax(-1), expected, rtol=0, atol=1e-5)


def write_library(folder: Path) -> Path:
    """A standard library in miniature: two modules, a test, and a module that is held out."""
    (folder / "test").mkdir(parents=True)
    line = "def add(a, b):\n    return a + b\n\n\n"
    (folder / "adding.py").write_text(line * 30, encoding="utf-8")
    (folder / "other.py").write_text(line.replace("add", "sub").replace("+", "-") * 30, encoding="utf-8")
    (folder / "test" / "test_adding.py").write_text("assert add(1, 2) == 3\n" * 40, encoding="utf-8")
    (folder / "queue.py").write_text(line * 12, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_library(tmp_path_factory.mktemp("stdlib"))


@pytest.fixture(scope="module")
def byte_tokenizer(library: Path) -> Any:
    return train_tokenizer([path.read_text() for path in sorted(library.glob("*.py"))], 270)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_head_takes_over_the_targets_vocabulary_layers(kind: str, byte_target: PreTrainedModel) -> None:
    head = new_head(byte_target, kind, HEAD_RECIPES["tiny"])
    state = head.state_dict()
    embedding, norm = ("body.embed_tokens", "body.norm") if kind == "feature" else ("embedding", "norm")
    ours = [state[f"{name}.weight"] for name in (embedding, norm, "output")]
    model: Any = byte_target
    theirs = [model.model.embed_tokens.weight, model.model.norm.weight, model.lm_head.weight]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    again = new_head(byte_target, kind, HEAD_RECIPES["tiny"])
    assert all(torch.equal(weights, again.state_dict()[name]) for name, weights in state.items())


def head_training(
    kind: str, folder: Path, library: Path, tokenizer: Any, target: PreTrainedModel, **changes: Any
) -> HeadTraining:
    plan = TrainingPlan(20, 128, 1e-2, ((1.0, 32),), warmup=2)
    recipe = replace(HEAD_RECIPES["tiny"], plan=plan)
    arguments: dict[str, Any] = {"stdlib": library} | changes
    return HeadTraining(kind, target, tokenizer, recipe, folder / "head.work", folder / "head", **arguments)


@pytest.fixture(scope="module")
def byte_target(byte_tokenizer: Any, tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    model = tiny_model("llama", vocab_size=byte_tokenizer.get_vocab_size())
    return model.requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_training_makes_a_head_that_agrees_more_with_its_target(
    kind: str, tmp_path: Path, library: Path, byte_tokenizer: Any, byte_target: PreTrainedModel
) -> None:
    seen: list[tuple[int, list[float]]] = []
    run = head_training(
        kind, tmp_path, library, byte_tokenizer, byte_target, on_evaluation=lambda *now: seen.append(now)
    )
    facts = run.run()
    untrained = new_head(byte_target, kind, run.recipe)
    document = Document("queue.py", "queue", (library / "queue.py").read_text()[:600], False)
    before = head_acceptance(byte_target, untrained, (document,), byte_tokenizer, 3)
    assert facts["acceptance"][0] > before[0] + 0.05
    assert [step for step, _ in seen] == list(range(2, 21, 2))
    assert json.loads((tmp_path / "head" / "measurements.json").read_text()) == facts
    drafter = sd.load_head(byte_target, tmp_path / "head")
    costs = head_costs(drafter, k=2, context=20, repeats=2, warm_up=1)
    assert costs.draft_step > 0
    assert drafter.head.config.kind == kind


def weights_after(
    kind: str, folder: Path, library: Path, tokenizer: Any, target: PreTrainedModel, interrupt_at: int | None
) -> dict[str, Tensor]:
    """The finished head's weights; with a real SIGINT at a step, and the same call once more."""

    def on_tick(tick: Tick) -> None:
        if tick.step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    if interrupt_at is not None:
        with pytest.raises(KeyboardInterrupt):
            head_training(kind, folder, library, tokenizer, target, on_tick=on_tick).run()
        assert not (folder / "head").exists()
    head_training(kind, folder, library, tokenizer, target).run()
    state: dict[str, Tensor] = torch.load(folder / "head.work" / "head.pt", weights_only=True)["models"]["head"]
    return state | load_file(folder / "head" / "model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_ends_with_the_same_weights(
    kind: str, tmp_path: Path, library: Path, byte_tokenizer: Any, byte_target: PreTrainedModel
) -> None:
    arguments = library, byte_tokenizer, byte_target
    straight = weights_after(kind, tmp_path / "a", *arguments, None)
    interrupted = weights_after(kind, tmp_path / "b", *arguments, 10)
    for name, weights in straight.items():
        assert torch.equal(weights, interrupted[name]), name


def write_prose(folder: Path, files: int = 21) -> Path:
    """Text files of which none is Python, one of them below a folder."""
    (folder / "letters").mkdir(parents=True)
    for i in range(files):
        name = "letters/last.md" if i == files - 1 else f"{i:02}.txt"
        (folder / name).write_text(f"Hello, this is letter {i}, and it isn't Python.\n" * 20, encoding="utf-8")
    (folder / "picture.bin").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    return folder


def test_every_tenth_text_file_is_held_out(tmp_path: Path) -> None:
    corpus = collect_text(write_prose(tmp_path))
    assert [d.path for d in corpus.held_out] == ["00.txt", "10.txt", "letters/last.md"]
    assert len(corpus.library) == 18
    assert not {d.path for d in corpus.library} & {d.path for d in corpus.held_out}
    assert [d.path for d in collect_text(tmp_path, 2).library] == ["01.txt"]


@pytest.mark.parametrize("files", [0, 1])
def test_a_folder_with_too_little_text_is_named(files: int, tmp_path: Path) -> None:
    if files:
        (tmp_path / "one.txt").write_text("text", encoding="utf-8")
    with pytest.raises(sd.SpecdecError, match=f"has {files} text files"):
        collect_text(tmp_path)


def test_a_head_is_trained_on_other_text(tmp_path: Path, byte_tokenizer: Any, byte_target: PreTrainedModel) -> None:
    folder = write_prose(tmp_path / "prose")
    stages: list[str] = []
    arguments: dict[str, Any] = {"text": folder, "on_stage": stages.append}
    run = head_training("feature", tmp_path, tmp_path / "none", byte_tokenizer, byte_target, **arguments)
    untrained = new_head(byte_target, "feature", run.recipe)
    before = head_acceptance(byte_target, untrained, collect_text(folder).held_out, byte_tokenizer, 3)
    assert run.run()["acceptance"][0] > before[0] + 0.05
    assert stages[0] == f"reading {folder}"


def test_a_checkpoint_of_the_other_kind_is_refused_in_one_line(
    tmp_path: Path, library: Path, byte_tokenizer: Any, byte_target: PreTrainedModel
) -> None:
    head_training("feature", tmp_path, library, byte_tokenizer, byte_target).run()
    with pytest.raises(sd.SpecdecError, match="no checkpoint of this training"):
        head_training("parallel", tmp_path, library, byte_tokenizer, byte_target).run()


def test_training_leaves_the_target_as_it_was(
    tmp_path: Path, library: Path, byte_tokenizer: Any, byte_target: PreTrainedModel
) -> None:
    before = {name: weights.clone() for name, weights in byte_target.state_dict().items()}
    head_training("feature", tmp_path, library, byte_tokenizer, byte_target).run()
    assert all(torch.equal(weights, before[name]) for name, weights in byte_target.state_dict().items())


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    full = [sys.executable, "-m", "specdec_lab", "train", *arguments, "--device", "cpu"]
    return subprocess.run(full, capture_output=True, text=True, timeout=400)


@pytest.mark.slow
def test_the_command_line_trains_a_head(tmp_path: Path, byte_tokenizer: Any, byte_target: PreTrainedModel) -> None:
    byte_target.save_pretrained(tmp_path / "target")
    save_tokenizer(byte_tokenizer, tmp_path / "target", 128)
    output, target = str(tmp_path / "head"), str(tmp_path / "target")
    done = command(output, "--head", "feature", "--target", target, "--tiny", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["kind"] == "feature"
    assert 0 < facts["acceptance"][0] <= 1
    assert facts["c"] > 0
    assert isinstance(sd.load_head(byte_target, output), HeadDrafter)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--head", "eagle"), "--head eagle: takes 'feature' or 'parallel'"),
        (("--target", "target"), "takes --head as well"),
        (("--text", "folder"), "--text folder: is what a head is trained on"),
        (("--head", "feature", "--tiny", "--text", "no/such/folder"), "text='no/such/folder': has 0 text files"),
        (("--head", "feature", "--card"), "leave out --card"),
        (("--head", "feature", "--target", "no/such/folder"), "target='no/such/folder'"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = command(str(tmp_path / "head"), *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_head_configurations_have_checked_fields(pair: Pair) -> None:
    config = sd.head_config(pair.target)
    assert config == HeadConfig("feature", 32, 2, 64, 128, (0, 1, 2), 64, 4, 4)
    with pytest.raises(sd.SpecdecError, match="feature_layers=\\[0\\]"):
        replace(config, feature_layers=[0])  # type: ignore[arg-type]
    with pytest.raises(sd.SpecdecError, match="num_tokens=True"):
        replace(config, num_tokens=True)
