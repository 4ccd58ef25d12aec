"""Recorded workloads: the acceptance probability at each position of one text, and rounds of all drafts."""

RECORDED = (
    60, 61, 94, 100, 33, 25, 86, 58, 54, 31, 97, 65, 59, 52, 44, 28, 25, 74, 62, 53, 79, 54, 48, 33, 59, 64, 67, 75,
    72, 76, 58, 66, 79, 75, 63, 80, 58, 82, 41, 26, 58, 41, 23, 48, 80, 44, 86, 37, 59, 56, 50, 32, 24, 79, 70, 52,
    57, 39, 69, 100, 81, 60, 72, 97, 66, 74, 73, 39, 58, 58, 72, 55, 80, 72, 81, 50, 96, 66, 66, 97, 53, 31, 74, 98,
    68, 61, 48, 61, 78, 75, 88, 71, 66, 81, 86, 73, 75, 61, 78, 83, 80, 73, 81, 74, 82, 34, 54, 85, 85, 82, 49, 65,
    28, 57, 34, 62, 78, 62, 71, 59, 64, 77, 66, 95, 63, 65, 74, 73, 76, 100, 99, 79, 83, 67, 35, 49, 58, 45, 44, 72,
    73, 81, 93, 81, 84, 97, 83, 69, 73, 71, 100, 80, 81, 78, 79, 59, 57, 75, 65, 78,
)  # fmt: skip
"""Σ min(p, q) in percent at 160 positions, from the target and the medium draft on the text that
`generate_speculative(pair, prompt, k=4, max_new_tokens=160, seed=0)` writes after the held-out prompt
calendar.formatyear (the pair that ships, float32 on a CPU, 2026-11-25)."""

KEPT: dict[tuple[str, int], tuple[int, ...]] = {
    ("small", 2): (162, 70, 154),
    ("small", 4): (113, 60, 49, 30, 50),
    ("small", 8): (79, 38, 37, 23, 19, 11, 2, 3, 9),
    ("medium", 2): (109, 64, 175),
    ("medium", 4): (102, 77, 37, 28, 55),
    ("medium", 8): (73, 56, 43, 14, 12, 9, 9, 7, 16),
    ("large", 2): (68, 47, 200),
    ("large", 4): (57, 45, 35, 29, 77),
    ("large", 8): (45, 42, 37, 15, 18, 7, 10, 8, 14),
}
"""Draft and k → rounds in which 0, 1, … k tokens were accepted: the drafts that ship, 128 tokens after each of the
first six held-out prompts, seed 0, float32 on a CPU, 2026-11-25. Shorter rounds at the end of a text are left out."""


def recorded_rounds(draft: str, k: int) -> list[tuple[int, int]]:
    """(drafted, accepted) of each recorded round with this draft and k."""
    return [(k, accepted) for accepted, rounds in enumerate(KEPT[draft, k]) for _ in range(rounds)]
