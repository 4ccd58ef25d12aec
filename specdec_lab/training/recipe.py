"""The recipe of `specdec train`: the shapes of the models and their schedules. `tiny` is a miniature."""

from dataclasses import dataclass

from specdec_lab.training.fitting import TrainingPlan


@dataclass(frozen=True)
class ModelShape:
    """A Llama-architecture model: layers, width, width of the feed-forward part, attention heads."""

    layers: int
    width: int
    inner: int
    heads: int


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, except the text.

    `drafts` are distilled from the target. The draft `plain_of` is trained a second time, on the text alone, with the
    same batches and steps. So these two drafts differ only in their training signal.
    """

    vocab_size: int
    context: int
    target: ModelShape
    target_plan: TrainingPlan
    drafts: dict[str, ModelShape]
    drafts_plan: TrainingPlan
    plain_of: str
    library_share: float = 0.7
    seed: int = 0
    documents: int | None = None  # largest number of files of the library, and of its tests
    evaluation_characters: int = 100_000  # held-out text for evaluations during training; the card uses all of it


RECIPES = {
    "full": Recipe(
        vocab_size=1024,
        context=1024,
        target=ModelShape(layers=28, width=192, inner=512, heads=3),
        target_plan=TrainingPlan(950, 8192, 3e-3, ((0.8, 256), (0.2, 1024)), restarts=(550,)),
        drafts={
            "draft-small": ModelShape(layers=2, width=192, inner=512, heads=3),
            "draft-medium": ModelShape(layers=3, width=192, inner=512, heads=3),
            "draft-large": ModelShape(layers=4, width=256, inner=704, heads=4),
        },
        drafts_plan=TrainingPlan(1250, 4096, 3e-3, ((0.8, 256), (0.2, 1024))),
        plain_of="draft-small",
    ),
    "tiny": Recipe(
        vocab_size=320,
        context=128,
        target=ModelShape(layers=2, width=64, inner=128, heads=2),
        target_plan=TrainingPlan(30, 1024, 5e-3, ((1.0, 64),), warmup=5),
        drafts={
            "draft-small": ModelShape(layers=1, width=32, inner=64, heads=1),
            "draft-medium": ModelShape(layers=1, width=48, inner=96, heads=1),
            "draft-large": ModelShape(layers=2, width=48, inner=96, heads=1),
        },
        drafts_plan=TrainingPlan(30, 1024, 5e-3, ((1.0, 64),), warmup=5),
        plain_of="draft-small",
        documents=60,
        evaluation_characters=4_000,
    ),
}
