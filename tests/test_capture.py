"""The promise of recorded steps: to the last bit the same as transformers' own forward, and never a stale record."""

import pytest
import torch
from conftest import build_model

from specdec_ref.capture import PLAIN_FAMILIES, can_be_recorded, layer_by_layer
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


@pytest.mark.parametrize("family", sorted(PLAIN_FAMILIES - {"mistral"}))
@pytest.mark.parametrize("lengths", [[30], [30, 30], [30, 17, 4]], ids=["one row", "rows in step", "ragged"])
def test_a_recorded_step_equals_an_unrecorded_one_to_the_last_bit(family: str, lengths: list[int]) -> None:
    """Also where the record was made with fewer slots: the rows grow past a multiple of the cache's window."""
    recorded, plain = TransformersModel(build_model(family)), TransformersModel(build_model(family))
    chance = torch.Generator().manual_seed(1)
    for lm in (recorded, plain):
        lm.start(len(lengths), 600)
    plain._recorded = False
    assert recorded._recorded
    prompt = [torch.randint(60, (n,), generator=chance).tolist() for n in lengths]
    for lm in (recorded, plain):
        lm.prefill(prompt)
    for n in [1, 3, 50, *[1, 3] * 6, 50, 50, 50, 50, 1, 3, 50, 1]:
        tokens = torch.randint(60, (len(lengths), n), generator=chance)
        assert torch.equal(recorded.extend(tokens), plain.extend(tokens))
        back = [length - n // 2 for length in plain.cache.lengths]
        for lm in (recorded, plain):
            lm.rewind(back)


def test_hooks_and_patches_are_never_recorded() -> None:
    model = build_model("llama")
    assert can_be_recorded(model)
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: output * float("nan"))
    assert not can_be_recorded(model)
    handle.remove()
    assert can_be_recorded(model)
    model.lm_head.forward = lambda hidden: hidden
    assert not can_be_recorded(model)


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
