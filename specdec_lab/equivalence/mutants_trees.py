"""Wrong versions of tree drafting and tree verification, with several candidates for each position."""

from specdec_lab.equivalence.mutation import Mutant

_RESIDUAL = "remaining = torch.where(rejected[:, None], residual(remaining, q[:, i]), remaining)"
_BONUS = "remaining = torch.where(accepted[:, None], p[:, i + 1], remaining)"

TREES = (
    Mutant(
        name="tree-duplicates-merged",
        title="Equal samples merged into one candidate",
        what="Tries a token that was sampled twice only once, as a trie of the samples would, but leaves q unchanged.",
        seen="by reasoning",
        effect="distribution",
        output=(
            "The bias is small. Where both copies would be rejected, the replacement comes from the residual of the "
            "first rejection."
        ),
        caught_by="exact",
        where="beyond.trees.verify_tree",
        right="tried = parents[:, i] == last",
        wrong="""twins = (drafted[:, :i] == drafted[:, i : i + 1]) & (parents[:, :i] == parents[:, i : i + 1])
tried = (parents[:, i] == last) & ~twins.any(1)""",
    ),
    Mutant(
        name="tree-q-not-renormalized",
        title="Sampled without replacement, verified as if with replacement",
        what=(
            "Samples each sibling without the tokens sampled before it but reports the draft's full q for all siblings."
        ),
        seen="by reasoning",
        effect="distribution",
        output=(
            "The first candidate is right. Later candidates are accepted too often, and the residual after them is "
            "wrong."
        ),
        caught_by="exact",
        where="beyond.trees.TreeDrafter._siblings",
        right="distributions.append(q)",
        wrong="distributions.append(distributions[0] if distributions else q)",
    ),
    Mutant(
        name="tree-sorted-by-target",
        title="Candidates tried in the order of the target's probabilities",
        what=(
            "Tries the siblings from the target's most to its least likely token, although q assumes the sampled order."
        ),
        seen="by reasoning",
        effect="distribution",
        output="The target's most likely tokens come out too often. More tokens are accepted than the rule allows.",
        caught_by="exact",
        where="beyond.trees.verify_tree",
        right="for i in range(n):",
        wrong="""of_parent = p[rows[:, None], parents + 1].gather(-1, drafted[..., None])[0, :, 0].tolist()
order = parents[0].tolist()
for i in sorted(range(n), key=lambda i: (order[i], -of_parent[i])):""",
    ),
    Mutant(
        name="tree-top-k-by-softmax",
        title="Top-k tokens verified as if they had been sampled",
        what="Proposes the draft's most likely tokens but reports the draft's softmax as the q of each.",
        seen="requested in SafeAILab/EAGLE #93, #110, #183, #221 and #283, where q = 1 is right",
        effect="distribution",
        output="The draft's most likely token comes out too often.",
        caught_by="exact",
        where="beyond.trees.TreeDrafter._siblings",
        right="return logits.topk(width).indices, None",
        wrong="""q = sampling.probabilities(logits)
return logits.topk(width).indices, q[..., None, :].expand(-1, -1, width, -1)""",
    ),
    Mutant(
        name="tree-target-asked-anew",
        title="Every candidate compared with p instead of the residual",
        what="After a rejection, compares the next sibling with p again instead of with the residual.",
        seen="foundation-model-stack/fms-extras #12 (one independent target sample for each candidate)",
        effect="distribution",
        output="Rejected tokens keep their full target probability and can come back as the replacement.",
        caught_by="exact",
        where="beyond.trees.verify_tree",
        right=_RESIDUAL,
        wrong="remaining = torch.where(rejected[:, None], p[rows, last + 1], remaining)",
    ),
    Mutant(
        name="tree-bonus-of-wrong-node",
        title="The next token sampled after the wrong node",
        what="After an accepted node, continues with the target's distribution after the node listed before it.",
        seen="SafeAILab/EAGLE #47",
        effect="distribution",
        output="Every token after an accepted node continues the wrong text.",
        caught_by="exact",
        where="beyond.trees.verify_tree",
        right=_BONUS,
        wrong="remaining = torch.where(accepted[:, None], p[:, i], remaining)",
    ),
    Mutant(
        name="tree-position-is-index",
        title="A node's index used as its position",
        what="Numbers the nodes consecutively, so siblings get different positions instead of the same one.",
        seen="lablup/mlxcel #1214",
        effect="distribution",
        output="In a tree with siblings, most nodes are scored at positions too far from the text.",
        caught_by="exact",
        where="cache.RewindableCache.advance_tree",
        right="positions = (starts + depths(parents) - 1).to(self.device)",
        wrong="positions = (starts + torch.arange(size)).to(self.device)",
    ),
    Mutant(
        name="tree-siblings-visible",
        title="A node attends to all earlier nodes",
        what="Keeps the causal mask of a chain, so a node attends to its siblings and their descendants.",
        seen="by reasoning",
        effect="distribution",
        output="Nodes are scored as if they followed a text that mixes several branches.",
        caught_by="exact",
        where="cache.RewindableCache.advance_tree",
        right="ancestors = ancestor_mask(parents)[:, -n:].to(self.device)[:, None]",
        wrong="""all_before = torch.ones(self.batch, size, size, dtype=torch.bool).tril()
ancestors = all_before[:, -n:].to(self.device)[:, None]""",
    ),
    Mutant(
        name="tree-cache-first-nodes",
        title="The cache keeps the first nodes, not the accepted ones",
        what=(
            "Shortens the cache to the number of accepted tokens without moving the accepted keys and values into "
            "place."
        ),
        seen="by reasoning",
        effect="distribution",
        output="Later tokens attend to the keys and values of rejected nodes instead of accepted ones.",
        caught_by="exact",
        where="cache.RewindableCache.keep_path",
        right="states[self.rows, :, to] = states[self.rows, :, source]",
        wrong="states[self.rows, :, to] = states[self.rows, :, to]",
    ),
)
"""Wrong versions that only affect drafts with several candidates for a position."""
