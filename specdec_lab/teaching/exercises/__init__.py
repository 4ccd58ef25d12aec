"""Graded exercises: `check("residual", residual)` answers at once, `picture` shows what the code did; `hint`,
`solution` and `progress` help on.

Exercises are functions whose results can be compared: everything that chance decides is handed in, so that a check can
play every outcome and no luck is involved. A mistake is recognized by what it computes: each exercise knows the wrong
versions that people write, and finds the one that gives the learner's own values.
"""

from specdec_lab.teaching.exercises.notebook import check, hint, progress, solution
from specdec_lab.teaching.exercises.pictures import picture

__all__ = ["check", "hint", "picture", "progress", "solution"]
