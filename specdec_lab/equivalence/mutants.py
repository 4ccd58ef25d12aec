"""The museum of wrong versions: bugs of public engines, and likely mistakes, each as a small edit of our own code.

    with mutant("residual-is-target").installed():
        ...  # the whole package now replaces rejected tokens wrongly

`museum` shows which tests catch them.
"""

from specdec_lab.equivalence.mutants_block import BLOCK
from specdec_lab.equivalence.mutants_loop import LOOP
from specdec_lab.equivalence.mutants_randomness import RANDOMNESS
from specdec_lab.equivalence.mutants_rule import RULE
from specdec_lab.equivalence.mutants_speed import SPEED
from specdec_lab.equivalence.mutants_trees import TREES
from specdec_lab.equivalence.mutation import Mutant
from specdec_ref.errors import SpecdecError

__all__ = ["MUTANTS", "Mutant", "mutant"]

MUTANTS: tuple[Mutant, ...] = (*RULE, *BLOCK, *LOOP, *TREES, *RANDOMNESS, *SPEED)
"""All of them: first those that change the distribution, then those that only lose speed."""


def mutant(name: str) -> Mutant:
    """The wrong version of that name. Raises SpecdecError."""
    by_name = next((m for m in MUTANTS if m.name == name), None)
    if by_name is None:
        raise SpecdecError(f"name={name!r:.80}: takes one of {', '.join(m.name for m in MUTANTS)}")
    return by_name
