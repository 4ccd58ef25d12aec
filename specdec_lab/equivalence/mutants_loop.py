"""Wrong versions around the rule that change the distribution: in the draft, the loop, the ends and the cache."""

from specdec_lab.equivalence.mutation import Mutant

_PROPOSE = """q = sampling.probabilities(self.model.extend(tokens)[:, -1])
token = randomness.draw(q)"""
_SCORE = "p = sampling.probabilities(logits)"

LOOP = (
    Mutant(
        name="draft-greedy",
        title="The draft is greedy, q is its softmax",
        what="Drafts the most likely token, but reports the whole distribution as q.",
        seen="huggingface/transformers #32867, fixed in #33534: [.6, .4] came out as [.75, .25]",
        effect="distribution",
        output="The draft's favorite comes out too often.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right="token = randomness.draw(q)",
        wrong="token = q.argmax(-1)",
    ),
    Mutant(
        name="q-returned-raw",
        title="q before temperature and top-k, drafts after",
        what="Samples from the processed distribution and reports the raw one as q.",
        seen="huggingface/transformers #47932 ('candidate generators return a q they did not sample from')",
        effect="distribution",
        output="Wrong wherever temperature, top-k or top-p are used; right at temperature 1.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right=_PROPOSE,
        wrong="""logits = self.model.extend(tokens)[:, -1]
token = randomness.draw(sampling.probabilities(logits))
q = logits.softmax(-1)""",
    ),
    Mutant(
        name="drafts-sampled-raw",
        title="q after temperature and top-k, drafts before",
        what="Samples from the raw distribution and reports the processed one as q.",
        seen="'the other way round' of huggingface/transformers #47932; #28166 passed processors to the assistant",
        effect="distribution",
        output="Wrong wherever temperature, top-k or top-p are used; right at temperature 1.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right=_PROPOSE,
        wrong="""logits = self.model.extend(tokens)[:, -1]
token = randomness.draw(logits.softmax(-1))
q = sampling.probabilities(logits)""",
    ),
    Mutant(
        name="draft-in-bfloat16",
        title="Drafted in bfloat16, accepted in float32",
        what="Samples from the softmax of rounded logits, and verifies with the softmax of the exact ones.",
        seen="deepseek-ai/DeepSpec #31",
        effect="distribution",
        output="A small bias, too small to notice in a text.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right=_PROPOSE,
        wrong="""logits = self.model.extend(tokens)[:, -1]
token = randomness.draw(sampling.probabilities(logits.bfloat16().to(logits)))
q = sampling.probabilities(logits)""",
    ),
    Mutant(
        name="early-stop-discards",
        title="An early stop discards the token that it stopped at",
        what="Stops drafting at a token of low confidence and leaves that token out of the draft.",
        seen="by reasoning",
        effect="distribution",
        output="Drafted tokens are no longer samples from q: its unlikely tokens are missing.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right="""num_drafted += confident
confident = confident & (q.gather(-1, tokens).squeeze(-1) >= self.min_confidence)""",
        wrong="""confident = confident & (q.gather(-1, tokens).squeeze(-1) >= self.min_confidence)
num_drafted += confident""",
    ),
    Mutant(
        name="greedy-as-argmax",
        title="argmax with the p/q test, called greedy",
        what="At temperature 0 takes the argmax of every distribution, but accepts with the p/q of temperature 1.",
        seen="romsto/Speculative-Decoding, GreedyProcessor; jaymody/speculative-sampling #3, fixed in #4",
        effect="distribution",
        output="Greedy text that is not the target's: tokens are accepted that are not its argmax.",
        caught_by="exact",
        where="decoding.speculate",
        right="context = context or target.context",
        wrong="""context = context or target.context
if sampling.greedy:
    sampling, randomness.draw = Sampling(), lambda probabilities: probabilities.argmax(-1)""",
    ),
    Mutant(
        name="bonus-at-temperature-1",
        title="The bonus token forgets the temperature",
        what="Applies temperature, top-k and top-p to the rows that are compared, not to the row of the bonus token.",
        seen="by reasoning",
        effect="distribution",
        output="One token of every fully accepted round is sampled at temperature 1.",
        caught_by="exact",
        where="decoding.speculate",
        right=_SCORE,
        wrong="""p = torch.cat([sampling.probabilities(logits[:, :-1]), logits[:, -1:].softmax(-1)], 1)""",
    ),
    Mutant(
        name="temperature-cut-to-whole",
        title="Drafted tokens are verified at a temperature without decimals",
        what="Converts the temperature of the compared rows to an integer: 0.7 becomes 0, which counts as 1.",
        seen="vllm-project/vllm #55005, on CPUs",
        effect="distribution",
        output="Right at temperatures 0 and 1. Elsewhere all but the bonus tokens have the wrong temperature.",
        caught_by="exact",
        where="decoding.speculate",
        right=_SCORE,
        wrong="""whole = float(int(sampling.temperature)) or 1.0
cut = sampling if sampling.greedy else Sampling(whole, sampling.top_k, sampling.top_p)
p = torch.cat([cut.probabilities(logits[:, :-1]), sampling.probabilities(logits[:, -1:])], 1)""",
    ),
    Mutant(
        name="stop-at-last-only",
        title="Only a round's last token can stop it",
        what="Looks for an end token in the last token of a round, as if a step still gave one token.",
        seen="LostRuins/koboldcpp #1276 ('continues outputting beyond EOS token when speculative decoding is used')",
        effect="distribution",
        output="Text goes on after its end wherever the end token is accepted inside a round.",
        caught_by="ending",
        where="decoding.Row.add",
        right="end = next((i for i, token in enumerate(tokens) if token in eos), None)",
        wrong="end = len(tokens) - 1 if tokens[-1] in eos else None",
    ),
    Mutant(
        name="length-before-stop",
        title="The length is checked before the end token",
        what="A round that reaches max_new_tokens ends there, although an end token comes earlier in it.",
        seen="sgl-project/sglang #31599, fixed in #33758",
        effect="distribution",
        output="In the last round, tokens after the end token leak.",
        caught_by="ending",
        where="decoding.Row.add",
        right="if end is not None:",
        wrong="if end is not None and len(self.new) + len(tokens) < self.max_new_tokens:",
    ),
    Mutant(
        name="zeroed-not-masked",
        title="Rolled-back cache entries are zeroed, not masked",
        what="In a ragged batch, sets rolled-back keys to 0 and leaves them visible: a zero key has weight e⁰.",
        seen="Blaizzy/mlx-vlm #1962, fixed in #2113",
        effect="distribution",
        output="Part of the shorter rows' attention goes to empty slots, in the target and in the draft.",
        caught_by="cache",
        where="cache.RewindableCache.advance",
        right="return self.positions, (slots <= self.positions[..., None])[:, None]",
        wrong="""behind = (slots > self.positions[:, -1:]) & (slots < longest + n)
for states in (states for layer in self.slots.values() for states in layer):
    states[:, :, : self._window].masked_fill_(behind[:, None, :, None], 0)
return self.positions, ((slots <= self.positions[..., None]) | behind[:, None])[:, None]""",
    ),
)
"""Those in `drafting`, `decoding` and `cache`."""
