"""Wrong versions around the rule that change what comes out: the draft, the loop, the ends, the cache."""

from specdec_lab.equivalence.mutation import Mutant

_PROPOSE = """q = sampling.probabilities(self.model.extend(tokens)[:, -1])
token = randomness.draw(q)"""
_SCORE = "p = sampling.probabilities(logits)"

LOOP = (
    Mutant(
        name="draft-greedy",
        title="The draft is greedy, q is its softmax",
        what="Drafts the most likely token, but says that it was drawn from the whole distribution.",
        seen="huggingface/transformers #32867, mended in #33534: [.6, .4] came out as [.75, .25]",
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
        what="Draws from the processed distribution and hands out the raw one as q.",
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
        name="drafts-drawn-raw",
        title="q after temperature and top-k, drafts before",
        what="Draws from the raw distribution and hands out the processed one as q.",
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
        what="Draws from the softmax of rounded logits, and judges by that of the exact ones.",
        seen="deepseek-ai/DeepSpec #31",
        effect="distribution",
        output="A small bias, which no reader of the text would notice.",
        caught_by="exact",
        where="drafting.ModelDrafter.propose",
        right=_PROPOSE,
        wrong="""logits = self.model.extend(tokens)[:, -1]
token = randomness.draw(sampling.probabilities(logits.bfloat16().to(logits)))
q = sampling.probabilities(logits)""",
    ),
    Mutant(
        name="early-stop-discards",
        title="An early stop throws away the token that it stopped at",
        what="Stops drafting at a token of low confidence and leaves that token out of the draft.",
        seen="by reasoning",
        effect="distribution",
        output="Drafts are no longer drawn from q: its unlikely tokens have been weeded out.",
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
        what="At temperature 0 takes the argmax of every draw, but accepts by the p/q of temperature 1.",
        seen="romsto/Speculative-Decoding, GreedyProcessor; jaymody/speculative-sampling #3, mended in #4",
        effect="distribution",
        output="Greedy text that is not the target's: drafts survive that are not its argmax.",
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
        output="One token of every fully accepted round is drawn at temperature 1.",
        caught_by="exact",
        where="decoding.speculate",
        right=_SCORE,
        wrong="""p = torch.cat([sampling.probabilities(logits[:, :-1]), logits[:, -1:].softmax(-1)], 1)""",
    ),
    Mutant(
        name="temperature-cut-to-whole",
        title="Drafted tokens are judged at a temperature without decimals",
        what="The temperature goes through an integer on its way to the compared rows: 0.7 becomes 0, taken for 1.",
        seen="vllm-project/vllm #55005, on CPUs, where the cut number besides ends in a copy that is dropped",
        effect="distribution",
        output="Right at temperatures 0 and 1; elsewhere too warm or too cold, except for bonus tokens.",
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
        what="A round that reaches max_new_tokens ends there, although an end token stands before.",
        seen="sgl-project/sglang #31599, mended in #33758",
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
        what="In a ragged batch, blanks what shorter rows took back and leaves it in sight: a zero key weighs e⁰.",
        seen="Blaizzy/mlx-vlm #1962, mended in #2113",
        effect="distribution",
        output="Attention of the shorter rows is diluted, in the target and in the draft.",
        caught_by="cache",
        where="cache.RewindableCache.advance",
        right="return self.positions, (slots <= self.positions[..., None])[:, None]",
        wrong="""behind = (slots > self.positions[:, -1:]) & (slots < longest + n)
for states in (states for layer in self.slots.values() for states in layer):
    states[:, :, : self._window].masked_fill_(behind[:, None, :, None], 0)
return self.positions, ((slots <= self.positions[..., None]) | behind[:, None])[:, None]""",
    ),
)
"""Those that change what comes out, in `drafting`, `decoding` and `cache`."""
