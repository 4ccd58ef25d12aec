"""The promises of the pair that ships: small, described, from held-out text, and found without a network."""

import json
import socket
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import specdec_ref as sd
from specdec_lab.training.corpus import HELD_OUT, collect
from specdec_lab.training.evaluation import compare, excerpt, held_out_loss
from specdec_ref.loading import PRETRAINED


def test_the_target_and_the_drafts_fit_in_40_mib_and_the_heads_in_4() -> None:
    size = {path.parent.name: path.stat().st_size / 2**20 for path in PRETRAINED.rglob("*.safetensors")}
    heads = sum(mib for name, mib in size.items() if name.startswith("head-"))
    assert heads <= 4
    assert sum(size.values()) - heads <= 40


def test_what_ships_is_a_target_and_the_drafts_and_heads_of_the_course() -> None:
    drafts = "draft-large", "draft-medium", "draft-small", "draft-small-plain", "head", "parallel-head"
    assert sd.shipped() == (*drafts, "target")


def test_loading_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for draft in sd.shipped()[:-1]:
        pair = sd.load_pair(draft=draft, device="cpu")
        assert pair.draft is not None or pair.drafter is not None


@pytest.mark.parametrize("name", ["target", "draft-small"])
def test_plain_transformers_loads_what_ships(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(PRETRAINED / name, local_files_only=True)
    assert model.config.model_type == "llama"
    assert model.dtype == torch.bfloat16


def test_prompts_come_from_held_out_modules() -> None:
    prompts = sd.held_out_prompts()
    assert len(prompts) >= 12
    assert {name.split(".")[0] for name in prompts} <= HELD_OUT


@pytest.mark.slow
def test_the_target_is_near_its_card_on_held_out_text() -> None:
    """On the beginnings of the held-out modules: less to copy from than later on, but a broken model is far off."""
    card = json.loads((PRETRAINED / "measurements.json").read_text(encoding="utf-8"))
    pair = sd.load_pair(device="cpu")
    documents = excerpt(collect().held_out, 60_000)
    loss = held_out_loss(pair.target, documents, pair.tokenizer.backend_tokenizer)
    assert abs(loss - card["target"]["nats_per_character"]) < 0.25


def test_distillation_and_size_order_the_drafts_by_acceptance() -> None:
    card = json.loads((PRETRAINED / "measurements.json").read_text(encoding="utf-8"))["drafts"]
    by_acceptance = sorted(card, key=lambda name: card[name]["acceptance"])
    assert by_acceptance == ["draft-small-plain", "draft-small", "draft-medium", "draft-large"]


def test_acceptance_while_decoding_is_near_the_card() -> None:
    """The model finds its own text more likely than text by people: a sanity check, not a test of exactness."""
    card = json.loads((PRETRAINED / "measurements.json").read_text(encoding="utf-8"))["drafts"]["draft-small"]
    pair = sd.load_pair(draft="draft-small", device="cpu")
    prompts = list(sd.held_out_prompts().values())[:8]
    generations = sd.generate_speculative(pair, prompts, k=4, max_new_tokens=64, seed=0)
    examined = sum(min(r.accepted + 1, len(r.drafted)) for g in generations for r in g.rounds)
    accepted = sum(r.accepted for g in generations for r in g.rounds)
    assert abs(accepted / examined - card["acceptance"]) < 0.15


def test_the_readmes_first_example_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    example = readme.split("```python\n")[1].split("```")[0]
    exec(compile(example, "README.md", "exec"), names := {})
    assert len(names["g"].tokens) == 128
    assert names["g"].text in capsys.readouterr().out


def test_self_draft_accepts_everything() -> None:
    pair = sd.load_pair(draft="target", device="cpu")
    g = sd.generate_speculative(pair, next(iter(sd.held_out_prompts().values())), k=4, max_new_tokens=40, seed=1)
    assert g.acceptance_rate == pytest.approx(1.0)


def test_greedy_text_is_the_targets_own_on_every_held_out_prompt() -> None:
    pair = sd.load_pair(device="cpu")
    for name, prompt in list(sd.held_out_prompts().items())[:4]:
        ids = pair.tokenizer(prompt, return_tensors="pt")["input_ids"]
        theirs = pair.target.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32, pad_token_id=0
        )
        ours = sd.generate_speculative(pair, prompt, k=5, max_new_tokens=32, sampling=sd.GREEDY)
        assert list(ours.tokens) == theirs[0, ids.shape[1] :].tolist(), name


@pytest.mark.slow
def test_comparing_a_model_with_itself_finds_full_agreement() -> None:
    pair = sd.load_pair(device="cpu")
    documents = excerpt(collect().held_out, 2_000)
    same = compare(pair.target, {"self": pair.target}, documents, pair.tokenizer.backend_tokenizer)["self"]
    assert same.acceptance == pytest.approx(1.0, abs=1e-5)
    assert same.agreement == 1.0
