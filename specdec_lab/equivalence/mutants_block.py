"""Wrong versions of block verification: which prefixes pass, and what follows the longest one."""

from specdec_lab.equivalence.mutation import Mutant

_WHERE = "beyond.block.verify_block"

BLOCK = (
    Mutant(
        name="block-ratios-cut-alone",
        title="Block verification with every ratio cut at 1",
        what="Multiplies min(1, p/q) of each token, accepts a prefix with that product, ignores it in the residual.",
        seen="vllm-project/vllm-ascend #7807, fixed in #7808; there the random numbers are multiplied as well",
        effect="distribution",
        output="More tokens are accepted than any exact rule can accept, and the text drifts towards the draft's.",
        caught_by="exact",
        where=_WHERE,
        right="""weighted = weight.unsqueeze(-1) * p
surplus = (weighted - q).clamp(min=0).sum(-1)
passing = torch.where(weight < 1, surplus / (surplus + (1 - weight)), 1)""",
        wrong="""weighted, passing = p, F.pad(ratios[..., :-1].clamp(max=1), (1, 0), value=1).cumprod(-1)""",
    ),
    Mutant(
        name="block-first-failure",
        title="Block verification that stops at the first failure",
        what="Accepts the prefixes before the first one that does not pass, instead of the longest one that passes.",
        seen="vllm-project/vllm-ascend #11985, where a review asks for the break",
        effect="distribution",
        output="Too few tokens are accepted, and those that replace them come from the wrong residual.",
        caught_by="exact",
        where=_WHERE,
        right="accepted = (passes * torch.arange(passes.shape[-1], device=passes.device)).amax(-1)",
        wrong="accepted = passes.long().cumprod(-1).sum(-1) - 1",
    ),
    Mutant(
        name="block-residual-of-token",
        title="Block verification with the residual of token verification",
        what="Replaces a rejected token by one from max(0, p − q), without the weight of the accepted prefix.",
        seen="part of vllm-project/vllm-ascend #7807",
        effect="distribution",
        output="The first token of a round is right, replacements after an unlikely prefix are not.",
        caught_by="exact",
        where=_WHERE,
        right="p_stop, q_stop = weighted.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)",
        wrong="p_stop, q_stop = p.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)",
    ),
    Mutant(
        name="block-q-of-one",
        title="Block verification with q = 1 for a draft without probabilities",
        what="For a deterministic draft, sets q to 1 for every token instead of for the drafted one alone.",
        seen="vllm-project/vllm-ascend #7603 and #7839, which switch block verification off for such drafts",
        effect="distribution",
        output="With prompt lookup, other probabilities and fewer accepted tokens; with a draft model, nothing.",
        caught_by="exact",
        where=_WHERE,
        right="surplus = (weighted - q).clamp(min=0).sum(-1)",
        wrong="""q = torch.where(q.amax(-1, keepdim=True) == 1, 1, q)
surplus = (weighted - q).clamp(min=0).sum(-1)""",
    ),
)
"""Those in `beyond.block`."""
