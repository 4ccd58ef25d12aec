"""Wrong versions that only lose speed. The output distribution stays exact, so no test of the output can catch them."""

from specdec_lab.equivalence.mutation import Mutant

_FEED = "tokens = torch.tensor([self._known(s[-n:]) for s in sequences])"

SPEED = (
    Mutant(
        name="draft-cache-lacks-last",
        title="The draft never reads the last accepted token",
        what="After a fully accepted round, feeds the newest token twice instead of the last two tokens.",
        seen="vllm-project/vllm: introduced by #5765 (for issue #4212), fixed in #9730",
        effect="speed",
        output="Acceptance falls with every fully accepted round. The output distribution stays exact.",
        caught_by="self-draft",
        where="drafting.ModelDrafter._catch_up",
        right=_FEED,
        wrong=_FEED.replace("s[-n:]", "s[-1:] * n"),
    ),
    Mutant(
        name="draft-rewound-too-far",
        title="The draft's cache is rewound two tokens too far",
        what=(
            "Removes two more tokens from the draft's cache than were rejected, and continues as if they were still "
            "there."
        ),
        seen="lablup/mlxcel #994, fixed in #1002; there, every rejection removes two more tokens",
        effect="speed",
        output=(
            "The draft continues a text that lacks two tokens, so acceptance falls. The output distribution stays "
            "exact."
        ),
        caught_by="cache",
        where="drafting.ModelDrafter._catch_up",
        right="self.model.rewind([len(s) - n for s in sequences])",
        wrong="self.model.rewind([max(0, len(s) - n - 2) for s in sequences])",
    ),
    Mutant(
        name="head-reads-other-row",
        title="A head reads the features of the previous row",
        what="Gives the head the target's hidden states from the previous row of the batch.",
        seen="vllm-project/vllm #7505, fixed in #7508 (hidden states in another order than the sequences of the batch)",
        effect="speed",
        output="A batch of one is right. In larger batches, the head drafts for another text and acceptance collapses.",
        caught_by="features",
        where="beyond.heads.features_before",
        right="rows = torch.arange(batch, device=positions.device)[:, None]",
        wrong="rows = torch.arange(batch, device=positions.device).roll(1)[:, None]",
    ),
    Mutant(
        name="draft-keeps-rejected",
        title="A rejected token stays in the draft's cache",
        what="Rewinds the draft's cache by one token too few, so a rejected token stays in it.",
        seen="by reasoning; vllm-project/vllm #14649 is similar",
        effect="speed",
        output=(
            "The draft continues a text that contains a rejected token, so acceptance falls. The output distribution "
            "stays exact."
        ),
        caught_by="cache",
        where="drafting.ModelDrafter._catch_up",
        right="self.model.rewind([len(s) - n for s in sequences])",
        wrong="""kept = zip(self._cached, sequences, strict=True)
self.model.rewind([len(s) - n + (cached > len(s) - n) for cached, s in kept])""",
    ),
    Mutant(
        name="padding-in-draft-cache",
        title="Padding in the draft's cache",
        what=(
            "In a ragged batch, pads rows that need fewer tokens than others with token 0 and does not mask the "
            "padding."
        ),
        seen="vllm-project/vllm #26498, fixed in #29845: 3.25 tokens per round instead of 3.40",
        effect="speed",
        output=(
            "Acceptance falls in batches whose rows accept different numbers of tokens. The output distribution stays "
            "exact."
        ),
        caught_by="cache",
        where="drafting.ModelDrafter._catch_up",
        right=_FEED,
        wrong="""fresh = [self._known(s[max(v, len(s) - n) :]) for s, v in zip(sequences, valid, strict=True)]
tokens = torch.tensor([[0] * (n - len(f)) + f for f in fresh])""",
    ),
    Mutant(
        name="draft-at-temperature-1",
        title="The draft always samples at temperature 1",
        what="Samples drafted tokens without temperature, top-k and top-p, and reports this distribution as q.",
        seen="huggingface/transformers #40976, since #40657",
        effect="speed",
        output="The acceptance rate is not Σ min(p, q) at the requested temperature. With a good draft it is lower.",
        caught_by="acceptance",
        where="drafting.ModelDrafter.propose",
        right="q = sampling.probabilities(self.model.extend(tokens)[:, -1])",
        wrong="q = self.model.extend(tokens)[:, -1].softmax(-1)",
    ),
    Mutant(
        name="q-taken-for-certain",
        title="Sampled tokens reported without q",
        what="Samples the drafted tokens but reports no q, so each token is treated as a point mass.",
        seen="vllm-project/vllm #40149, fixed in #40269 (draft_probs=None in probabilistic mode)",
        effect="speed",
        output=(
            "The acceptance rate is Σ p·q instead of Σ min(p, q). The output distribution stays exact, because a "
            "point mass at the sampled token is a valid q."
        ),
        caught_by="acceptance",
        where="drafting.ModelDrafter.propose",
        right="return Draft(torch.stack(drafted, 1), torch.stack(distributions, 1), lengths)",
        wrong="return Draft(torch.stack(drafted, 1), None, lengths)",
    ),
    Mutant(
        name="exact-match-only",
        title="Only tokens that the target also sampled are accepted",
        what="Samples the target's own token at every position, and accepts a drafted token only if both are the same.",
        seen="vllm-project/vllm #35461, where it was the default ('strict rejection sampling')",
        effect="speed",
        output="The acceptance rate is Σ p·q instead of Σ min(p, q). The output distribution stays exact.",
        caught_by="acceptance",
        where="acceptance.verify",
        right="""keep = randomness.accept(acceptance_probability(p_drafted, q_drafted))
accepted = keep.long().cumprod(-1).sum(-1)

stop = accepted[..., None, None].expand(*accepted.shape, 1, p.shape[-1])
p_stop, q_stop = p.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)
return Verdict(accepted, randomness.draw(residual(p_stop, q_stop)))""",
        wrong="""own = randomness.draw(p)
accepted = ((own == drafted) & (q_drafted > 0)).long().cumprod(-1).sum(-1)
return Verdict(accepted, own.gather(-1, accepted[..., None]).squeeze(-1))""",
    ),
    Mutant(
        name="bonus-left-out",
        title="No bonus token",
        what="In a round whose drafted tokens are all accepted, emits only these tokens.",
        seen="vllm-project/vllm #4212 ('Re-enable bonus tokens')",
        effect="speed",
        output="A round emits at most k tokens instead of k + 1. The output distribution stays exact.",
        caught_by="tokens-per-round",
        where="decoding.speculate",
        right="emitted = row.add([*outcome.accepted, outcome.next_token], eos, context + 1)",
        wrong="""all_accepted = 0 < len(outcome.accepted) == len(outcome.drafted)
bonus = [] if all_accepted else [outcome.next_token]
emitted = row.add([*outcome.accepted, *bonus], eos, context + 1)""",
    ),
    Mutant(
        name="k-ignored",
        title="The number of drafted tokens is ignored",
        what="Drafts a default of 2 tokens, whatever number was requested.",
        seen="huggingface/transformers #40739 (num_assistant_tokens does not reach the assistant)",
        effect="speed",
        output="Setting k has no effect on the number of drafted tokens. The output distribution stays exact.",
        caught_by="k",
        where="decoding.draft_length",
        right="k, largest = controller.next_k(), controller.max_k",
        wrong="k, largest = min(2, controller.max_k), controller.max_k",
    ),
)
"""Wrong versions that do not change the output distribution."""
