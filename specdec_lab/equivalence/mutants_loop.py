"""Wrong versions outside the verification rule that change the distribution: draft, loop, end of text and cache."""

from specdec_lab.equivalence.mutation import Mutant

_PROPOSE = """q = sampling.probabilities(self.model.extend(tokens)[:, -1])
token = randomness.draw(q)"""
_SCORE = "p = sampling.probabilities(logits)"

LOOP = (
    Mutant(
        name="draft-greedy",
        title="The draft is greedy, q is its softmax",
        what="Drafts the most likely token but reports the draft's whole distribution as q.",
        seen="huggingface/transformers #32867, fixed in #33534: a target of [.6, .4] came out as [.75, .25]",
        effect="distribution",
        output="The draft's most likely token comes out too often.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right="token = randomness.draw(q)",
        wrong="token = q.argmax(-1)",
    ),
    Mutant(
        name="q-returned-raw",
        title="Raw q for tokens sampled from processed logits",
        what="Samples from the distribution after temperature and top-k but reports the distribution before them as q.",
        seen="huggingface/transformers #47932 ('candidate generators return a q they did not sample from')",
        effect="distribution",
        output="The output is wrong wherever temperature, top-k or top-p change q. Elsewhere it is right.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right=_PROPOSE,
        wrong="""logits = self.model.extend(tokens)[:, -1]
token = randomness.draw(sampling.probabilities(logits))
q = logits.softmax(-1)""",
    ),
    Mutant(
        name="drafts-sampled-raw",
        title="Processed q for tokens sampled from raw logits",
        what="Samples from the distribution before temperature and top-k but reports the distribution after them as q.",
        seen="'the other way round' of huggingface/transformers #47932; #28166 passed processors to the assistant",
        effect="distribution",
        output="The output is wrong wherever temperature, top-k or top-p change q. Elsewhere it is right.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right=_PROPOSE,
        wrong="""logits = self.model.extend(tokens)[:, -1]
token = randomness.draw(logits.softmax(-1))
q = sampling.probabilities(logits)""",
    ),
    Mutant(
        name="draft-in-bfloat16",
        title="Drafts sampled in bfloat16, verified in float32",
        what="Samples from the softmax of rounded logits but reports the softmax of the unrounded logits as q.",
        seen="deepseek-ai/DeepSpec #31",
        effect="distribution",
        output="The output distribution has a small bias, too small to notice in a text.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right=_PROPOSE,
        wrong="""logits = self.model.extend(tokens)[:, -1]
token = randomness.draw(sampling.probabilities(logits.bfloat16().to(logits)))
q = sampling.probabilities(logits)""",
    ),
    Mutant(
        name="early-stop-discards",
        title="An early stop discards the low-confidence token",
        what="Stops drafting at a token of low confidence and leaves this token out of the draft.",
        seen="by reasoning",
        effect="distribution",
        output="Drafted tokens are no longer samples from q, because the unlikely tokens of q are missing.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right="""num_drafted += confident
confident = confident & (q.gather(-1, tokens).squeeze(-1) >= self.min_confidence)""",
        wrong="""confident = confident & (q.gather(-1, tokens).squeeze(-1) >= self.min_confidence)
num_drafted += confident""",
    ),
    Mutant(
        name="greedy-as-argmax",
        title="Greedy decoding as argmax with the p/q test",
        what="At temperature 0, takes the argmax of every distribution but accepts with the p/q of temperature 1.",
        seen="romsto/Speculative-Decoding, GreedyProcessor; jaymody/speculative-sampling #3, fixed in #4",
        effect="distribution",
        output="The greedy text differs from the target's, because tokens are accepted that are not its argmax.",
        caught_by="exact",
        where="decoding.speculate",
        right="context = context or target.context",
        wrong="""context = context or target.context
if sampling.greedy:
    sampling, randomness.draw = Sampling(), lambda probabilities: probabilities.argmax(-1)""",
    ),
    Mutant(
        name="bonus-at-temperature-1",
        title="The bonus token sampled at temperature 1",
        what=(
            "Applies temperature, top-k and top-p to the rows of the drafted tokens but not to the row of the bonus "
            "token."
        ),
        seen="by reasoning",
        effect="distribution",
        output="One token of every fully accepted round is sampled at temperature 1, without top-k and top-p.",
        caught_by="exact",
        where="decoding.speculate",
        right=_SCORE,
        wrong="""p = torch.cat([sampling.probabilities(logits[:, :-1]), logits[:, -1:].softmax(-1)], 1)""",
    ),
    Mutant(
        name="temperature-cut-to-whole",
        title="Drafted tokens verified at a temperature without decimals",
        what="Truncates the temperature for drafted tokens to an integer: 0.7 becomes 0, which is treated as 1.",
        seen="vllm-project/vllm #55005, on CPUs",
        effect="distribution",
        output=(
            "Whole-number temperatures are right. At other temperatures, only the bonus tokens have the right "
            "temperature."
        ),
        caught_by="exact",
        where="decoding.speculate",
        right=_SCORE,
        wrong="""whole = float(int(sampling.temperature)) or 1.0
cut = sampling if sampling.greedy else Sampling(whole, sampling.top_k, sampling.top_p)
p = torch.cat([cut.probabilities(logits[:, :-1]), sampling.probabilities(logits[:, -1:])], 1)""",
    ),
    Mutant(
        name="stop-at-last-only",
        title="Only the last token of a round can end the text",
        what="Looks for an end token only in the last token of a round, as if a step still produced one token.",
        seen="LostRuins/koboldcpp #1276 ('continues outputting beyond EOS token when speculative decoding is used')",
        effect="distribution",
        output="The text continues after an end token that is accepted inside a round.",
        caught_by="ending",
        where="decoding.Row.add",
        right="end = next((i for i, token in enumerate(tokens) if token in eos), None)",
        wrong="end = len(tokens) - 1 if tokens[-1] in eos else None",
    ),
    Mutant(
        name="length-before-stop",
        title="The length limit checked before the end token",
        what="Cuts the last round at max_new_tokens, even if an end token comes earlier in the round.",
        seen="sgl-project/sglang #31599, fixed in #33758",
        effect="distribution",
        output="In the last round, tokens after the end token are returned.",
        caught_by="ending",
        where="decoding.Row.add",
        right="if end is not None:",
        wrong="if end is not None and len(self.new) + len(tokens) < self.max_new_tokens:",
    ),
    Mutant(
        name="zeroed-not-masked",
        title="Rewound cache entries zeroed, not masked",
        what="In a ragged batch, sets rewound keys to 0 but leaves them visible. A zero key still gets weight e⁰.",
        seen="Blaizzy/mlx-vlm #1962, fixed in #2113",
        effect="distribution",
        output="In the shorter rows, part of the attention goes to empty slots. This affects the target and the draft.",
        caught_by="cache",
        where="cache.RewindableCache.advance",
        right="return self.positions, (slots <= self.positions[..., None])[:, None]",
        wrong="""behind = (slots > self.positions[:, -1:]) & (slots < longest + n)
for states in (states for layer in self.slots.values() for states in layer):
    states[:, :, : self._window].masked_fill_(behind[:, None, :, None], 0)
return self.positions, ((slots <= self.positions[..., None]) | behind[:, None])[:, None]""",
    ),
)
"""Wrong versions of `drafting`, `decoding` and `cache` that change the distribution."""
