"""Wrong versions that only lose speed. The text keeps its distribution, so no test of the text can catch them."""

from specdec_lab.equivalence.mutation import Mutant

_FEED = "tokens = torch.tensor([self._known(s[-n:]) for s in sequences])"

SPEED = (
    Mutant(
        name="draft-cache-lacks-last",
        title="The draft never reads the last accepted token",
        what="When all drafts were accepted, feeds the newest token twice instead of the one before it and then it.",
        seen="vllm-project/vllm, fixed in #9730; came with #5765, which answered #4212",
        effect="speed",
        output="Acceptance falls with every fully accepted round, for k > 1; the text stays right.",
        caught_by="self-draft",
        where="drafting.ModelDrafter._catch_up",
        right=_FEED,
        wrong=_FEED.replace("s[-n:]", "s[-1:] * n"),
    ),
    Mutant(
        name="draft-rewound-too-far",
        title="The draft's cache is rewound two tokens too far",
        what="Removes two tokens more than were rejected, and goes on as if they were still there.",
        seen="lablup/mlxcel #994, fixed in #1002; there every rejection loses two more",
        effect="speed",
        output="The draft continues a text that lacks two tokens; acceptance falls, the text stays right.",
        caught_by="cache",
        where="drafting.ModelDrafter._catch_up",
        right="self.model.rewind([len(s) - n for s in sequences])",
        wrong="self.model.rewind([max(0, len(s) - n - 2) for s in sequences])",
    ),
    Mutant(
        name="head-reads-other-row",
        title="A head reads the features of the row before",
        what="Takes the target's hidden states of the previous row of the batch.",
        seen="vllm-project/vllm #7505, fixed in #7508 (hidden states in another order than the sequences of the batch)",
        effect="speed",
        output="A batch of one is right. In larger ones the head drafts for another text, and acceptance collapses.",
        caught_by="features",
        where="beyond.heads.features_before",
        right="rows = torch.arange(batch, device=positions.device)[:, None]",
        wrong="rows = torch.arange(batch, device=positions.device).roll(1)[:, None]",
    ),
    Mutant(
        name="draft-keeps-rejected",
        title="The draft never forgets the rejected token",
        what="Rewinds the draft by one token too few, so that a rejected token stays in its cache.",
        seen="by reasoning; vllm-project/vllm #14649 is similar",
        effect="speed",
        output="The draft continues a text that does not exist; acceptance falls.",
        caught_by="cache",
        where="drafting.ModelDrafter._catch_up",
        right="self.model.rewind([len(s) - n for s in sequences])",
        wrong="""kept = zip(self._cached, sequences, strict=True)
self.model.rewind([len(s) - n + (cached > len(s) - n) for cached, s in kept])""",
    ),
    Mutant(
        name="padding-in-draft-cache",
        title="Padding in the draft's cache",
        what="In a ragged batch, rows that need fewer tokens than others are padded with token 0, which is not masked.",
        seen="vllm-project/vllm #26498, fixed in #29845: 3.25 tokens per round instead of 3.40",
        effect="speed",
        output="Acceptance falls in batches whose rows accept different numbers of tokens.",
        caught_by="cache",
        where="drafting.ModelDrafter._catch_up",
        right=_FEED,
        wrong="""fresh = [self._known(s[max(v, len(s) - n) :]) for s, v in zip(sequences, valid, strict=True)]
tokens = torch.tensor([[0] * (n - len(f)) + f for f in fresh])""",
    ),
    Mutant(
        name="draft-at-temperature-1",
        title="The draft is silently at temperature 1",
        what="The draft samples without temperature, top-k and top-p, and reports that distribution as q.",
        seen="huggingface/transformers #40976, since #40657",
        effect="speed",
        output="Acceptance is not Σ min(p, q) at this temperature. With a good draft it is lower.",
        caught_by="acceptance",
        where="drafting.ModelDrafter.propose",
        right="q = sampling.probabilities(self.model.extend(tokens)[:, -1])",
        wrong="q = self.model.extend(tokens)[:, -1].softmax(-1)",
    ),
    Mutant(
        name="q-taken-for-certain",
        title="No q: sampled tokens count as certain",
        what="Samples the drafted tokens but reports no q, so that each counts as a point mass.",
        seen="vllm-project/vllm #40149, fixed in #40269 (draft_probs=None in probabilistic mode)",
        effect="speed",
        output="Σ p·q instead of Σ min(p, q) is accepted. The text stays right: given the draft, it is a point mass.",
        caught_by="acceptance",
        where="drafting.ModelDrafter.propose",
        right="return Draft(torch.stack(drafted, 1), torch.stack(distributions, 1), lengths)",
        wrong="return Draft(torch.stack(drafted, 1), None, lengths)",
    ),
    Mutant(
        name="exact-match-only",
        title="Accepts only what the target itself sampled",
        what="Samples the target's own token everywhere, and accepts a drafted token only where it is the same.",
        seen="vllm-project/vllm #35461, where it was the default ('strict rejection sampling')",
        effect="speed",
        output="Σ p·q instead of Σ min(p, q) is accepted; the text stays right.",
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
        what="A round whose drafts are all accepted emits those and nothing more.",
        seen="vllm-project/vllm #4212 ('Re-enable bonus tokens')",
        effect="speed",
        output="At most k tokens in a round instead of k + 1; the text stays right.",
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
        what="Drafts a default of 2 tokens, whatever was asked for.",
        seen="huggingface/transformers #40739 (num_assistant_tokens does not reach the assistant)",
        effect="speed",
        output="The text stays right; setting k has no effect.",
        caught_by="k",
        where="decoding.draft_length",
        right="k, largest = controller.next_k(), controller.max_k",
        wrong="k, largest = min(2, controller.max_k), controller.max_k",
    ),
)
"""Those that keep the distribution."""
