"""The model card, made from measurements. `specdec train --card FOLDER` measures a pair again and rewrites it."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from specdec_lab.measurement.costs import measure_costs
from specdec_lab.measurement.positions import accepted_by_position
from specdec_lab.training.corpus import HELD_OUT, Document, collect
from specdec_lab.training.evaluation import compare, excerpt, held_out_loss
from specdec_lab.training.heads import head_acceptance, head_costs
from specdec_ref.api import generate_speculative
from specdec_ref.beyond.heads import HeadDrafter, ParallelHeadDrafter, load_head
from specdec_ref.decoding import Round
from specdec_ref.loading import Pair, load_pair
from specdec_ref.sampling import Sampling

if TYPE_CHECKING:
    from specdec_ref.drafting import Drafter

QUICK_CHARACTERS = 4_000

HEAD_CHARACTERS = 100_000
"""Characters of held-out text for the heads, fewer than for drafts, since five simulated draft steps take five times
as long as one step."""

DRAFTED = 4
"""The k for the card's tokens per round."""

_CARD = """\
# The models that ship with specdec_ref

A target, four draft models and two heads. They are small enough for a laptop and for this repository, so that
you can see speculative decoding work and measure it. The target and the drafts have the Llama architecture,
bfloat16 safetensors, a byte-level BPE vocabulary of {vocab_size} tokens and a context of {context} tokens. They
load with plain `AutoModelForCausalLM.from_pretrained`. `specdec_ref.load_head` loads the heads;
`load_pair` calls them 'head' and 'parallel-head'.

| model | layers × width | parameters | trained on | c | Σ min(p, q) | same first choice | nats/character |
|---|---|---|---|---|---|---|---|
{rows}
{heads}
These figures are for held-out text at temperature 1: {held_out_characters:,} characters of modules that no
model was trained on ({modules}). Each token has up to {context} tokens before it.

- *Σ min(p, q)* is the probability that a drafted token is accepted, as a mean over positions. For a head it is
  that of the first draft step, on {head_characters:,} of these characters.
- *same first choice* is the share of positions where draft and target find the same token most likely.
- *c* is the time of a draft step divided by the time of a target step: batch 1, {device}, float32, torch
  {torch}, medians. It depends on the machine, and varies by a tenth from one measurement to the next.

`specdec train --card FOLDER` measures all of this again and writes this page.

## Tokens per round

Each method drafted {drafted} tokens per round after the held-out prompts, at temperature 1. *accepted at
position i* is the share of drafted tokens at position i that were accepted, of those that were examined.

| drafter | tokens per round | {positions} |
|---|---|{lines}|
{rounds}

## What they were trained on

The text is the source of the Python {python} standard library: {library_characters:,} characters of the library
and {test_characters:,} of its tests, without generated tables and vendored copies. The tokenizer saw the library
only. The target was trained on the text. The drafts were distilled from the target's distributions on the same
text, first with KL(p‖q), then with the total variation distance. `draft-small-plain` saw the same batches as
`draft-small`, but was trained on the text alone. The difference between the two is what distillation is worth.
The heads learned from the target's distributions and hidden states on the same text. `specdec train FOLDER`
trains the pair again, and `specdec train FOLDER --head feature` a head.

## What the training taught

- A deep, narrow target (28 × 192) takes twice as long per step as a wide one with as many parameters (10 × 320).
  In return it scores several tokens in little more than the time of one: both c and v(5) fell.
- Judge a target on texts as long as it will read. Training windows grow from 256 to 1,024 tokens only in the last
  fifth of the training. Until then, held-out measurements look bad, because later positions were never trained.
- A third layer is worth its cost. It lets a draft copy earlier text, and its step takes a quarter to a third longer.
- Choose distilled weights by acceptance, not by loss. When the objective changes to the total variation distance,
  the loss rises while acceptance still improves.
- A schedule that was too short can be continued with `TrainingPlan.restarts`: 1.09 nats per character fell to 0.85.

`docs/how-to/train_a_head.md` reports what the training of the heads taught.

## What they are for, and what not

They are for the course: speedups, acceptance rates, exactness tests and benchmarks of decoding loops. They
write text that looks like Python and does nothing useful; never run it. At temperature 0 they soon repeat
themselves, as small models do. Judge the speed at temperature 1 too.

## License

The weights were trained on text under the PSF License Agreement (Python Software Foundation, version 2), which
permits derived works. The weights and the excerpts in `prompts.json` are distributed under the same terms.
Copyright of the text: the Python Software Foundation and the authors named in the modules.
"""


def write_card(
    folder: Path,
    device: torch.device,
    *,
    quick: bool = False,
    on_stage: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure the models in a folder on held-out text of this Python, and write README.md and measurements.json there.

    Args:
        folder: has the folders target, draft-* and, if heads were trained, head-*.
        device: where to measure.
        quick: use a small part of the held-out text, and time less.
        on_stage: receives what is being measured.

    Returns:
        The measurements.

    Raises:
        SpecdecError: the pair cannot be loaded.
    """
    names = sorted(path.parent.name for path in folder.glob("draft-*/config.json"))
    corpus = collect()
    documents = excerpt(corpus.held_out, QUICK_CHARACTERS) if quick else corpus.held_out
    pairs = {name: load_pair(folder / "target", folder / name, device=device, dtype=torch.float32) for name in names}
    pair = pairs[names[0]]
    tokenizer = Tokenizer.from_file(str(folder / "target" / "tokenizer.json"))
    head_folders = [path.parent for path in sorted(folder.glob("head-*/config.json"))]
    heads = {path.name: load_head(pair.target, path) for path in head_folders}
    repeats = 5 if quick else 31
    on_stage("the target on held-out text")
    loss = held_out_loss(pair.target, documents, tokenizer)
    facts: dict[str, Any] = {
        "target": {**_shape(pair.target), "nats_per_character": loss},
        "held_out_characters": sum(len(d.text) for d in documents),
        "characters": corpus.characters(),
        "drafts": {},
        "heads": {},
    }
    on_stage("the drafts on held-out text")
    compared = compare(pair.target, {name: _model(of.draft) for name, of in pairs.items()}, documents, tokenizer)
    for name, one_pair in pairs.items():
        on_stage(f"step times and rounds of {name}")
        facts["drafts"][name] = {
            **_shape(_model(one_pair.draft)),
            "c": measure_costs(one_pair, max_k=4, context=min(200, pair.context // 2), repeats=repeats).c,
            "acceptance": compared[name].acceptance,
            "agreement": compared[name].agreement,
            "nats_per_character": compared[name].nats_per_character,
            "rounds": _rounds(one_pair, None, folder),
        }
    for name, head in heads.items():
        on_stage(f"{name} on held-out text, step times and rounds")
        facts["heads"][name] = {
            **_head_facts(head, excerpt(documents, HEAD_CHARACTERS), tokenizer, repeats),
            "rounds": _rounds(pair, head, folder),
        }
    card = card_text(facts, pair, device)
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "measurements.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def card_text(facts: dict[str, Any], pair: Pair, device: torch.device) -> str:
    """The card in Markdown.

    Args:
        facts: as `write_card` returns them.
        pair: one of the measured pairs.
        device: where it was measured.
    """
    return _CARD.format(
        rows="\n".join(_rows(facts)),
        heads="".join(f"{row}\n" for row in _head_rows(facts)),
        vocab_size=pair.target.config.vocab_size,
        context=pair.context,
        held_out_characters=facts["held_out_characters"],
        modules=", ".join(sorted(HELD_OUT)),
        head_characters=min(HEAD_CHARACTERS, facts["held_out_characters"]),
        device="one CUDA GPU" if device.type == "cuda" else f"CPU with {torch.get_num_threads()} threads",
        torch=torch.__version__.split("+")[0],
        python=".".join(platform.python_version_tuple()[:2]),
        library_characters=facts["characters"]["library"],
        test_characters=facts["characters"]["tests"],
        drafted=DRAFTED,
        positions=" | ".join(f"accepted at position {i + 1}" for i in range(DRAFTED)),
        lines="|".join(["---"] * DRAFTED),
        rounds="\n".join(_round_rows(facts)),
    )


def _head_facts(
    head: HeadDrafter | ParallelHeadDrafter, documents: tuple[Document, ...], tokenizer: Tokenizer, repeats: int
) -> dict[str, Any]:
    target = head.target.model
    steps = head.head.config.num_tokens
    costs = head_costs(head, context=min(200, head.head.config.context // 2), repeats=repeats)
    return {
        "kind": head.head.config.kind,
        "parameters": sum(p.numel() for p in head.head.parameters()),
        "c": costs.c,
        "acceptance": head_acceptance(target, head.head, documents, tokenizer, steps),
    }


def _rounds(pair: Pair, drafter: "Drafter | None", folder: Path) -> dict[str, Any]:
    """Tokens per round and acceptance by position, after the held-out prompts at temperature 1."""
    prompts = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    half = pair.context // 2
    rounds: list[Round] = []
    tokens = 0
    for seed, text in enumerate(prompts.values()):
        prompt = pair.tokenizer(text)["input_ids"][-half:]
        generation = generate_speculative(
            pair,
            prompt,
            k=DRAFTED,
            drafter=drafter,
            max_new_tokens=min(160, half - 1),
            sampling=Sampling(),
            seed=seed,
        )
        rounds += generation.rounds
        tokens += len(generation.tokens)
    return {"tokens_per_round": tokens / len(rounds), "accepted": accepted_by_position(rounds, DRAFTED)}


def _model(model: Any) -> Any:
    assert model is not None
    return model


def _shape(model: Any) -> dict[str, Any]:
    config = model.config
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _rows(facts: dict[str, Any]) -> list[str]:
    def row(name: str, source: str, f: dict[str, Any]) -> str:
        compared = f"{f['c']:.3f} | {f['acceptance']:.3f} | {f['agreement']:.1%}" if "acceptance" in f else "1 | |"
        size = f"{f['layers']} × {f['width']} | {f['parameters'] / 1e6:.2f} M"
        return f"| `{name}` | {size} | {source} | {compared} | {f['nats_per_character']:.3f} |"

    rows = [row("target", "text", facts["target"])]
    drafts = sorted(
        facts["drafts"].items(), key=lambda draft: (draft[1]["parameters"], not draft[0].endswith("-plain"))
    )
    return rows + [row(n, "text" if n.endswith("-plain") else "target", f) for n, f in drafts]


def _head_rows(facts: dict[str, Any]) -> list[str]:
    width = facts["target"]["width"]
    return [
        f"| `{name}` | {'1' if f['kind'] == 'feature' else '0'} × {width} | {f['parameters'] / 1e6:.2f} M | target | "
        f"{f['c']:.3f} | {f['acceptance'][0]:.3f} | | |"
        for name, f in facts["heads"].items()
    ]


def _round_rows(facts: dict[str, Any]) -> list[str]:
    rows = []
    for name, f in (facts["drafts"] | facts["heads"]).items():
        shares = " | ".join(f"{share:.2f}" for share in f["rounds"]["accepted"])
        rows.append(f"| `{name}` | {f['rounds']['tokens_per_round']:.2f} | {shares} |")
    return rows
