"""Wrong versions of the random numbers: each is uniform as it should be, but two of them are not independent.

The exact proof cannot see them. It replaces `SeededRandomness` by a `Randomness` of its own, which plays every outcome
and makes each decision independent of the others. Only samples of the real random numbers show the dependence.
"""

from specdec_lab.equivalence.mutation import Mutant

RANDOMNESS = (
    Mutant(
        name="noise-shared",
        title="One noise vector for the draft and the replacement",
        what="Samples every token of a row with one Gumbel noise vector: drafted, replacement and bonus tokens.",
        seen="vllm-project/vllm #54282, where each position has its own noise, shared by draft and replacement",
        effect="distribution",
        output="Replacements depend on the noise that chose the rejected token, so they do not follow the residual.",
        caught_by="joint",
        where="sampling.SeededRandomness.draw",
        right="cumulative = probabilities.double().cumsum(-1)",
        wrong="""if not hasattr(self, "noise") or self.noise.shape != probabilities.shape:
    self.noise = torch.empty_like(probabilities).exponential_(generator=self._generator)
return (probabilities / self.noise).argmax(-1)
cumulative = probabilities.double().cumsum(-1)""",
    ),
    Mutant(
        name="u-shared-in-row",
        title="One u for all positions of a row",
        what="Takes one random number for each row and compares the ratios of all its drafted tokens with it.",
        seen="by reasoning; it is 'one u for all tokens of a round', moved to where the proof does not look",
        effect="distribution",
        output="The first token is right. Later ones are accepted too often, because u is known to be small by then.",
        caught_by="joint",
        where="sampling.SeededRandomness.accept",
        right="probability.shape,",
        wrong="probability[..., :1].shape,",
    ),
)
"""Those that change the distribution, in `sampling.SeededRandomness`."""
