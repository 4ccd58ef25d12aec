"""The promises of `specdec train`: nothing held out is trained on, an interrupt loses nothing, tiny really trains."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from specdec_lab.measurement.positions import accepted_by_position
from specdec_lab.training.card import write_card
from specdec_lab.training.corpus import HELD_OUT, Corpus, Document, collect
from specdec_lab.training.distillation import distillation_loss, losses_from_text
from specdec_lab.training.evaluation import windows
from specdec_lab.training.fitting import Tick, TrainingPlan, Windows, fit
from specdec_lab.training.recipe import RECIPES, ModelShape
from specdec_lab.training.run import build_model, encode
from specdec_lab.training.tokenizer import train_tokenizer
from specdec_ref.beyond.heads import FeatureHead, head_config, save_head
from specdec_ref.decoding import Round
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import load_pair


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return collect()


def test_no_model_sees_a_held_out_module_or_its_tests(corpus: Corpus) -> None:
    seen = [d.path for d in (*corpus.library, *corpus.tests)]
    for module in HELD_OUT:
        names = {f"{module}.py", f"test_{module}.py", module, f"test_{module}"}
        assert not [path for path in seen if names & set(path.split("/"))], module


def test_every_held_out_module_is_there_to_be_measured(corpus: Corpus) -> None:
    assert {d.module for d in corpus.held_out} == HELD_OUT


def test_the_corpus_is_read_in_the_same_order_each_time() -> None:
    folder = Path(json.__file__).parent.parent / "email"
    assert len({tuple(d.path for d in collect(folder).library) for _ in range(3)}) == 1
    assert [d.path for d in collect(folder).library] == sorted(d.path for d in collect(folder).library)


def test_a_folder_without_valid_python_raises(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(SpecdecError, match="no Python source below"):
        collect(tmp_path)


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus):
    return train_tokenizer((d.text for d in corpus.library[:20]), 400)


@given(text=st.text(max_size=200))
def test_any_text_goes_through_the_tokenizer_unchanged(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_evaluation_scores_every_token_once_with_context_before_it(tokenizer) -> None:
    document = Document("x.py", "x", "def f(x):\n    return x\n" * 40, False)
    ids = encode([document], tokenizer).tolist()
    scored: list[int] = []
    for window, first in windows([document], tokenizer, context=64):
        assert first == 0 or first >= 32
        scored += window[0, 1 + first :].tolist()
    assert scored == ids[1:]


def test_batches_depend_on_seed_and_step_only() -> None:
    stream = torch.arange(1000, dtype=torch.int32)
    one, two = Windows([stream, stream], [0.5, 0.5], seed=3), Windows([stream, stream], [0.5, 0.5], seed=3)
    assert torch.equal(one.batch(17, 4, 16), two.batch(17, 4, 16))
    assert not torch.equal(one.batch(17, 4, 16), one.batch(18, 4, 16))


def test_distillation_loss_is_kl_at_first_and_mostly_total_variation_at_the_end() -> None:
    log_p, log_q = torch.randn(2, 3, 5).log_softmax(-1), torch.randn(2, 3, 5).log_softmax(-1)
    kl = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    tv = (log_p.exp() - log_q.exp()).clamp(min=0).sum(-1).mean()
    torch.testing.assert_close(distillation_loss(log_p, log_q, torch.tensor(0.0)), kl)
    torch.testing.assert_close(distillation_loss(log_p, log_q, torch.tensor(1.0)), 0.1 * kl + tv)


def learn(folder: Path, interrupt_at: int | None = None) -> dict[str, torch.Tensor]:
    """24 steps of a very small model; with a real SIGINT at a step, and the same command once more."""
    torch.set_num_threads(1)
    plan = TrainingPlan(24, 128, 1e-2, ((1.0, 32),), warmup=4)
    data = Windows([torch.randint(64, (4000,), generator=torch.Generator().manual_seed(1)).int()], [1.0], seed=0)

    def attempt(interrupt_at: int | None) -> dict[str, torch.Tensor]:
        recipe = RECIPES["tiny"]
        models = {"m": build_model(ModelShape(layers=1, width=16, inner=32, heads=1), recipe, seed=5)}

        def on_tick(tick: Tick) -> None:
            if tick.step == interrupt_at:
                os.kill(os.getpid(), signal.SIGINT)

        fit(models, losses_from_text(models, half=False), data, plan, folder / "m.pt", on_tick=on_tick)
        return models["m"].state_dict()

    if interrupt_at is not None:
        with pytest.raises(KeyboardInterrupt):
            attempt(interrupt_at)
        assert (folder / "m.pt").exists()
    return attempt(None)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight, interrupted = learn(tmp_path / "a"), learn(tmp_path / "b", interrupt_at=10)
    for name, weights in straight.items():
        assert torch.equal(weights, interrupted[name]), name


@pytest.mark.parametrize("content", ["another shape", "broken"])
def test_a_checkpoint_of_another_training_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    """`specdec train X --tiny` and then `specdec train X` must not end in a traceback, nor start over in silence."""
    plan = TrainingPlan(1, 32, 1e-2, ((1.0, 16),), warmup=1)
    data = Windows([torch.arange(64).repeat(4).int()], [1.0], seed=0)

    def attempt(width: int) -> None:
        models = {"m": build_model(ModelShape(layers=1, width=width, inner=32, heads=1), RECIPES["tiny"], seed=5)}
        fit(models, losses_from_text(models, half=False), data, plan, tmp_path / "m.pt")

    attempt(16)
    if content == "broken":
        (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:100])
    with pytest.raises(SpecdecError, match="no checkpoint of this training"):
        attempt(16 if content == "broken" else 32)


def test_learning_lowers_the_loss(tmp_path: Path) -> None:
    """A sequence that repeats can be learned: the loss must fall well below that of guessing."""
    torch.manual_seed(0)
    models = {"m": build_model(ModelShape(layers=1, width=16, inner=32, heads=1), RECIPES["tiny"], seed=5)}
    data = Windows([torch.arange(16).repeat(200).int()], [1.0], seed=0)
    seen: list[float] = []
    plan = TrainingPlan(40, 256, 1e-2, ((1.0, 32),), warmup=4)
    fit(models, losses_from_text(models, half=False), data, plan, tmp_path / "m.pt",
        on_tick=lambda tick: seen.append(tick.loss["m"]))  # fmt: skip
    assert seen[-1] < 0.7 * seen[0]


@pytest.fixture(scope="module")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:  # type: ignore[type-arg]
    """`specdec train --tiny`, for real, from the command line."""
    folder = tmp_path_factory.mktemp("train") / "pair"
    command = [sys.executable, "-m", "specdec_lab", "train", str(folder), "--tiny", "--device", "cpu", "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    (folder.parent / "took").write_text(str(time.perf_counter() - began), encoding="utf-8")
    return folder, json.loads(done.stdout)


@pytest.mark.timed
def test_a_tiny_training_takes_less_than_a_minute(tiny_pair: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    assert float((tiny_pair[0].parent / "took").read_text(encoding="utf-8")) < 60


@pytest.mark.slow
def test_train_makes_a_target_and_four_drafts_that_plain_transformers_loads(tiny_pair: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    folder, _ = tiny_pair
    names = sorted(p.parent.name for p in folder.glob("*/model.safetensors"))
    assert names == ["draft-large", "draft-medium", "draft-small", "draft-small-plain", "target"]
    for name in names:
        model = AutoModelForCausalLM.from_pretrained(folder / name, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder / name, local_files_only=True)
        ids = tokenizer("def f():", return_tensors="pt")["input_ids"]
        assert model(ids).logits.shape[-1] == len(tokenizer.get_vocab())


@pytest.mark.slow
def test_the_demo_that_training_tells_to_try_runs(tiny_pair: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    """Its models hold 128 tokens, fewer than the demo's prompts have."""
    folder, _ = tiny_pair
    models = ["--target", str(folder / "target"), "--draft", str(folder / "draft-medium")]
    command = [sys.executable, "-m", "specdec_lab", "demo", *models, "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stdout
    assert "formula" in done.stdout


@pytest.mark.slow
def test_a_pair_just_trained_can_be_decoded_with(tiny_pair: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    import specdec_ref as sd

    folder, _ = tiny_pair
    pair = load_pair(folder / "target", folder / "draft-small", device="cpu")
    assert len(sd.generate_speculative(pair, "def f(", k=3, max_new_tokens=20, seed=0).tokens) == 20


@pytest.mark.slow
def test_a_distilled_draft_is_accepted_more_than_the_same_draft_trained_on_text(tiny_pair: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    drafts = tiny_pair[1]["drafts"]
    assert drafts["draft-small"]["acceptance"] > drafts["draft-small-plain"]["acceptance"]


@pytest.mark.slow
def test_the_card_says_what_was_measured(tiny_pair: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    folder, facts = tiny_pair
    assert json.loads((folder / "measurements.json").read_text(encoding="utf-8")) == facts
    card = (folder / "README.md").read_text(encoding="utf-8")
    for name, draft in facts["drafts"].items():
        assert f"`{name}`" in card
        assert f"{draft['acceptance']:.3f}" in card


@pytest.mark.slow
def test_the_card_measures_heads_too(tiny_pair: tuple[Path, dict], tmp_path: Path) -> None:  # type: ignore[type-arg]
    folder = tmp_path / "pair"
    shutil.copytree(tiny_pair[0], folder)
    target = load_pair(folder / "target", folder / "draft-small", device="cpu", dtype="float32").target
    head = FeatureHead(head_config(target))
    head.begin_from(target)
    save_head(head, folder / "head-feature")
    facts = write_card(folder, torch.device("cpu"), quick=True)["heads"]["head-feature"]
    assert 0 < facts["acceptance"][0] <= 1
    assert facts["c"] > 0
    assert facts["rounds"]["tokens_per_round"] >= 1
    assert f"| `head-feature` | 1 × {target.config.hidden_size} |" in (folder / "README.md").read_text(encoding="utf-8")


def test_acceptance_by_position_counts_only_examined_tokens() -> None:
    def round_of(drafted: int, accepted: int) -> Round:
        return Round(tuple(range(drafted)), accepted, tuple(range(accepted + 1)), 0.0, 0.0)

    rounds = [round_of(3, 0), round_of(3, 2), round_of(3, 3), round_of(1, 1)]
    assert accepted_by_position(rounds, 4) == [3 / 4, 1.0, 1 / 2, pytest.approx(float("nan"), nan_ok=True)]
