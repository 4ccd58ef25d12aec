"""The museum's test of heads: each draft is compared with that of a head that reads the whole text again.

A head that reads wrong features still reports the distribution that it sampled from, so the output stays right and
only acceptance falls. No test of the output can see that.
"""

import torch
from torch import Tensor

from specdec_lab.equivalence.museum_checks import PROMPTS, TOLERANCE, Observation
from specdec_lab.equivalence.tiny import head_drafter, random_head, tiny_pair
from specdec_ref import decoding
from specdec_ref.beyond.heads import KINDS, Head, HeadDrafter, ParallelHead, ParallelHeadDrafter
from specdec_ref.control import FixedK
from specdec_ref.drafting import Draft
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import Randomness, Sampling, SeededRandomness


def heads_read_their_own_row() -> Observation:
    """In a ragged batch, both kinds of head draft as a head does that reads each text alone and from its beginning."""
    model, _ = tiny_pair()
    for kind in KINDS:
        head = random_head(model, kind)
        target = TransformersModel(model, feature_layers=head.config.feature_layers)
        compared = ComparedDrafter(head_drafter(head, target))
        rows = [decoding.Row(tuple(prompt), 8) for prompt in PROMPTS]
        for _ in decoding.speculate(target, compared, rows, FixedK(3), Sampling(), SeededRandomness(0)):
            pass
        if compared.largest > TOLERANCE:
            return Observation(True, f"{kind} head: probabilities differ by up to {compared.largest:.1g}")
    return Observation(False, f"{' and '.join(KINDS)} head: probabilities differ by less than {TOLERANCE:.0e}")


class ComparedDrafter:
    """A head's drafter that compares each reported distribution with one that is computed afresh.

    largest: the largest difference of a probability so far.
    """

    def __init__(self, drafter: HeadDrafter | ParallelHeadDrafter):
        self.drafter = drafter
        self.largest = 0.0

    def start(self, batch: int, capacity: int) -> None:
        self.drafter.start(batch, capacity)

    def keep(self, rows: list[int]) -> None:
        self.drafter.keep(rows)

    def propose(self, sequences: list[list[int]], k: int, sampling: Sampling, randomness: Randomness) -> Draft:
        draft = self.drafter.propose(sequences, k, sampling, randomness)
        if draft.probabilities is None:  # k = 0
            return draft
        for text, tokens, q in zip(sequences, draft.tokens.tolist(), draft.probabilities, strict=True):
            logits = fresh_draft(self.drafter.head, self.drafter.target, text, tokens)
            self.largest = max(self.largest, float((sampling.probabilities(logits) - q).abs().max()))
        return draft


@torch.inference_mode()
def fresh_draft(head: Head, target: TransformersModel, text: list[int], drafted: list[int]) -> Tensor:
    """A head's logits at each drafted position, without any cache and for this text alone.

    Args:
        head: the head.
        target: gives the model and its feature layers.
        text: the token ids before the draft.
        drafted: the k drafted ids.

    Returns:
        [k, V].
    """
    output = target.model(input_ids=torch.tensor([text]), use_cache=False, output_hidden_states=True)
    features = torch.cat([output.hidden_states[layer] for layer in target.feature_layers], -1)
    before = features.roll(1, 1)  # at each token, the features of the token before it
    before[:, 0] = 0
    if isinstance(head, ParallelHead):
        parallel: Tensor = head(before[:, -1:], torch.tensor([text[-1:]]))[0, 0, : len(drafted)]
        return parallel
    states, tokens, logits = head.fuse(before), torch.tensor([[*text, *drafted]]), []
    for _ in drafted:
        n = states.shape[1]
        causal = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
        hidden = head(states, tokens[:, :n], torch.arange(n)[None], causal)[:, -1:]
        logits.append(head.logits(hidden)[0, -1])
        states = torch.cat([states, hidden], 1)  # its own output stands for the features of the drafted token
    return torch.stack(logits)
