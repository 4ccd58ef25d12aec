"""Wrong versions of the random numbers: each number has the right distribution, but they are not independent.

The exact proof cannot detect these mistakes. It replaces `SeededRandomness` by a `Randomness` of its own, which
enumerates every outcome and makes each decision independent of the others. Only tests that use the real random numbers
detect the dependence.
"""

from specdec_lab.equivalence.mutation import Mutant

RANDOMNESS = (
    Mutant(
        name="noise-shared",
        title="One noise vector for the draft and the replacement",
        what="Samples every token of a row with the same Gumbel noise vector: drafted, replacement and bonus tokens.",
        seen="vllm-project/vllm #54282, where each position has its own noise, shared by the draft and the replacement",
        effect="distribution",
        output="Replacements depend on the noise that selected the rejected token, so they do not follow the residual.",
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
        what="Samples one u per row in each round and compares the ratio of every drafted token with it.",
        seen="by reasoning; it is 'one u for all tokens of a round', moved to code that the exact proof replaces",
        effect="distribution",
        output=(
            "The first token of a round is right. Later tokens are accepted too often, because u was small enough to "
            "accept the first."
        ),
        caught_by="joint",
        where="sampling.SeededRandomness.accept",
        right="probability.shape,",
        wrong="probability[..., :1].shape,",
    ),
)
"""Wrong versions of `sampling.SeededRandomness` whose random numbers depend on each other."""
