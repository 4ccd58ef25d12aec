"""All steps of `specdec train`: corpus, tokenizer, target, drafts, the folder of the pair, measurements, model card.

Every step writes its result to the work folder, and an interrupted run continues from there.
"""

import ast
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from specdec_lab.training.corpus import Corpus, Document, collect
from specdec_lab.training.distillation import Losses, losses_from_target, losses_from_text
from specdec_lab.training.evaluation import compare, excerpt, held_out_loss
from specdec_lab.training.fitting import Tick, TrainingPlan, Windows, fit, half_precision_pays
from specdec_lab.training.recipe import ModelShape, Recipe
from specdec_lab.training.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Training:
    """One call of `specdec train`. work: checkpoints. output: the folder that `load_pair` and transformers read."""

    recipe: Recipe
    work: Path
    output: Path
    device: torch.device
    compiled: bool = False
    stdlib: Path | None = None
    on_stage: Callable[[str], None] = lambda stage: None
    on_tick: Callable[[Tick], None] = lambda tick: None

    def run(self) -> None:
        """Make all remaining steps. After an interrupt, saves the state and raises KeyboardInterrupt."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.on_stage("reading the standard library")
        corpus = collect(self.stdlib, self.recipe.documents)
        tokenizer = self._tokenizer(corpus)
        target = self._target(corpus, tokenizer)
        models = {"target": target, **self._drafts(corpus, tokenizer, target)}
        self.on_stage("writing the pair")
        export(models, tokenizer, self.recipe, self.output)
        write_prompts(corpus, tokenizer, self.output / "prompts.json")

    def _tokenizer(self, corpus: Corpus) -> Tokenizer:
        path = self.work / "tokenizer.json"
        if not path.exists():
            self.on_stage("learning the vocabulary")
            train_tokenizer((d.text for d in corpus.library), self.recipe.vocab_size).save(str(path))
        return Tokenizer.from_file(str(path))

    def _windows(self, corpus: Corpus, tokenizer: Tokenizer) -> Windows:
        recipe = self.recipe
        return corpus_windows(corpus, tokenizer, recipe.library_share, recipe.context, recipe.seed)

    def _target(self, corpus: Corpus, tokenizer: Tokenizer) -> "PreTrainedModel":
        self.on_stage("target")
        target = build_model(self.recipe.target, self.recipe, self.recipe.seed, self.device)
        models = {"target": target}
        held_out = excerpt(corpus.held_out, self.recipe.evaluation_characters)
        losses = losses_from_text(models, half_precision_pays(self.device))

        def scores() -> dict[str, float]:
            return {"target": -held_out_loss(target, held_out, tokenizer)}

        self._fit("target", models, losses, scores, self.recipe.target_plan, self._windows(corpus, tokenizer))
        target.eval()
        return target

    def _drafts(self, corpus: Corpus, tokenizer: Tokenizer, target: "PreTrainedModel") -> "dict[str, PreTrainedModel]":
        self.on_stage("drafts")
        recipe = self.recipe

        def fresh(name: str) -> "PreTrainedModel":
            return build_model(recipe.drafts[name], recipe, recipe.seed + 1, self.device)

        distilled = {name: fresh(name) for name in recipe.drafts}
        plain = {f"{recipe.plain_of}-plain": fresh(recipe.plain_of)}
        models = distilled | plain
        held_out = excerpt(corpus.held_out, recipe.evaluation_characters)
        losses = losses_from_target(target, distilled, plain, half_precision_pays(self.device))

        def scores() -> dict[str, float]:  # a draft is as good as its acceptance
            return {name: a.acceptance for name, a in compare(target, models, held_out, tokenizer).items()}

        self._fit("drafts", models, losses, scores, recipe.drafts_plan, self._windows(corpus, tokenizer))
        return models

    def _fit(
        self,
        stage: str,
        models: "dict[str, PreTrainedModel]",
        losses: Losses,
        scores: Callable[[], dict[str, float]],
        plan: TrainingPlan,
        windows: Windows,
    ) -> None:
        best = BestWeights(self.work / f"{stage}-best.pt", models, scores)
        fit(
            models,
            losses,
            windows,
            plan,
            self.work / f"{stage}.pt",
            on_tick=self.on_tick,
            evaluate=best.look,
            evaluate_every=max(plan.steps // 8, 1),
            compiled=self.compiled,
        )
        best.restore()


class BestWeights:
    """Stores the weights of each model with the highest score of all evaluations."""

    def __init__(self, path: Path, models: Mapping[str, nn.Module], scores: Callable[[], dict[str, float]]):
        self._path, self._models, self._scores = path, models, scores

    def look(self, step: int) -> None:
        best = torch.load(self._path, weights_only=True) if self._path.exists() else {}
        for name, score in self._scores().items():
            if name not in best or score > best[name]["score"]:
                best[name] = {"score": score, "step": step, "weights": self._models[name].state_dict()}
        partial = self._path.with_suffix(".partial")
        torch.save(best, partial)
        os.replace(partial, self._path)

    def restore(self) -> None:
        if not self._path.exists():
            self.look(step=-1)
        best = torch.load(self._path, weights_only=True)
        for name, model in self._models.items():
            model.load_state_dict(best[name]["weights"])


def corpus_windows(corpus: Corpus, tokenizer: Tokenizer, library_share: float, context: int, seed: int) -> Windows:
    """Random windows of the library and its tests, of at most `context` tokens."""
    streams = [encode(corpus.library, tokenizer), encode(corpus.tests, tokenizer)]
    shares = [library_share, 1 - library_share]
    if len(streams[1]) <= context:  # some distributions of Python have no tests
        streams, shares = streams[:1], [1.0]
    return Windows(streams, shares, seed)


def build_model(shape: ModelShape, recipe: Recipe, seed: int, device: torch.device | str = "cpu") -> "PreTrainedModel":
    """A randomly initialized transformers Llama of that shape on `device` (tied embeddings, RoPE, SwiGLU)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocab_size,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    placed: PreTrainedModel = model.to(device)
    return placed


def export(models: "dict[str, PreTrainedModel]", tokenizer: Tokenizer, recipe: Recipe, output: Path) -> None:
    """One model folder each, weights in bfloat16 safetensors, readable by `AutoModelForCausalLM.from_pretrained`."""
    for name, model in models.items():
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        copy = build_model(_shape(name, recipe), recipe, seed=0)
        copy.load_state_dict(model.state_dict())
        copy.bfloat16().save_pretrained(folder)
        save_tokenizer(tokenizer, folder, recipe.context)


def _shape(name: str, recipe: Recipe) -> ModelShape:
    return recipe.target if name == "target" else recipe.drafts[name.removesuffix("-plain")]


def write_prompts(corpus: Corpus, tokenizer: Tokenizer, path: Path, tokens: int = 160) -> None:
    """One prompt from each held-out file that has a function to complete: about `tokens` of text up to its body."""
    prompts = {}
    for document in corpus.held_out:
        if named_prompt := _prompt(document, tokenizer, tokens):
            name, text = named_prompt
            prompts[f"{document.module}.{name}"] = text
    path.write_text(json.dumps(prompts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _prompt(document: Document, tokenizer: Tokenizer, tokens: int) -> tuple[str, str] | None:
    """The function with a docstring nearest to the middle of the file: its name, and the text before its body."""
    functions = [
        node
        for node in ast.walk(ast.parse(document.text))
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and node.body[0].lineno > node.lineno
    ]
    lines = document.text.splitlines(keepends=True)
    functions = [node for node in functions if node.lineno > 20]
    if not functions:
        return None
    chosen = min(functions, key=lambda node: abs(node.lineno - len(lines) // 2))
    end = chosen.body[0].lineno - 1
    start = end - 1
    while start > 0 and len(tokenizer.encode("".join(lines[start - 1 : end])).ids) <= tokens:
        start -= 1
    return chosen.name, "".join(lines[start:end]).lstrip("\n")


def encode(documents: Iterable[Document], tokenizer: Tokenizer) -> Tensor:
    """All documents as one stream of ids [N] int32, each led by END_OF_TEXT."""
    start = int(tokenizer.token_to_id(END_OF_TEXT) or 0)
    ids: list[int] = []
    for encoding in tokenizer.encode_batch([d.text for d in documents]):
        ids.append(start)
        ids.extend(encoding.ids)
    return torch.tensor(ids, dtype=torch.int32)
