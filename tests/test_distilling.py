"""Distilling a draft in lesson 05: its text is not held out, its figure shows the curves, and distillation gains."""

import copy
from pathlib import Path

import pytest
import torch

import specdec_ref as sd
from specdec_lab.teaching.distilling import distillation_figure, library_windows
from specdec_lab.teaching.vocabularies import swap_two_ids
from specdec_lab.training.distillation import losses_from_target
from specdec_lab.training.fitting import TrainingPlan, fit
from specdec_ref.errors import SpecdecError


@pytest.fixture(scope="module")
def pair() -> sd.Pair:
    return sd.load_pair(draft="draft-small-plain", device="cpu")


@torch.inference_mode()
def alpha(pair: sd.Pair, draft: torch.nn.Module) -> float:
    """Σ min(p, q), mean over the first 200 tokens of four held-out texts."""
    rates = []
    for text in list(sd.held_out_prompts().values())[:4]:
        ids = torch.tensor([pair.tokenizer(text)["input_ids"][:200]])
        p, q = (sd.Sampling().probabilities(model(ids).logits[0].float()) for model in (pair.target, draft))
        rates.append(sd.acceptance_rate(p, q))
    return float(torch.cat(rates).mean())


def test_windows_come_from_modules_that_are_not_held_out(pair: sd.Pair, tmp_path: Path) -> None:
    (tmp_path / "calendar.py").write_text("held_out = 1\n" * 40)
    (tmp_path / "bisect.py").write_text("learned = 1\n" * 40)
    batch = library_windows(pair.tokenizer, folder=tmp_path).batch(0, rows=4, context=16)
    assert batch.shape == (4, 17)
    text = "".join(pair.tokenizer.batch_decode(batch.tolist()))
    assert "learned" in text
    assert "held_out" not in text
    with pytest.raises(SpecdecError, match="has no Python modules"):
        library_windows(pair.tokenizer, folder=tmp_path / "none")


@pytest.mark.slow
def test_distillation_raises_acceptance_and_more_text_does_not(pair: sd.Pair, tmp_path: Path) -> None:
    """A third of lesson 05's steps, with its seed and its other settings."""
    before = alpha(pair, pair.draft)
    copies = {name: copy.deepcopy(pair.draft).float().requires_grad_() for name in ("text", "distilled")}
    losses = losses_from_target(pair.target, {"distilled": copies["distilled"]}, {"text": copies["text"]}, half=False)
    plan = TrainingPlan(steps=20, tokens_per_step=512, learning_rate=1e-3, contexts=((1.0, 128),), warmup=10)
    fit(copies, losses, library_windows(pair.tokenizer), plan, tmp_path / "checkpoint.pt")
    after = {name: alpha(pair, draft) for name, draft in copies.items()}
    assert after["distilled"] > max(before, after["text"])


def test_the_figure_shows_both_curves_and_the_shipped_draft() -> None:
    figure = distillation_figure({"distilled": {0: 0.5, 60: 0.58}, "text": {0: 0.5, 60: 0.51}}, shipped=0.61)
    distilled, text, shipped = figure.axes[0].lines
    assert list(distilled.get_ydata()) == [0.5, 0.58]
    assert list(text.get_ydata()) == [0.5, 0.51]
    assert set(shipped.get_ydata()) == {0.61}
    assert "α from 0.50 to 0.58 by distillation" in figure.axes[0].get_title(loc="left")
    with pytest.raises(SpecdecError, match="takes the names"):
        distillation_figure({"a": {0: 0.5}}, 0.6)


def test_two_ids_are_swapped_and_the_size_stays(pair: sd.Pair) -> None:
    swapped = swap_two_ids(pair.tokenizer, 300)
    assert len(swapped) == len(pair.tokenizer)
    differing = [i for i in range(len(swapped)) if swapped.convert_ids_to_tokens(i) != tokens(pair, i)]
    assert differing == [300, 301]
    assert swapped.convert_ids_to_tokens(300) == tokens(pair, 301)
    with pytest.raises(SpecdecError, match="first=1023"):
        swap_two_ids(pair.tokenizer, 1023)


def tokens(pair: sd.Pair, token: int) -> str:
    return str(pair.tokenizer.convert_ids_to_tokens(token))


@pytest.mark.parametrize("v", [1.0, 1.5, 3.0])
def test_the_typical_table_s_order_by_the_formula(v: float) -> None:
    """Lesson 05: with the table's own r and α, the 13B draft wins and TinyLlama comes last, at k = 4."""
    typical = {"7B": (10, 0.75), "13B": (6, 0.85), "TinyLlama": (30, 0.60)}
    gains = {name: float(sd.predicted_speedup(a, 4, 1 / r, v)) for name, (r, a) in typical.items()}
    assert sorted(gains, key=lambda name: gains[name]) == ["TinyLlama", "7B", "13B"]
