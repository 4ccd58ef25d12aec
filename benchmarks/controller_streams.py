"""The streams of texts that benchmarks/controllers.py generates, and the draft of each."""

import ast
from dataclasses import dataclass

import torch

import specdec_ref as sd
from specdec_lab.measurement.benchmark import repeated_share
from specdec_lab.training.corpus import Document, collect

PROMPT = 160
"""Tokens of a prompt that is cut out of a held-out module."""
MIXED = "mixed stream"
USELESS = "useless draft"


@dataclass(frozen=True)
class Text:
    """One generation of a stream. garbled: whether the draft proposes nonsense, with the right q for it."""

    prompt: tuple[int, ...]
    sampling: sd.Sampling
    garbled: bool = False


class MayGarble:
    """A language model that can be made useless at the same cost: its logits are then those of other tokens."""

    def __init__(self, model: sd.LanguageModel):
        self.model = model
        self.vocab_size, self.context, self.device = model.vocab_size, model.context, model.device
        self.garbled = False
        self.start, self.prefill, self.rewind, self.keep = model.start, model.prefill, model.rewind, model.keep

    def extend(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.model.extend(tokens)
        return logits.roll(self.vocab_size // 2, -1) if self.garbled else logits


def workloads(pair: sd.Pair, n: int) -> dict[str, list[Text]]:
    """Streams of n texts, by name. Their prompts are held out of training."""
    held_out = collect().held_out
    prompts = [pair.tokenizer(text)["input_ids"] for text in sd.held_out_prompts().values()]
    code, prose = repetitive_code(pair, held_out), docstrings(pair, held_out)

    def texts(source: list[list[int]], temperature: float, garbled: bool = False) -> list[Text]:
        every = [source[i % len(source)] for i in range(n)]
        return [Text(tuple(ids), sd.Sampling(temperature), garbled) for ids in every]

    easy, hard, usual = texts(code, 0.0), texts(prose, 1.0), texts(prompts, 0.8)
    useless = texts(prompts, 0.8, garbled=True)
    kinds = easy, hard, useless
    return {
        "easy code": easy,
        "hard prose": hard,
        "temperature 0": texts(prompts, 0.0),
        "temperature 0.8": usual,
        "temperature 1.2": texts(prompts, 1.2),
        "draft turns bad": [*usual[: n // 2], *useless[n // 2 :]],
        MIXED: [kinds[i % 3][i] for i in range(n)],
        USELESS: useless,
    }


def repetitive_code(pair: sd.Pair, held_out: tuple[Document, ...]) -> list[list[int]]:
    """The most repetitive piece of each held-out file, the most repetitive first."""
    pieces = []
    for document in held_out:
        ids = pair.tokenizer(document.text, verbose=False)["input_ids"]
        cuts = [ids[i : i + PROMPT] for i in range(0, len(ids) - PROMPT + 1, PROMPT // 2)]
        if cuts:
            pieces.append(max(cuts, key=lambda cut: repeated_share(cut, 4)))
    return sorted(pieces, key=lambda cut: -repeated_share(cut, 4))[:16]


def docstrings(pair: sd.Pair, held_out: tuple[Document, ...]) -> list[list[int]]:
    """Beginnings of long English docstrings of held-out files, those with the largest share of letters first."""
    pieces = []
    for document in held_out:
        for node in ast.walk(ast.parse(document.text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                ids = pair.tokenizer(f'"""{text}', verbose=False)["input_ids"][: PROMPT // 2]
                if len(ids) == PROMPT // 2 and ">>>" not in pair.tokenizer.decode(ids):
                    pieces.append((sum(c.isalpha() or c == " " for c in text) / len(text), ids))
    return [ids for _, ids in sorted(pieces, key=lambda pair: -pair[0])][:16]
