"""Wrong answers as learners write them, written without a look at the checks' own wrong versions."""

WRITES = {
    "accept": """
def accepts(p, q, u):
    p /= q
    return u < p
""",
    "residual": """
def residual(p, q):
    p -= q
    p.clamp_(min=0)
    return p / p.sum(-1, keepdim=True)
""",
    "step": """
def speculative_step(p, q, drafted, chance):
    out = []
    for i in range(len(drafted)):
        token = drafted.pop(0)
        if not chance.accept(min(1.0, float(p[i, token] / q[i, token]))):
            rest = (p[i] - q[i]).clamp(min=0)
            return [*out, chance.draw(rest / rest.sum())]
        out.append(token)
    return [*out, chance.draw(p[-1])]
""",
    "mend": """
def mended_round(target, draft, last, k, chance):
    text = [last]
    for _ in range(k):
        text.append(chance.draw(draft[text[-1]]))
    for i, token in enumerate(text[1:]):
        p, q = target[text[i]], draft[text[i]]
        if not chance.accept(min(1.0, float(p[token] / q[token]))):
            p -= q
            p.clamp_(min=0)
            return [*text[1 : i + 1], chance.draw(p / p.sum())]
    return [*text[1:], chance.draw(target[text[-1]])]
""",
    "equivalence_test": """
def is_consistent(counts, probabilities):
    n, chi = sum(counts), 0.0
    degrees = len(counts) - 1
    while counts:
        expected = n * probabilities[len(counts) - 1]
        chi += (counts.pop() - expected) ** 2 / expected
    return chi <= {1: 10.828, 3: 16.266}[degrees]
""",
    "decode": """
def speculative_decode(target, draft, start, n, k, chance):
    text = [start]
    while len(text) <= n:
        rows = [text[-1]]
        for _ in range(k):
            rows.append(chance.draw(draft[rows[-1]]))
        for i, token in enumerate(rows[1:]):
            p = target[rows[i]]
            if not chance.accept(min(1.0, float(p[token] / draft[rows[i], token]))):
                p.sub_(draft[rows[i]]).clamp_(min=0)
                text.append(chance.draw(p / p.sum()))
                break
            text.append(token)
        else:
            text.append(chance.draw(target[rows[-1]]))
    return text[1 : n + 1]
""",
    "best_draft": """
def best_draft(drafts, slope):
    best, winner = 1.0, ("none", 0)
    while drafts:
        name, (alpha, c) = drafts.popitem()
        for k in range(1, 9):
            gain = (1 - alpha ** (k + 1)) / (1 - alpha) / (1 + k * (c + slope))
            if gain > best:
                best, winner = gain, (name, k)
    return winner
""",
    "adaptive_k": """
def choose_k(history, c, slope):
    history.reverse()
    kept, judged = 1.4, 2.0
    for drafted, accepted in history[:20]:
        kept, judged = kept + accepted, judged + min(accepted + 1, drafted)
    alpha = min(0.98, kept / judged)
    best = max(range(9), key=lambda k: (1 - alpha ** (k + 1)) / (1 - alpha) / (1 + k * (c + slope)))
    return best or int(len(history) >= 15 and not any(drafted for drafted, _ in history[:15]))
""",
    "memory": """
def memory_bytes(target, draft, batch, tokens, k):
    total = 0
    for model in (target, draft):
        if model:
            slots = tokens + (k if draft else 0)
            model["cache"] = 2 * model["layers"] * model["kv_heads"] * model["head_dim"] * batch * slots
            total += 2 * (model["parameters"] + model["cache"])
    return total
""",
}
"""Right but for one thing: what they were given is not what it was."""
