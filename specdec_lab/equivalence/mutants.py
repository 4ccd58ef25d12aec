"""The museum of wrong versions: bugs that public engines have had, or that the algorithm invites, each as a small edit.

    with mutant("residual-is-target").installed():
        ...  # the whole package now replaces rejected tokens wrongly

`museum` says which tests catch them.
"""

from specdec_lab.equivalence.mutants_block import BLOCK
from specdec_lab.equivalence.mutants_loop import LOOP
from specdec_lab.equivalence.mutants_rule import RULE
from specdec_lab.equivalence.mutants_speed import SPEED
from specdec_lab.equivalence.mutants_trees import TREES
from specdec_lab.equivalence.mutation import Mutant
from specdec_ref.errors import SpecdecError

__all__ = ["MUTANTS", "Mutant", "mutant"]

MUTANTS: tuple[Mutant, ...] = (*RULE, *BLOCK, *LOOP, *TREES, *SPEED)
"""All of them: first those that change the distribution, then those that only lose speed."""


def mutant(name: str) -> Mutant:
    """The wrong version of that name. Raises SpecdecError."""
    found = next((one for one in MUTANTS if one.name == name), None)
    if found is None:
        raise SpecdecError(f"name={name!r:.80}: takes one of {', '.join(one.name for one in MUTANTS)}")
    return found
