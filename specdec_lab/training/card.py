"""The model card: measured, not typed. `specdec train --card FOLDER` measures a pair again and rewrites it."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from specdec_lab.training.corpus import HELD_OUT, collect
from specdec_lab.training.evaluation import compare, excerpt, held_out_loss
from specdec_ref.loading import Pair, load_pair

QUICK_CHARACTERS = 4_000

_CARD = """\
# The pair that ships with specdec_ref

A target and four drafts, small enough for a laptop and for this repository, to see speculative decoding work and to
measure it. Llama architecture, bfloat16 safetensors, byte-level BPE of {vocab_size} tokens, context {context}. They
load with plain `AutoModelForCausalLM.from_pretrained`.

| model | layers × width | parameters | learnt from | c | accepted, Σ min(p, q) | same first choice | nats/character |
|---|---|---|---|---|---|---|---|
{rows}

Held-out text at temperature 1: {held_out_characters:,} characters of modules that no model was trained on ({modules}),
each token with up to {context} tokens before it. *accepted* is the mean over positions of Σ min(p, q), the chance that
a drafted token is kept; *same first choice* the share of positions where draft and target find the same token most
likely. *c* is the time of a draft step over that of a target step, batch 1, {device}, float32, torch {torch}, medians;
it depends on the machine. `specdec train --card FOLDER` measures all of this again and writes this page.

## What they learnt

The source of the Python {python} standard library: {library_characters:,} characters of the library and
{test_characters:,} of its tests, without generated tables and vendored copies. The tokenizer saw the library only.
The target learnt from the text; the drafts were distilled from the target's distributions (KL, then total variation)
on the same text; `draft-small-plain` saw the same batches as `draft-small`, but learnt from the text alone: the
difference between the two is what alignment is worth. `specdec train FOLDER` makes them all again.

## What they are for, and what not

For the course: speedups, acceptance rates, exactness tests, benchmarks of decoding loops. They write text that looks
like Python and does nothing useful; never run it. At temperature 0 they soon repeat themselves, as small models do:
judge speed at temperature 1 too.

## License

The weights were learnt from text under the PSF License Agreement (Python Software Foundation, version 2), which permits
derived works; they and the excerpts in `prompts.json` are distributed under the same terms. Copyright of the text: the
Python Software Foundation and the authors named in the modules.
"""


def write_card(
    folder: Path,
    device: torch.device,
    draft_cost: Callable[[Pair], float],
    *,
    quick: bool = False,
    on_stage: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure the pair in `folder` on held-out text of this interpreter; write README.md and measurements.json there.

    draft_cost: measures c of a pair. quick: a small part of the held-out text. Returns the measurements. Raises
    SpecdecError where the pair cannot be loaded.
    """
    names = sorted(path.parent.name for path in folder.glob("draft-*/config.json"))
    corpus = collect()
    documents = excerpt(corpus.held_out, QUICK_CHARACTERS) if quick else corpus.held_out
    pairs = {name: load_pair(folder / "target", folder / name, device=device, dtype=torch.float32) for name in names}
    target = pairs[names[0]].target
    tokenizer = Tokenizer.from_file(str(folder / "target" / "tokenizer.json"))
    context = target.config.max_position_embeddings
    on_stage("the target on held-out text")
    facts: dict[str, Any] = {
        "target": {**_shape(target), "nats_per_character": held_out_loss(target, documents, tokenizer)},
        "held_out_characters": sum(len(d.text) for d in documents),
        "characters": corpus.characters(),
        "drafts": {},
    }
    on_stage("the drafts beside it")
    compared = compare(target, {name: _model(pair.draft) for name, pair in pairs.items()}, documents, tokenizer)
    for name, pair in pairs.items():
        on_stage(f"step times of {name}")
        facts["drafts"][name] = {
            **_shape(_model(pair.draft)),
            "c": draft_cost(pair),
            "acceptance": compared[name].acceptance,
            "agreement": compared[name].agreement,
            "nats_per_character": compared[name].nats_per_character,
        }
    card = _CARD.format(
        rows="\n".join(_rows(facts)),
        vocab_size=target.config.vocab_size,
        context=context,
        held_out_characters=facts["held_out_characters"],
        modules=", ".join(sorted(HELD_OUT)),
        device="one CUDA GPU" if device.type == "cuda" else f"CPU with {torch.get_num_threads()} threads",
        torch=torch.__version__.split("+")[0],
        python=".".join(platform.python_version_tuple()[:2]),
        library_characters=facts["characters"]["library"],
        test_characters=facts["characters"]["tests"],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "measurements.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


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
    def row(name: str, learnt: str, f: dict[str, Any]) -> str:
        compared = f"{f['c']:.3f} | {f['acceptance']:.3f} | {f['agreement']:.1%}" if "acceptance" in f else "1 | |"
        size = f"{f['layers']} × {f['width']} | {f['parameters'] / 1e6:.2f} M"
        return f"| `{name}` | {size} | {learnt} | {compared} | {f['nats_per_character']:.3f} |"

    rows = [row("target", "text", facts["target"])]
    drafts = sorted(
        facts["drafts"].items(), key=lambda draft: (draft[1]["parameters"], not draft[0].endswith("-plain"))
    )
    return rows + [row(n, "text" if n.endswith("-plain") else "target", f) for n, f in drafts]
