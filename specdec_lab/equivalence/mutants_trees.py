"""Wrong versions of trees: what several candidates for a position invite."""

from specdec_lab.equivalence.mutation import Mutant

_RESIDUAL = "remaining = torch.where(rejected[:, None], residual(remaining, q[:, i]), remaining)"
_BONUS = "remaining = torch.where(accepted[:, None], p[:, i + 1], remaining)"

TREES = (
    Mutant(
        name="tree-duplicates-merged",
        title="Equal samples become one candidate",
        what="Tries a token that was sampled twice only once, as a trie of the samples does, and leaves q as it is.",
        seen="by reasoning",
        effect="distribution",
        output="A small bias: after two equal rejections the replacement comes from the first residual.",
        caught_by="exact",
        where="beyond.trees.verify_tree",
        right="tried = parents[:, i] == last",
        wrong="""twins = (drafted[:, :i] == drafted[:, i : i + 1]) & (parents[:, :i] == parents[:, i : i + 1])
tried = (parents[:, i] == last) & ~twins.any(1)""",
    ),
    Mutant(
        name="tree-q-not-renormalized",
        title="Sampled without replacement, verified as if with replacement",
        what="Samples each sibling from what the siblings before it left over, and reports the draft's own q for all.",
        seen="by reasoning",
        effect="distribution",
        output="The first candidate is right; those after it are accepted too often, and their residual is wrong.",
        caught_by="exact",
        where="beyond.trees.TreeDrafter._siblings",
        right="distributions.append(q)",
        wrong="distributions.append(distributions[0] if distributions else q)",
    ),
    Mutant(
        name="tree-sorted-by-target",
        title="Candidates are tried in the order of the target's probabilities",
        what="Tries the sibling first that the target finds most likely, although q describes them in sampled order.",
        seen="by reasoning",
        effect="distribution",
        output="The target's most likely tokens come out too often. More is accepted than the rule allows.",
        caught_by="exact",
        where="beyond.trees.verify_tree",
        right="for i in range(n):",
        wrong="""of_parent = p[rows[:, None], parents + 1].gather(-1, drafted[..., None])[0, :, 0].tolist()
order = parents[0].tolist()
for i in sorted(range(n), key=lambda i: (order[i], -of_parent[i])):""",
    ),
    Mutant(
        name="tree-top-k-by-softmax",
        title="The most likely tokens, verified as if they had been sampled",
        what="Proposes the draft's most likely tokens and reports its softmax as the q of each.",
        seen="asked for in SafeAILab/EAGLE #93, #110, #183, #221 and #283, where q = 1 is right",
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
        title="Each candidate is compared with p again",
        what="After a rejection compares the next sibling with p again, not with the residual.",
        seen="foundation-model-stack/fms-extras #12 (one independent target sample for each candidate)",
        effect="distribution",
        output="Rejected tokens keep their probability, and come back as the replacement.",
        caught_by="exact",
        where="beyond.trees.verify_tree",
        right=_RESIDUAL,
        wrong="remaining = torch.where(rejected[:, None], p[rows, last + 1], remaining)",
    ),
    Mutant(
        name="tree-bonus-of-wrong-node",
        title="The next token belongs to the node before",
        what="After an accepted node goes on with the distribution of the node listed before it.",
        seen="SafeAILab/EAGLE #47",
        effect="distribution",
        output="Every token after an accepted one continues another text.",
        caught_by="exact",
        where="beyond.trees.verify_tree",
        right=_BONUS,
        wrong="remaining = torch.where(accepted[:, None], p[:, i], remaining)",
    ),
    Mutant(
        name="tree-position-is-index",
        title="A node's position is its index",
        what="Numbers the nodes one after the other, so that siblings get different positions.",
        seen="lablup/mlxcel #1214",
        effect="distribution",
        output="All nodes but the first of each level are scored at a wrong distance from the text.",
        caught_by="exact",
        where="cache.RewindableCache.advance_tree",
        right="positions = (starts + depths(parents) - 1).to(self.device)",
        wrong="positions = (starts + torch.arange(size)).to(self.device)",
    ),
    Mutant(
        name="tree-siblings-visible",
        title="A node attends to all nodes before it",
        what="Leaves the causal mask of a chain in place, so that a node sees siblings and their children.",
        seen="by reasoning",
        effect="distribution",
        output="Nodes are scored after a text that mixes several continuations.",
        caught_by="exact",
        where="cache.RewindableCache.advance_tree",
        right="ancestors = ancestor_mask(parents)[:, -n:].to(self.device)[:, None]",
        wrong="""all_before = torch.ones(self.batch, size, size, dtype=torch.bool).tril()
ancestors = all_before[:, -n:].to(self.device)[:, None]""",
    ),
    Mutant(
        name="tree-cache-first-nodes",
        title="The cache keeps the first nodes, not the accepted ones",
        what="Shortens the cache to the number of accepted tokens without moving their keys and values.",
        seen="by reasoning",
        effect="distribution",
        output="Later tokens attend to rejected siblings in place of the accepted tokens.",
        caught_by="exact",
        where="cache.RewindableCache.keep_path",
        right="states[self.rows, :, to] = states[self.rows, :, source]",
        wrong="states[self.rows, :, to] = states[self.rows, :, to]",
    ),
)
"""Those that only a draft with several candidates for a position meets."""
