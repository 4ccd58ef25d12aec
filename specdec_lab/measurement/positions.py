"""How often the drafted tokens at each position of a draft are accepted."""

from collections.abc import Iterable

from specdec_ref.decoding import Round


def accepted_by_position(rounds: Iterable[Round], k: int) -> list[float]:
    """The share of examined drafted tokens that were accepted, by position in the draft.

    A token is examined where all tokens before it were accepted. Of a tree, a position is a depth.

    Args:
        rounds: of one drafter.
        k: the number of positions.

    Returns:
        k shares; NaN where no token was examined.
    """
    rounds = list(rounds)
    shares = []
    for position in range(k):
        examined = [round_ for round_ in rounds if round_.examined > position]
        accepted = sum(round_.accepted > position for round_ in examined)
        shares.append(accepted / len(examined) if examined else float("nan"))
    return shares
