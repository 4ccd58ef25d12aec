"""docs/exercises.md: every exercise with the wrong answers that it knows, and what each is told.

python -m specdec_lab.teaching.exercises.matrix > docs/exercises.md
"""

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import Exercise
from specdec_lab.teaching.exercises.judging import judge

INTRODUCTION = """# Exercises, and the mistakes they know

<!-- Written by `python -m specdec_lab.teaching.exercises.matrix > docs/exercises.md`. Do not edit. -->

Every exercise is a function whose results can be compared; what chance decides is handed in, so that a check plays
every outcome. A mistake is recognized by what it computes. Each row below was put to its check when this page was
written: the wrong answer, the diagnosis that it ended in, the smallest case, and what the learner reads."""


def page() -> str:
    """The page. Every wrong answer is judged anew."""
    return "\n\n".join([INTRODUCTION, *(_section(exercise) for exercise in EXERCISES.values())]) + "\n"


def _section(exercise: Exercise) -> str:
    rows = ["| wrong answer | diagnosis | smallest case | what it says |", "|---|---|---|---|"]
    for mistake in exercise.misconceptions:
        verdict = judge(exercise, mistake.wrong)
        cells = mistake.name, f"{verdict.outcome}: {verdict.diagnosis}", verdict.case, verdict.headline
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = f"## {exercise.title}\n\n`{exercise.function}`, {exercise.minutes} minutes, {len(exercise.hints)} hints."
    return head + "\n\n" + "\n".join(rows)


if __name__ == "__main__":
    print(page(), end="")
