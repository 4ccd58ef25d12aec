"""Wrong versions of the verification rule: which tokens are accepted, and which token replaces a rejected one."""

from specdec_lab.equivalence.mutation import Mutant

_KEEP = "keep = randomness.accept(acceptance_probability(p_drafted, q_drafted))"
_RATIO = "return torch.where(q > 0, (p / q).clamp(max=1), 0)"
_NORMALISED = "return torch.where(mass > 0, rest / mass, p)"

RULE = (
    Mutant(
        name="ratio-squared",
        title="p/q squared",
        what="Accepts with probability (p/q)² instead of p/q.",
        seen="by reasoning; transformers' target-distribution test does not catch it",
        effect="distribution",
        output="Tokens that the draft overrates come out too rarely, and tokens that it underrates too often.",
        caught_by="exact",
        where="acceptance.acceptance_probability",
        right=_RATIO,
        wrong="return torch.where(q > 0, ((p / q) ** 2).clamp(max=1), 0)",
    ),
    Mutant(
        name="ratio-inverted",
        title="q/p instead of p/q",
        what=(
            "Accepts with probability q/p. The letters are easy to swap, because the two papers use them in opposite "
            "ways."
        ),
        seen=(
            "by reasoning: Chen et al. call the target q and the draft p; Leviathan et al. use the letters the other "
            "way round"
        ),
        effect="distribution",
        output="Tokens that the draft overrates are always accepted.",
        caught_by="exact",
        where="acceptance.acceptance_probability",
        right=_RATIO,
        wrong="return torch.where(q > 0, (q / p).clamp(max=1), 0)",
    ),
    Mutant(
        name="ratio-floor",
        title="An acceptance probability of at least 2 %",
        what="Raises every acceptance probability below 0.02 to 0.02.",
        seen="by reasoning; vLLM's distance test never catches a 2 % leak of q",
        effect="distribution",
        output="A small part of the draft's distribution enters the output. Tokens that the target excludes appear.",
        caught_by="exact",
        where="acceptance.acceptance_probability",
        right=_RATIO,
        wrong="return torch.where(q > 0, (p / q).clamp(0.02, 1), 0)",
    ),
    Mutant(
        name="ratio-with-epsilon",
        title="An epsilon against division by zero",
        what="Accepts with probability p/(q + 1e-5), although q is never 0 for a token that was sampled from q.",
        seen="by reasoning",
        effect="distribution",
        output=(
            "The error is too small for a sampling experiment of reasonable size. Only exact calculations detect it."
        ),
        caught_by="exact",
        where="acceptance.acceptance_probability",
        right=_RATIO,
        wrong="return torch.where(q > 0, (p / (q + 1e-5)).clamp(max=1), 0)",
    ),
    Mutant(
        name="row-off-by-one",
        title="A drafted token compared with the wrong row of the target",
        what=(
            "Compares each drafted token with the target's distribution for the next position instead of its own "
            "position."
        ),
        seen="huggingface/transformers #28166 ('Incorrect indexing operation')",
        effect="distribution",
        output=(
            "Whether a token is accepted no longer depends on its own target probability, so the output is far from "
            "the target's."
        ),
        caught_by="exact",
        where="acceptance.verify",
        right="p_drafted = p.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)",
        wrong="p_drafted = p.roll(-1, -2).gather(-1, drafted.unsqueeze(-1)).squeeze(-1)",
    ),
    Mutant(
        name="u-fixed-at-zero",
        title="u fixed at 0",
        what="Compares p/q with 0 instead of a random number, so every token with p > 0 is accepted.",
        seen="vllm-project/vllm-ascend #13730 ('u = 0.0', because the device had no generator for it)",
        effect="distribution",
        output="Apart from the bonus tokens, the output follows the draft. The acceptance rate is close to 100 %.",
        caught_by="exact",
        where="acceptance.verify",
        right=_KEEP,
        wrong="keep = acceptance_probability(p_drafted, q_drafted) > 0  # u = 0",
    ),
    Mutant(
        name="u-constant",
        title="The seed reset before every u",
        what="Resets the seed before sampling u, so u is always the same number.",
        seen="feifeibear/LLMSpeculativeSampling with random_seed set",
        effect="distribution",
        output="Acceptance is no longer random: a token with a given p/q is either always accepted or always rejected.",
        caught_by="exact",
        where="acceptance.verify",
        right=_KEEP,
        wrong="""u = torch.rand((), generator=torch.Generator().manual_seed(123))
keep = u < acceptance_probability(p_drafted, q_drafted)""",
    ),
    Mutant(
        name="u-shared-in-round",
        title="One u for all tokens of a round",
        what="Samples u once per round and compares the ratio of every drafted token with it.",
        seen="by reasoning; transformers' target-distribution test does not catch it",
        effect="distribution",
        output=(
            "The first token of a round is right. Later tokens are accepted too often, because u was small enough to "
            "accept the first."
        ),
        caught_by="exact",
        where="acceptance.verify",
        right=_KEEP,
        wrong="""a = acceptance_probability(p_drafted, q_drafted)
edges = F.pad(a.sort(-1).values, (0, 1), value=1)  # [0, 1) cut at every a, one of which is 0
u = edges.gather(-1, randomness.draw(edges.diff(dim=-1))[..., None])  # the piece that u falls into
keep = u < a""",
    ),
    Mutant(
        name="u-shared-in-batch",
        title="One u for all sequences of a batch",
        what="Samples one u per position and compares the ratios of all sequences in the batch with it.",
        seen=(
            "NVIDIA/TensorRT-LLM #19487 (a shared stream); vllm-project/vllm #6038 and #9441 (in combination with "
            "seeds)"
        ),
        effect="distribution",
        output="Each text by itself has the right distribution, but the texts of one batch are correlated.",
        caught_by="exact",
        where="acceptance.verify",
        right=_KEEP,
        wrong="""a = acceptance_probability(p_drafted, q_drafted).movedim(0, -1)
edges = F.pad(F.pad(a.sort(-1).values, (1, 0)), (0, 1), value=1)  # [0, 1) cut at every a of the batch
u = edges.gather(-1, randomness.draw(edges.diff(dim=-1))[..., None])  # the piece that u falls into
keep = (u < a).movedim(-1, 0)""",
    ),
    Mutant(
        name="u-at-most-ratio",
        title="u ≤ p/q instead of u < p/q",
        what="Also accepts if u equals p/q. At u = 0 this accepts a token that the target cannot produce.",
        seen="huggingface/transformers 5.23 (`r_i <= probability_ratio`)",
        effect="distribution",
        output="About 1 in 16,777,216 drafted tokens with p = 0 is accepted, because u is a multiple of 2⁻²⁴.",
        caught_by="boundary",
        where="sampling.SeededRandomness.accept",
        right="return u < probability",
        wrong="return u <= probability",
    ),
    Mutant(
        name="typical-acceptance",
        title="Typical acceptance presented as exact",
        what=(
            "Accepts a token if its target probability is high enough, p > min(0.09, 0.3·exp(−entropy)), whatever q is."
        ),
        seen="FasterDecoding/Medusa, whose README states that it is not exact; a bug only where exactness is claimed",
        effect="distribution",
        output="Likely tokens become more likely, and rare tokens disappear.",
        caught_by="exact",
        where="acceptance.verify",
        right=_KEEP,
        wrong="""entropy = torch.special.entr(p).sum(-1)
keep = (p_drafted > (0.3 * torch.exp(-entropy)).clamp(max=0.09)) & (q_drafted > 0)""",
    ),
    Mutant(
        name="longest-match",
        title="Only the target's most likely token accepted, at any temperature",
        what=(
            "Accepts a drafted token only if it is the target's argmax. This is the greedy rule, applied while "
            "sampling."
        ),
        seen=(
            "apple/ml-recurrent-drafter, whose README states that it is inexact; a bug only where exactness is claimed"
        ),
        effect="distribution",
        output="The target's most likely token comes out too often.",
        caught_by="exact",
        where="acceptance.verify",
        right=_KEEP,
        wrong="keep = (p.argmax(-1) == drafted) & (q_drafted > 0)",
    ),
    Mutant(
        name="not-cumulative",
        title="Tokens accepted after a rejection",
        what="Counts all accepted tokens of the round instead of stopping at the first rejection.",
        seen="by reasoning",
        effect="distribution",
        output="Rejected tokens can stay in the text, so tokens that the draft overrates come out too often.",
        caught_by="exact",
        where="acceptance.verify",
        right="accepted = keep.long().cumprod(-1).sum(-1)",
        wrong="accepted = keep.long().sum(-1)",
    ),
    Mutant(
        name="residual-is-target",
        title="The residual is the target itself",
        what="Replaces a rejected token by a sample from p.",
        seen=(
            "ShopeeLLM/Spec-RL #14 (not claimed to be exact); transformers' target-distribution test does not catch it"
        ),
        effect="distribution",
        output=(
            "Tokens that the draft overrates come out too often, because a rejected token can be sampled again from p."
        ),
        caught_by="exact",
        where="acceptance.residual",
        right="rest = (p - q).clamp(min=0)",
        wrong="rest = p",
    ),
    Mutant(
        name="residual-absolute",
        title="The residual is |p − q|",
        what="Takes the absolute difference |p − q| instead of its positive part max(0, p − q).",
        seen="by reasoning",
        effect="distribution",
        output=(
            "On average, half of the replacements are tokens that the draft overrates. No replacement should be one."
        ),
        caught_by="exact",
        where="acceptance.residual",
        right="rest = (p - q).clamp(min=0)",
        wrong="rest = (p - q).abs()",
    ),
    Mutant(
        name="residual-unnormalized",
        title="The residual is not normalized",
        what="Does not divide max(0, p − q) by its sum. If u in [0, 1) exceeds that sum, the last token is sampled.",
        seen="by reasoning",
        effect="distribution",
        output="The last token of the vocabulary comes out far too often.",
        caught_by="exact",
        where="acceptance.residual",
        right=_NORMALISED,
        wrong="return torch.cat([rest[..., :-1], 1 - rest[..., :-1].sum(-1, keepdim=True)], -1)",
    ),
    Mutant(
        name="residual-softmax",
        title="The residual goes through softmax",
        what="Normalizes max(0, p − q) with a softmax instead of dividing by its sum.",
        seen="huggingface/transformers #28508 ('the paper normalizes this vector, as opposed to a softmax')",
        effect="distribution",
        output="Each rejected token is replaced by a nearly uniform sample from the vocabulary.",
        caught_by="exact",
        where="acceptance.residual",
        right=_NORMALISED,
        wrong="return torch.where(q.sum(-1, keepdim=True) > 0, rest.softmax(-1), p)",
    ),
    Mutant(
        name="residual-of-wrong-row",
        title="The residual computed from the wrong row of the draft",
        what=(
            "Subtracts the draft's distribution at the position before the rejected token instead of at its own "
            "position."
        ),
        seen="by reasoning; transformers' target-distribution test does not catch it",
        effect="distribution",
        output=(
            "The first token of a round is right. Replacements of later tokens are wrong, and so is the bonus token."
        ),
        caught_by="exact",
        where="acceptance.verify",
        right="p_stop, q_stop = p.gather(-2, stop).squeeze(-2), q.gather(-2, stop).squeeze(-2)",
        wrong="p_stop, q_stop = p.gather(-2, stop).squeeze(-2), q.gather(-2, (stop - 1).clamp(min=0)).squeeze(-2)",
    ),
    Mutant(
        name="bonus-from-draft",
        title="The bonus token comes from the draft",
        what="If all drafted tokens are accepted, samples the bonus token from the draft's last distribution.",
        seen="by reasoning",
        effect="distribution",
        output=(
            "The last token of every fully accepted round follows a distribution of the draft instead of the target."
        ),
        caught_by="exact",
        where="acceptance.verify",
        right="q = F.pad(q, (0, 0, 0, 1))",
        wrong="""if drafted.shape[-1]:
    p = torch.cat([p[..., :-1, :], q[..., -1:, :]], -2)
q = F.pad(q, (0, 0, 0, 1))""",
    ),
)
"""Wrong versions of `acceptance`, and one of `sampling`, that change the distribution."""
