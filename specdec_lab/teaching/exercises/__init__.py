"""Graded exercises. `check("residual", residual)` grades an answer at once, and `picture` shows its results. `hint`,
`solution` and `progress` help the learner.

Exercises are functions whose results can be compared. Randomness is an argument, so that a check can run every outcome
and its result does not depend on luck. Each exercise contains wrong versions that people write. A mistake is recognized
because a wrong version computes the same values as the answer.
"""

from specdec_lab.teaching.exercises.notebook import check, hint, progress, solution
from specdec_lab.teaching.exercises.pictures import picture

__all__ = ["check", "hint", "picture", "progress", "solution"]
