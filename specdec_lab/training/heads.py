"""Training of heads on the features of a frozen target (`specdec train --head`).

The text is the corpus that the drafts were distilled on, in the same windows. So a head and a draft can be compared
after training on the same tokens, and no text has to be generated first. The target's features would fill hundreds of
gigabytes, so its forward pass runs again for each batch.

After the first token, a feature head drafts from its own output, so it has to be trained on that. Training simulates
its draft steps over a whole window at once (EAGLE-3, arXiv 2503.01840, 'training-time test').
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from specdec_lab.measurement.costs import Costs, time_steps
from specdec_lab.training.corpus import Corpus, Document, collect, collect_text
from specdec_lab.training.distillation import Losses, distillation_loss
from specdec_lab.training.evaluation import excerpt, windows
from specdec_lab.training.fitting import Tick, TrainingPlan, fit, half_precision_pays
from specdec_lab.training.run import BestWeights, corpus_windows
from specdec_ref.acceptance import acceptance_rate
from specdec_ref.beyond.heads import (
    FeatureHead,
    Head,
    HeadConfig,
    HeadDrafter,
    ParallelHead,
    ParallelHeadDrafter,
    head_config,
    save_head,
)
from specdec_ref.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LATER_STEP = 0.8
"""Weight of a draft step relative to the step before it. A step only matters if all earlier tokens were accepted."""


@dataclass(frozen=True)
class HeadRecipe:
    """Everything that determines a head's weights, except the text and the target.

    Attributes:
        plan: the schedule of the training.
        draft_steps: tokens drafted in a row during training; for a parallel head, the tokens of one pass.
        library_share: share of the windows from the library; the rest is from its tests.
        seed: seed of the weights and the windows.
        documents: read at most this many files of each group; None reads all.
        evaluation_characters: held-out text for the evaluations.
    """

    plan: TrainingPlan
    draft_steps: int
    library_share: float = 0.7
    seed: int = 0
    documents: int | None = None
    evaluation_characters: int = 50_000


# The feature head was to end with 2,000 steps on windows of 1,024 tokens. On two cores these took four times as long as
# the others, so after 894 of them it returned to windows of 256. This recipe is that of the shipped head.
HEAD_RECIPES = {
    "feature": HeadRecipe(TrainingPlan(10_000, 1024, 2e-3, ((0.8, 256), (0.0894, 1024), (0.1106, 256))), draft_steps=5),
    "parallel": HeadRecipe(TrainingPlan(2_000, 1024, 2e-3, ((1.0, 256),)), draft_steps=5),
    "tiny": HeadRecipe(
        TrainingPlan(12, 128, 5e-3, ((1.0, 32),), warmup=4), draft_steps=3, documents=6, evaluation_characters=600
    ),
}


class DraftStepKeys:
    """Replaces the KV cache in training: the keys and values of all draft steps so far, one block of T per step."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append one step's keys and values, [B, H, T, D]. Returns those of all steps, [B, H, steps · T, D]."""
        self.keys.append(keys)
        self.values.append(values)
        return torch.cat(self.keys, 2), torch.cat(self.values, 2)


def draft_mask(length: int, step: int, device: torch.device | str = "cpu") -> Tensor:
    """The attention mask of a simulated draft step.

    At position j and draft step i, the draft began after token j − i. The target's features exist up to there, so the
    position attends to the keys of step 0 up to j − i. Of each of the steps 1 … i it attends to one key, that of its
    own draft.

    Args:
        length: T, positions of the window.
        step: i; 0 is the step with the target's features everywhere.
        device: where the mask is.

    Returns:
        [1, 1, T, (i + 1) · T] bool, in the order of `DraftStepKeys`.
    """
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None]
    own_draft = [distance == step - earlier for earlier in range(1, step + 1)]
    return torch.cat([distance >= step, *own_draft], 1)[None, None]


def shifted(states: Tensor) -> Tensor:
    """The states shifted by one position, [B, T, d]; zeros at position 0."""
    return F.pad(states, (0, 0, 1, 0))[:, :-1]


def draft_logits(head: Head, features: Tensor, tokens: Tensor, steps: int) -> Iterator[Tensor]:
    """Logits of `steps` draft steps, simulated at all positions of a text.

    Args:
        head: the head.
        features: the target's, [B, T, m · d].
        tokens: [B, T].
        steps: at most the tokens of one pass, for a parallel head.

    Yields:
        For step i, [B, T − i, V]: position t scores token t + i + 1, and has drafted the i tokens before it.
    """
    length = tokens.shape[1]
    if isinstance(head, ParallelHead):
        logits = head(shifted(features), tokens)
        yield from (logits[:, : length - i, i] for i in range(steps))
        return
    positions = torch.arange(length, device=tokens.device)[None]
    keys = DraftStepKeys()
    states = head.fuse(shifted(features))
    for step in range(steps):
        hidden = head(states, tokens, positions, draft_mask(length, step, tokens.device), keys)
        yield head.logits(hidden[:, step:])
        states = shifted(hidden)


def target_pass(
    target: "PreTrainedModel", tokens: Tensor, layers: tuple[int, ...], half: bool
) -> tuple[Tensor, Tensor]:
    """The target's features [B, T, m · d] and log-probabilities [B, T, V] at every token [B, T], without gradients."""
    with torch.no_grad(), torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
        output = target(input_ids=tokens, use_cache=False, output_hidden_states=True)
    features = torch.cat([output.hidden_states[layer] for layer in layers], -1)
    return features, output.logits.float().log_softmax(-1)


def head_losses(target: "PreTrainedModel", head: Head, steps: int, half: bool) -> Losses:
    """The loss of a head: the drafts' distillation loss at every position and draft step.

    Args:
        target: the frozen target.
        head: the head to train.
        steps: draft steps. The weight of each is `LATER_STEP` times that of the step before.
        half: compute in bfloat16 where autocast allows it.

    Returns:
        A function that returns one loss, named 'head'.
    """
    weights = [LATER_STEP**step for step in range(steps)]

    def losses(tokens: Tensor, progress: Tensor) -> dict[str, Tensor]:
        text = tokens[:, :-1]
        features, log_p = target_pass(target, text, head.config.feature_layers, half)
        total = torch.zeros((), device=text.device)
        with torch.autocast(text.device.type, torch.bfloat16, enabled=half):
            all_logits = list(draft_logits(head, features, text, steps))
        for step, logits in enumerate(all_logits):
            log_q = logits.float().log_softmax(-1)
            total = total + weights[step] * distillation_loss(log_p[:, step:], log_q, progress)
        return {"head": total / sum(weights)}

    return losses


@torch.inference_mode()
def head_acceptance(
    target: "PreTrainedModel", head: Head, documents: tuple[Document, ...], tokenizer: Tokenizer, steps: int
) -> list[float]:
    """Mean Σ min(p, q) of each draft step on text, at temperature 1.

    Step i drafts token t + i + 1 after the true tokens up to t + i, from features up to t. Compare step 0 with the
    acceptance of a draft model.
    """
    was_training = head.training
    head.eval()
    context = min(head.config.context, target.config.max_position_embeddings)
    accepted = [0.0] * steps
    scored = [0] * steps
    for ids, first in windows(documents, tokenizer, context):
        text = ids[:, :-1].to(target.device)
        features, log_p = target_pass(target, text, head.config.feature_layers, half=False)
        for step, logits in enumerate(draft_logits(head, features, text, steps)):
            q = logits.float().softmax(-1)
            rates = acceptance_rate(log_p[:, step:].exp(), q)[0, max(0, first - step) :]
            accepted[step] += float(rates.sum())
            scored[step] += len(rates)
    head.train(was_training)
    return [total / max(1, n) for total, n in zip(accepted, scored, strict=True)]


@dataclass(frozen=True)
class HeadTraining:
    """One call of `specdec train --head`.

    Attributes:
        kind: 'feature' or 'parallel'.
        target: the target, which is not changed.
        tokenizer: the target's.
        recipe: how to train.
        work: folder of the checkpoints.
        output: folder of the finished head.
        compiled: use torch.compile.
        stdlib: folder of a standard library; None for that of this Python.
        text: folder of other text to train on, read by `collect_text`; None for the standard library.
        on_stage, on_tick: receive the name of each stage, and the progress.
        on_evaluation: receives the step and the acceptance of each draft step on held-out text.
    """

    kind: str
    target: "PreTrainedModel"
    tokenizer: Tokenizer
    recipe: HeadRecipe
    work: Path
    output: Path
    compiled: bool = False
    stdlib: Path | None = None
    on_stage: Callable[[str], None] = lambda stage: None
    on_tick: Callable[[Tick], None] = lambda tick: None
    on_evaluation: Callable[[int, list[float]], None] = lambda step, acceptance: None
    text: Path | None = None

    def run(self) -> dict[str, Any]:
        """Train from the last checkpoint, and write the head. Returns its facts, as in measurements.json.

        Raises:
            KeyboardInterrupt: the training was interrupted; its state is saved.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        self.on_stage("reading the standard library" if self.text is None else f"reading {self.text}")
        documents = self.recipe.documents
        corpus = collect(self.stdlib, documents) if self.text is None else collect_text(self.text, documents)
        head = self._fit(corpus)
        save_head(head, self.output)
        self.on_stage("measuring the head on held-out text")
        facts = {
            "kind": self.kind,
            "parameters": sum(p.numel() for p in head.parameters()),
            "tokens_seen": self.recipe.plan.steps * self.recipe.plan.tokens_per_step,
            "acceptance": self._acceptance(head, corpus),
        }
        (self.output / "measurements.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return facts

    def _fit(self, corpus: Corpus) -> Head:
        recipe = self.recipe
        head = new_head(self.target, self.kind, recipe)
        self.on_stage("reading the text")
        texts = corpus_windows(corpus, self.tokenizer, recipe.library_share, head.config.context, recipe.seed)
        step_now = 0

        def scores() -> dict[str, float]:
            acceptance = self._acceptance(head, corpus)
            self.on_evaluation(step_now, acceptance)
            return {"head": sum(LATER_STEP**i * rate for i, rate in enumerate(acceptance))}

        best = BestWeights(self.work / "head-best.pt", {"head": head}, scores)

        def evaluate(step: int) -> None:
            nonlocal step_now
            step_now = step
            best.look(step)

        self.on_stage("head")
        fit(
            {"head": head},
            head_losses(self.target, head, recipe.draft_steps, half_precision_pays(self.target.device)),
            texts,
            recipe.plan,
            self.work / "head.pt",
            on_tick=self.on_tick,
            evaluate=evaluate,
            evaluate_every=max(recipe.plan.steps // 10, 1),
            compiled=self.compiled,
        )
        best.restore()
        return head

    def _acceptance(self, head: Head, corpus: Corpus) -> list[float]:
        held_out = excerpt(corpus.held_out, self.recipe.evaluation_characters)
        return head_acceptance(self.target, head, held_out, self.tokenizer, self.recipe.draft_steps)


def new_head(target: "PreTrainedModel", kind: str, recipe: HeadRecipe) -> Head:
    """A head with random weights, initialized from its target (`begin_from`)."""
    config: HeadConfig = replace(head_config(target, kind), num_tokens=recipe.draft_steps)
    torch.manual_seed(recipe.seed)
    head: Head = FeatureHead(config) if kind == "feature" else ParallelHead(config)
    head = head.to(target.device)
    head.begin_from(target)
    return head


def head_costs(
    drafter: HeadDrafter | ParallelHeadDrafter, *, k: int = 4, context: int = 200, repeats: int = 31, warm_up: int = 14
) -> Costs:
    """Time a head's draft steps against steps of its target, batch 1.

    Args:
        drafter: the result of `load_head`.
        k: tokens drafted at once; the time is per token.
        context: tokens in the cache.
        repeats: timed turns.
        warm_up: untimed turns before them.

    Returns:
        Medians in seconds; `c` is a drafted token's share of a target step.
    """
    target = drafter.target
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(target.vocab_size, (context,), generator=generator).tolist()
    target.start(1, context + k + 1)
    drafter.start(1, context + k + 1)
    target.prefill([text[:-1]])
    return time_steps(
        target,
        drafter,
        [text],
        scored={1, k + 1},
        drafted=k,
        sampling=Sampling(),
        turns=range(warm_up + repeats),
        warm_up=warm_up,
    )
