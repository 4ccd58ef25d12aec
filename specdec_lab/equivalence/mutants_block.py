"""Wrong versions of block verification: mistakes in which prefixes pass and in the token after the longest one."""

from specdec_lab.equivalence.mutation import Mutant

_WHERE = "beyond.block.verify_block"

BLOCK = (
    Mutant(
        name="block-ratios-cut-alone",
        title="Block verification with every ratio clipped at 1",
        what=(
            "Clips each ratio p/q at 1 before multiplying, and accepts a prefix with this product. The residual "
            "ignores the product."
        ),
        seen="vllm-project/vllm-ascend #7807, fixed in #7808; there, the random numbers are multiplied as well",
        effect="distribution",
        output=(
            "More tokens are accepted than any exact rule can accept, and the output moves toward the draft's "
            "distribution."
        ),
        caught_by="exact",
        where=_WHERE,
        right="""weighted = weight.unsqueeze(-1) * p
surplus = (weighted - q).clamp(min=0).sum(-1)
passing = torch.where(weight < 1, surplus / (surplus + (1 - weight)), 1)""",
        wrong="""weighted, passing = p, F.pad(ratios[..., :-1].clamp(max=1), (1, 0), value=1).cumprod(-1)""",
    ),
    Mutant(
        name="block-first-failure",
        title="Block verification that stops at the first failed prefix",
        what="Stops at the first prefix that does not pass, instead of accepting the longest prefix that passes.",
        seen="vllm-project/vllm-ascend #11985, where a review asks for the `break`",
        effect="distribution",
        output="Too few tokens are accepted, and the token that follows them comes from the wrong residual.",
        caught_by="exact",
        where=_WHERE,
        right="accepted = (passes * torch.arange(passes.shape[-1], device=passes.device)).amax(-1)",
        wrong="accepted = passes.long().cumprod(-1).sum(-1) - 1",
    ),
    Mutant(
        name="block-residual-of-token",
        title="Block verification with the residual of token verification",
        what="Replaces a rejected token by a sample from max(0, p − q), without the weight of the accepted prefix.",
        seen="part of vllm-project/vllm-ascend #7807",
        effect="distribution",
        output=(
            "The first token of a round is right. Replacements after an accepted prefix with a weight below 1 are "
            "wrong."
        ),
        caught_by="exact",
        where=_WHERE,
        right="p_stop, q_stop = weighted.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)",
        wrong="p_stop, q_stop = p.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)",
    ),
    Mutant(
        name="block-q-of-one",
        title="Block verification with q = 1 for a draft without probabilities",
        what=(
            "For a deterministic draft, sets q to 1 for every token of the vocabulary instead of only the drafted "
            "token."
        ),
        seen="vllm-project/vllm-ascend #7603 and #7839, which switch block verification off for such drafts",
        effect="distribution",
        output=(
            "With prompt lookup, the output distribution changes and fewer tokens are accepted. With a draft model, "
            "nothing changes."
        ),
        caught_by="exact",
        where=_WHERE,
        right="surplus = (weighted - q).clamp(min=0).sum(-1)",
        wrong="""q = torch.where(q.amax(-1, keepdim=True) == 1, 1, q)
surplus = (weighted - q).clamp(min=0).sum(-1)""",
    ),
)
"""Wrong versions of `beyond.block`."""
