"""docs/exercises.md: every exercise with the wrong answers that it recognizes, and their diagnoses.

python -m specdec_lab.teaching.exercises.matrix > docs/exercises.md
"""

from specdec_lab.teaching.exercises.catalogue import EXERCISES
from specdec_lab.teaching.exercises.exercise import Exercise
from specdec_lab.teaching.exercises.judging import judge
from specdec_ref.errors import SpecdecError

INTRODUCTION = """# Exercises and the mistakes they recognize

<!-- Written by `python -m specdec_lab.teaching.exercises.matrix > docs/exercises.md`. Do not edit. -->

Every exercise asks for a function whose results can be compared. Where the function needs random numbers, their source
is an argument, so the check can run every outcome. A mistake is recognized by the values that the function returns.

Each row below was made by running the check on a wrong answer, and every one of them was recognized. The row shows the
name of the mistake, the smallest case that fails, and the text that the learner reads."""


def page() -> str:
    """The page as Markdown. Runs the check of every exercise on every known wrong answer.

    Raises:
        SpecdecError: a wrong answer got another diagnosis than its own.
    """
    return "\n\n".join([INTRODUCTION, *(_section(exercise) for exercise in EXERCISES.values())]) + "\n"


def _section(exercise: Exercise) -> str:
    rows = ["| mistake | smallest failing case | what the learner reads |", "|---|---|---|"]
    for mistake in exercise.misconceptions:
        verdict = judge(exercise, mistake.wrong)
        if verdict.diagnosis != mistake.name:
            raise SpecdecError(f"{exercise.function}: {mistake.name} was diagnosed as {verdict.diagnosis or 'nothing'}")
        cells = mistake.name, verdict.case, verdict.headline
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = f"## {exercise.title}\n\n`{exercise.function}`, {exercise.minutes} minutes, {len(exercise.hints)} hints."
    return head + "\n\n" + "\n".join(rows)


if __name__ == "__main__":
    print(page(), end="")
