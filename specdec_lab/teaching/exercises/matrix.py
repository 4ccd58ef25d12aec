"""docs/exercises.md: every exercise with the wrong answers that it recognizes, and their diagnoses.

python -m specdec_lab.teaching.exercises.matrix > docs/exercises.md
"""

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import Exercise
from specdec_lab.teaching.exercises.judging import judge

INTRODUCTION = """# Exercises and the mistakes they recognize

<!-- Written by `python -m specdec_lab.teaching.exercises.matrix > docs/exercises.md`. Do not edit. -->

Every exercise asks for a function whose results can be compared. Where the function needs random numbers, their source
is an argument, so the check can run every outcome. A mistake is recognized by the values that the function returns.

Each row below was made by running the check on a wrong answer. It shows the name of the mistake, the diagnosis, the
smallest case that fails, and the text that the learner reads."""


def page() -> str:
    """The page as Markdown. Runs the check of every exercise on every known wrong answer."""
    return "\n\n".join([INTRODUCTION, *(_section(exercise) for exercise in EXERCISES.values())]) + "\n"


def _section(exercise: Exercise) -> str:
    rows = ["| wrong answer | diagnosis | smallest case | text |", "|---|---|---|---|"]
    for mistake in exercise.misconceptions:
        verdict = judge(exercise, mistake.wrong)
        cells = mistake.name, f"{verdict.outcome}: {verdict.diagnosis}", verdict.case, verdict.headline
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = f"## {exercise.title}\n\n`{exercise.function}`, {exercise.minutes} minutes, {len(exercise.hints)} hints."
    return head + "\n\n" + "\n".join(rows)


if __name__ == "__main__":
    print(page(), end="")
