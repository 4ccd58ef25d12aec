"""Two rules of thumb for k that are widely copied, unchanged, as baselines."""

from collections import deque

from specdec_ref.decoding import Round
from specdec_ref.errors import SpecdecError, is_number, is_whole


class AdaptiveSpeculation:
    """A common heuristic: raise k while accepted / proposed is 0.1 above a target, lower it while it is 0.1 below.

    It averages accepted / proposed over the last 100 rounds, from the tenth on. This ratio depends on k itself: at the
    same α, accepted / proposed = (α + … + αᵏ)/k falls as k grows (α = 0.8: 0.72 at k = 2, 0.42 at k = 8). So the
    heuristic finds the k at which 70 % of the proposed tokens are accepted, whatever a draft step costs, and it never
    chooses 0. Rows of a batch are pooled.

    Args:
        min_k, max_k: the smallest and the largest k.
        target_acceptance: accepted / proposed to aim at.

    Raises:
        SpecdecError: an argument is out of range.
    """

    def __init__(self, min_k: int = 2, max_k: int = 8, target_acceptance: float = 0.7):
        if not (is_whole(min_k) and is_whole(max_k) and 1 <= min_k <= max_k):
            raise SpecdecError(f"min_k={min_k!r:.80}, max_k={max_k!r:.80}: take whole numbers, 1 ≤ min_k ≤ max_k")
        if not is_number(target_acceptance) or not 0 <= target_acceptance <= 1:
            raise SpecdecError(f"target_acceptance={target_acceptance!r:.80}: takes a share, 0 … 1")
        self.min_k, self.max_k, self.target_acceptance = min_k, max_k, target_acceptance
        self.current_k = (min_k + max_k) // 2
        self.recent_acceptances: deque[float] = deque(maxlen=100)

    def update(self, num_accepted: int, num_proposed: int) -> None:
        """Adjust k after a round that proposed at least one token."""
        if not (is_whole(num_accepted) and is_whole(num_proposed) and 0 <= num_accepted <= num_proposed > 0):
            raise SpecdecError(f"{num_accepted=!r:.40}, {num_proposed=!r:.40}: take 0 ≤ accepted ≤ proposed > 0")
        self.recent_acceptances.append(num_accepted / num_proposed)
        average = sum(self.recent_acceptances) / len(self.recent_acceptances)
        if len(self.recent_acceptances) >= 10 and average > self.target_acceptance + 0.1:
            self.current_k = min(self.max_k, self.current_k + 1)
        elif len(self.recent_acceptances) >= 10 and average < self.target_acceptance - 0.1:
            self.current_k = max(self.min_k, self.current_k - 1)

    def get_current_k(self) -> int:
        """Tokens to draft in the next round."""
        return self.current_k

    next_k = get_current_k

    def observe(self, rounds: list[Round]) -> None:
        if proposed := sum(r.depth for r in rounds):  # the last round of a text may have no room for a draft
            self.update(sum(r.accepted for r in rounds), proposed)


def get_optimal_speculation_config(batch_size: int, sequence_length: float) -> dict[str, int | bool | str]:
    """Four common rules of thumb. Returns num_speculative_tokens, enable and a reason in words.

    The rules do not fit together: one sequence of 2,048 to 4,096 tokens counts as a 'Medium batch'.

    Args:
        batch_size: sequences decoded together, ≥ 1.
        sequence_length: tokens of each, ≥ 0.

    Raises:
        SpecdecError: a size is out of range.
    """
    if not is_whole(batch_size) or batch_size < 1:
        raise SpecdecError(f"batch_size={batch_size!r:.80}: takes a whole number ≥ 1")
    if not is_number(sequence_length) or not 0 <= sequence_length < float("inf"):
        raise SpecdecError(f"sequence_length={sequence_length!r:.80}: takes a number of tokens ≥ 0")
    if batch_size == 1 and sequence_length < 512:
        k, reason = 8, "Low batch, short context - maximum speculation benefit"
    elif batch_size <= 4 and sequence_length < 2048:
        k, reason = 4, "Small batch - speculation still beneficial"
    elif batch_size > 8 or sequence_length > 4096:
        k, reason = 0, "Large batch/context - batch processing more efficient"
    else:
        k, reason = 2, "Medium batch - conservative speculation"
    return {"num_speculative_tokens": k, "enable": k > 0, "reason": reason}
