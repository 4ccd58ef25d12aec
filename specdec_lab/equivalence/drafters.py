"""The drafting methods by name, as `specdec equivalence --drafter` takes them."""

from pathlib import Path

from specdec_lab.measurement.methods import METHODS, with_method
from specdec_ref.beyond.heads import load_head
from specdec_ref.beyond.trees import SCHEMES, TreeDrafter
from specdec_ref.drafting import Drafter
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import Pair
from specdec_ref.models import TransformersModel

BRANCHING = 2, 2
"""Siblings on each level of a tree. With more levels a sample would not take two rounds."""

TREES = {f"tree-{scheme.replace(' ', '-')}": scheme for scheme in SCHEMES}
"""The names of the trees with a fixed shape, and their schemes."""

DRAFTERS = (*METHODS, *TREES)
"""The names that `drafter_by_name` takes, apart from the folder of a head."""


def drafter_by_name(name: str, pair: Pair) -> Drafter | None:
    """The drafter of that name; None for the pair's own draft model.

    Args:
        name: one of `DRAFTERS`, or the folder of a head.
        pair: gives the models.

    Raises:
        SpecdecError: an unknown name, a tree without a draft model, or a head that cannot be loaded.
    """
    if name == "draft":
        return None
    if name in METHODS:
        return with_method(pair, name).drafter
    if name in TREES:
        return TreeDrafter(draft_model(name, pair), BRANCHING, TREES[name])
    if not Path(name).is_dir():
        raise SpecdecError(f"drafter={name!r:.80}: takes one of {', '.join(DRAFTERS)}, or the folder of a head")
    return load_head(pair.target, name)


def draft_model(name: str, pair: Pair) -> TransformersModel:
    """The pair's draft model. Raises SpecdecError if the pair has none."""
    if pair.draft is None:
        raise SpecdecError(f"drafter={name!r}: needs a draft model, and this pair has none")
    return TransformersModel(pair.draft)
