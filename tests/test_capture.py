"""The promise of recorded steps: transformers' own numbers, always the same ones, and no stale record."""

import copy
import platform
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import build_model

from specdec_ref.ancestry import node_paths
from specdec_ref.fast import trace
from specdec_ref.fast.packing import NOTHING, Packed, pack, packed_product
from specdec_ref.fast.steps import PlainRunner, choose_steps
from specdec_ref.fast.trace import PLAIN_FAMILIES, layer_by_layer, untouched
from specdec_ref.models import TransformersModel


@pytest.mark.parametrize("family", sorted(PLAIN_FAMILIES))
def test_layer_by_layer_is_the_whole_forward(family: str) -> None:
    model = build_model(family)
    tokens = torch.randint(60, (2, 9))
    positions = torch.arange(9).expand(2, 9)
    mask = torch.zeros(2, 1, 9, 9).masked_fill(torch.ones(9, 9).triu(1).bool(), torch.finfo(torch.float32).min)
    with torch.inference_mode():
        whole = model(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False).logits
        assert torch.equal(layer_by_layer(model, tokens, positions, mask, None), whole)


@pytest.fixture(autouse=True)
def _record_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "USES_BEFORE_RECORDING", 3)


def logits_over_a_while(lm: TransformersModel, lengths: list[int], sizes: list[int]) -> list[torch.Tensor]:
    """Of steps of these sizes on random tokens, half of each taken back. Rows grow past the cache's window."""
    generator = torch.Generator().manual_seed(1)
    lm.start(len(lengths), 600)
    lm.prefill([torch.randint(60, (n,), generator=generator).tolist() for n in lengths])
    found = []
    for n in sizes:
        found.append(lm.extend(torch.randint(60, (len(lengths), n), generator=generator)))
        lm.rewind([length - n // 2 for length in lm.cache.lengths])
    return found


SIZES = [1, 3, 50, *[1, 3] * 6, 50, 50, 50, 50, 1, 3, 50, 1]
ROWS = pytest.mark.parametrize("lengths", [[30], [30, 30], [30, 17, 4]], ids=["one row", "rows in step", "ragged"])


TREES = [-1, -1, 0, 0, 1, 3, 4], [-1, 0, 0, 0, 1, 2, 5], [-1, 0, 1, 2, 3, 4, 5]
"""Trees of seven nodes; the last one is a chain."""


def tree_logits_over_a_while(lm: TransformersModel, lengths: list[int]) -> list[torch.Tensor]:
    """Of trees of changing shapes on random tokens. The cache keeps one path of each, so rows grow past its window."""
    generator = torch.Generator().manual_seed(1)
    lm.start(len(lengths), 600)
    lm.prefill([torch.randint(60, (n,), generator=generator).tolist() for n in lengths])
    found = []
    for i in range(3 * 24):
        parents = torch.tensor([TREES[(i + row) % 3] for row in range(len(lengths))])
        found.append(lm.extend_tree(torch.randint(60, parents.shape, generator=generator), parents))
        lm.keep_path([paths[6] for paths in node_paths(parents)])
    return found


@ROWS
@pytest.mark.parametrize("family", sorted(PLAIN_FAMILIES - {"mistral"}))
def test_one_record_serves_all_trees_of_a_size_and_changes_no_bit(
    family: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = TransformersModel(build_model(family, max_position_embeddings=600))
    found = tree_logits_over_a_while(recorded, lengths)
    # Rows in step are written to the same slots, so such a step is recorded apart.
    assert 1 <= len(trace._records[recorded.model].steps) <= 2
    monkeypatch.setattr(trace, "USES_BEFORE_RECORDING", len(found))
    never = TransformersModel(build_model(family, max_position_embeddings=600))
    assert all(map(torch.equal, found, tree_logits_over_a_while(never, lengths)))
    assert not trace._records[never.model].steps


@ROWS
@pytest.mark.parametrize("family", sorted(PLAIN_FAMILIES - {"mistral"}))
def test_recording_changes_no_bit(family: str, lengths: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same seed gives the same tokens in the first generation of a process and in later ones."""
    recorded = TransformersModel(build_model(family))
    found = logits_over_a_while(recorded, lengths, SIZES)
    assert trace._records[recorded.model].steps
    monkeypatch.setattr(trace, "USES_BEFORE_RECORDING", len(SIZES))
    never = logits_over_a_while(TransformersModel(build_model(family)), lengths, SIZES)
    assert all(map(torch.equal, found, never))


@pytest.mark.parametrize("family", sorted(PLAIN_FAMILIES - {"mistral"}))
def test_a_plain_step_is_the_models_own_to_the_last_bit(family: str) -> None:
    """The oracle is transformers' own forward, with the mask and positions that it makes itself."""
    model = build_model(family)
    plain = _never_recorded(TransformersModel(model))
    tokens = torch.randint(60, (1, 20), generator=torch.Generator().manual_seed(1))
    plain.start(1, 20)
    found = plain.extend(tokens)
    with torch.inference_mode():
        own = model(input_ids=tokens, use_cache=False).logits
    assert torch.equal(found, own)


@pytest.mark.parametrize("family", sorted(PLAIN_FAMILIES - {"mistral"}))
def test_a_recorded_step_of_several_rows_is_the_models_own_to_the_last_bit(family: str) -> None:
    """They are not packed. A single row is, whether a step has one token or more: see the next test."""
    recorded, plain = TransformersModel(build_model(family)), TransformersModel(build_model(family))
    found = logits_over_a_while(recorded, [30, 30], [1] * 12)
    assert trace._records[recorded.model].steps
    plain.start(2, 0)
    own = logits_over_a_while(_never_recorded(plain), [30, 30], [1] * 12)
    assert all(map(torch.equal, found, own))


@ROWS
@pytest.mark.parametrize("family", sorted(PLAIN_FAMILIES - {"mistral"}))
def test_packed_weights_err_no_more_than_plain_ones(family: str, lengths: list[int]) -> None:
    """Against the same model in float64. Twice the error of plain float32 is allowed, since both are mere rounding."""
    exact = logits_over_a_while(_never_recorded(TransformersModel(build_model(family).double())), lengths, SIZES)
    plain = logits_over_a_while(_never_recorded(TransformersModel(build_model(family))), lengths, SIZES)
    packed = logits_over_a_while(TransformersModel(build_model(family)), lengths, SIZES)

    def error(found: list[torch.Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True))

    assert 0 < error(packed) < 2 * error(plain)


def _never_recorded(lm: TransformersModel) -> TransformersModel:
    """The same, by the model's own forward and plain weights."""
    choose_steps(lm.model, "plain")
    return lm


def test_hooks_and_patches_are_noticed() -> None:
    model = build_model("llama")
    assert untouched(model)
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    assert not untouched(model)
    handle.remove()
    assert untouched(model)
    model.lm_head.forward = lambda hidden: hidden
    assert not untouched(model)


@pytest.mark.parametrize("steps", ["recorded", "graphs"])
@pytest.mark.parametrize("part", ["", "model", "model.layers.0", "lm_head"])
def test_a_hook_on_any_part_sees_every_step(part: str, steps: str) -> None:
    """Also on the model itself and its body, whose own functions recorded steps leave out. Graphs are not captured."""
    lm, seen = TransformersModel(build_model("llama")), []
    choose_steps(lm.model, steps)
    lm.start(1, 64)
    assert type(lm._runner) is not PlainRunner
    lm.model.get_submodule(part).register_forward_pre_hook(lambda module, inputs: seen.append(1))
    with pytest.warns(UserWarning, match="hooks") if steps == "graphs" else nullcontext():
        lm.start(1, 64)
    lm.prefill([[1, 2, 3]])
    for _ in range(20):
        lm.extend(torch.tensor([[4]]))
    assert len(seen) == 21
    assert type(lm._runner) is PlainRunner


def test_a_record_sees_weights_that_change_in_place() -> None:
    model = build_model("llama")
    lm = TransformersModel(model)

    def logits() -> torch.Tensor:
        lm.start(1, 64)
        lm.prefill([[1, 2, 3]])
        return lm.extend(torch.tensor([[4]]))

    before = logits()
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert torch.allclose(logits(), 2 * before, atol=1e-5)


def test_packed_weights_follow_weights_that_change_in_place() -> None:
    lm = TransformersModel(build_model("qwen2"))
    for change in (1.0, 2.0, 0.5):
        with torch.no_grad():
            for parameter in lm.model.parameters():
                parameter.mul_(change)
        own = TransformersModel(copy.deepcopy(lm.model))
        found = logits_over_a_while(lm, [30], [4] * 8)
        for ours, theirs in zip(found, logits_over_a_while(_never_recorded(own), [30], [4] * 8), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available(),
    reason="packed weights are oneDNN's, and tried out on x86 processors",
)
def test_packed_products_work_here() -> None:
    """Without them everything goes on, more slowly, and no other test would see it."""
    assert packed_product() is not None


def test_linear_layers_in_float32_are_packed_those_of_one_input_together() -> None:
    model = build_model("llama")
    weights, places = pack(model)
    linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert not packed_product() or places.keys() == set(map(id, linear))
    layers = model.config.num_hidden_layers
    assert len(weights) == (4 * layers + 1 if packed_product() else 0)  # q k v, o, gate up, down; the head
    assert pack(model.double()) == NOTHING


def test_a_packed_product_is_each_layers_own() -> None:
    """Also of layers that happen to have these names but other inputs, with a bias, and when an input comes again."""
    torch.manual_seed(0)
    block = torch.nn.Module()
    block.gate_proj, block.up_proj = torch.nn.Linear(8, 16), torch.nn.Linear(8, 24, bias=False)
    block.down_proj = torch.nn.Linear(24, 8)
    one, other = torch.randn(1, 5, 8), torch.randn(1, 5, 8)
    packing = pack(block)
    for inputs in ((one, one), (one, other), (other, one), (one, one)):
        plain = block.gate_proj(inputs[0]), block.down_proj(block.up_proj(inputs[1]))
        with Packed(*packing):
            packed = block.gate_proj(inputs[0]), block.down_proj(block.up_proj(inputs[1]))
        torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-5)


def test_records_go_with_their_model() -> None:
    import gc
    import weakref

    model = build_model("llama", seed=99)
    lm = TransformersModel(model)
    lm.start(1, 64)
    lm.prefill([[1, 2, 3]])
    lm.extend(torch.tensor([[4]]))
    gone = weakref.ref(model)
    del model, lm
    gc.collect()
    assert gone() is None


RECORD_MANY = """
import ctypes, gc, psutil, torch
from conftest import build_model
from specdec_ref.fast import trace
from specdec_ref.models import TransformersModel

trace.USES_BEFORE_RECORDING = 1
process, held = psutil.Process(), []
for seed in range(4):
    model = build_model("llama", seed=seed, num_hidden_layers=8)
    lm = TransformersModel(model)
    lm.start(1, 128)
    lm.prefill([[1, 2, 3]])
    for n in (2, 3, 4, 5):
        for _ in range(5):
            lm.extend(torch.zeros(1, n, dtype=torch.int64))
            lm.rewind([3])
    assert len(trace._records[model].steps) == 4
    del model, lm
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held.append(process.memory_full_info().uss)
print(held[-1] - held[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="asks glibc to give freed memory back")
def test_records_leave_no_memory_behind() -> None:
    """Four records of 8 layers each, three times over, took 200 MB more that were never given back."""
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", RECORD_MANY], cwd=here, check=True, capture_output=True, text=True)
    assert int(run.stdout) < 20e6
