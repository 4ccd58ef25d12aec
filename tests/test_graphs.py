"""Captured steps: the same numbers as one kernel after the other, and never a stale one; on CUDA where there is one."""

import gc
import shutil
import warnings
import weakref
from typing import Any

import pytest
import torch
from conftest import build_model

import specdec_ref as sd
from specdec_ref.errors import SpecdecError
from specdec_ref.fast import graphs
from specdec_ref.fast.graphs import USES_BEFORE_CAPTURE
from specdec_ref.fast.steps import choose_steps, steps_of
from specdec_ref.models import TransformersModel

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return str(request.param)


def pair_of(family: str, device: str, steps: str) -> tuple[TransformersModel, TransformersModel]:
    """The same weights twice: run as `steps` says, and plainly."""
    models = []
    for how in (steps, "plain"):
        torch.manual_seed(0)
        model = build_model(family).to(device)
        choose_steps(model, how)
        models.append(TransformersModel(model))
    models[1].model.load_state_dict(models[0].model.state_dict())
    return models[0], models[1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("lengths", [[30], [30, 17, 4]], ids=["one row", "ragged"])
def test_captured_steps_equal_plain_ones(family: str, lengths: list[int], device: str) -> None:
    captured, plain = pair_of(family, device, "graphs")
    generator = torch.Generator().manual_seed(1)
    prompt = [torch.randint(60, (n,), generator=generator).tolist() for n in lengths]
    for lm in (captured, plain):
        lm.start(len(lengths), 200)
        lm.prefill(prompt)
    with warnings.catch_warnings(action="error"):  # a model that cannot be captured would say so
        for n in [1, 3] * (USES_BEFORE_CAPTURE + 3):
            tokens = torch.randint(60, (len(lengths), n), generator=generator).to(device)
            torch.testing.assert_close(captured.extend(tokens), plain.extend(tokens), atol=1e-5, rtol=1e-5)
            for lm in (captured, plain):
                lm.rewind([length - n // 2 for length in lm.cache.lengths])
    assert len(captured._runner.workspace.captured) >= 2


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_captured_trees_equal_plain_ones(family: str, device: str) -> None:
    """Of any shape and in any rows: positions, slots and mask are inputs of the captured step."""
    captured, plain = pair_of(family, device, "graphs")
    generator = torch.Generator().manual_seed(1)
    prompt = [torch.randint(60, (n,), generator=generator).tolist() for n in (20, 7)]
    for lm in (captured, plain):
        lm.start(2, 120)
        lm.prefill(prompt)
    shapes = [-1, -1, 0, 0], [-1, 0, 0, 1], [-1, -1, -1, 2]
    with warnings.catch_warnings(action="error"):
        for i in range(USES_BEFORE_CAPTURE + 5):
            tokens = torch.randint(60, (2, 4), generator=generator).to(device)
            parents = torch.tensor([shapes[i % 3], shapes[(i + 1) % 3]])
            found, expected = (lm.extend_tree(tokens, parents) for lm in (captured, plain))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            for lm in (captured, plain):
                lm.keep_path([[0, 1] if parents[0, 1] == 0 else [1], [0]])
    assert captured._runner.workspace.captured


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and not torch.cuda.is_available(), reason="nothing compiles here")
def test_compiled_steps_equal_plain_ones(device: str) -> None:
    compiled, plain = pair_of("llama", device, "compiled")
    for lm in (compiled, plain):
        lm.start(2, 64)
        lm.prefill([[1, 2, 3, 4], [5, 6]])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="steps of .* cannot be captured")
        for token in range(USES_BEFORE_CAPTURE + 3):
            tokens = torch.tensor([[token], [7 - token]], device=device)
            torch.testing.assert_close(compiled.extend(tokens), plain.extend(tokens), atol=1e-4, rtol=1e-4)
    assert compiled._runner.workspace.captured


def test_a_workspace_serves_the_next_generation_of_its_size(device: str) -> None:
    captured, plain = pair_of("llama", device, "graphs")
    workspaces = []
    for prompt in ([1, 2, 3], [9, 8, 7, 6]):
        for lm in (captured, plain):
            lm.start(1, 64)
            lm.prefill([prompt])
        for token in range(8):
            tokens = torch.tensor([[token]], device=device)
            torch.testing.assert_close(captured.extend(tokens), plain.extend(tokens), atol=1e-5, rtol=1e-5)
        workspaces.append(captured._runner.workspace)
    assert workspaces[0] is workspaces[1]


def test_a_cache_that_grows_is_captured_again(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specdec_ref.cache.FIRST_SLOTS", 16)
    captured, plain = pair_of("llama", device, "graphs")
    for lm in (captured, plain):
        lm.start(1, 100)
        lm.prefill([[1, 2, 3]])
    workspaces = [captured._runner.workspace]
    for token in range(40):
        tokens = torch.tensor([[token]], device=device)
        torch.testing.assert_close(captured.extend(tokens), plain.extend(tokens), atol=1e-5, rtol=1e-5)
        if captured._runner.workspace is not workspaces[-1]:
            workspaces.append(captured._runner.workspace)
    assert captured.cache.allocated == 64
    assert len(workspaces) == 3
    assert all(workspace.captured for workspace in workspaces)


def test_two_generations_at_once_have_workspaces_of_their_own(device: str) -> None:
    first, _ = pair_of("llama", device, "graphs")
    second = TransformersModel(first.model)
    for lm, prompt in ((first, [1, 2, 3]), (second, [4, 5, 6])):
        lm.start(1, 64)
        lm.prefill([prompt])
    assert first._runner.workspace is not second._runner.workspace
    assert not torch.equal(first.cache.row(0)[0][0], second.cache.row(0)[0][0])


def test_generations_one_after_the_other_share_a_workspace_and_let_go_of_the_model(device: str) -> None:
    """Each makes a `TransformersModel` of its own, as `generate_speculative` does."""
    pair = sd.load_pair(device=device, dtype="float32", steps="graphs")
    texts = [sd.generate_speculative(pair, "def f", k=3, max_new_tokens=40, seed=0).tokens for _ in range(4)]
    assert texts == [texts[0]] * 4
    assert pair.draft is not None
    for model in (pair.target, pair.draft):
        (workspace,) = graphs._workspaces[model]
        assert workspace.captured
    held = weakref.ref(pair.target)
    del pair, model, workspace
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("steps", ["recorded", "plain"])
def test_a_model_goes_when_nobody_holds_it(steps: str) -> None:
    pair = sd.load_pair(device="cpu", steps=steps)
    sd.generate_speculative(pair, "def f", k=3, max_new_tokens=60, seed=0)
    held = weakref.ref(pair.target)
    del pair
    gc.collect()
    assert held() is None


@pytest.mark.slow
def test_workspaces_that_nobody_uses_do_not_pile_up() -> None:
    captured, _ = pair_of("llama", "cpu", "graphs")
    for batch in range(1, 9):
        captured.start(batch, 64)
        gc.collect()
    assert len(graphs._workspaces[captured.model]) <= graphs.IDLE_WORKSPACES + 1


def test_rows_that_leave_take_their_cache_with_them(device: str) -> None:
    captured, plain = pair_of("llama", device, "graphs")
    for lm in (captured, plain):
        lm.start(2, 64)
        lm.prefill([[1, 2, 3], [4, 5, 6]])
    for step in range(8):
        if step == 5:
            for lm in (captured, plain):
                lm.keep([1])
        tokens = torch.full((2 if step < 5 else 1, 1), step, device=device)
        torch.testing.assert_close(captured.extend(tokens), plain.extend(tokens), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_captured_says_so_once_and_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    captured, plain = pair_of("llama", "cpu", "graphs")

    def fails(*args: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "CapturedStep", fails)
    for lm in (captured, plain):
        lm.start(1, 64)
        lm.prefill([[1, 2, 3]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for token in range(8):
            tokens = torch.tensor([[token]])
            assert torch.equal(captured.extend(tokens), plain.extend(tokens))
    assert [str(w.message)[:45] for w in caught] == ["steps of LlamaForCausalLM cannot be captured "]


@pytest.mark.parametrize("steps", ["graphs", "recorded", "plain"])
def test_every_way_gives_the_same_tokens(steps: str) -> None:
    pair = sd.load_pair(device="cpu", steps=steps)
    assert steps_of(pair.target) == steps
    got = sd.generate_speculative(pair, "def mean(values):\n", k=3, max_new_tokens=24, seed=5)
    want = sd.generate_speculative(sd.load_pair(device="cpu"), "def mean(values):\n", k=3, max_new_tokens=24, seed=5)
    assert got.tokens == want.tokens


def test_steps_are_as_suits_the_device_unless_chosen() -> None:
    model = build_model("llama")
    assert steps_of(model) == "recorded"
    with pytest.raises(SpecdecError, match="steps='fast': takes one of auto"):
        choose_steps(model, "fast")
    with pytest.raises(SpecdecError, match="steps=None: takes one of auto"):
        sd.load_pair(steps=None)  # type: ignore[arg-type]
