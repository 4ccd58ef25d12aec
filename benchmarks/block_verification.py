"""How many more tokens a round emits with block verification than with token verification, on the pair that ships.

    python benchmarks/block_verification.py [--k 4 6] [--texts 4] [--tokens 128] [--json FILE]

Both rules generate from the same held-out prompts, each on its own, with the package's loop. In every round the
benchmark asks both rules how many of the drafted tokens each accepts on average, given p, q and these tokens. So the
luck of the accept/reject decisions is averaged out. Two estimates are printed:

- own texts: tokens per round of each rule in the texts that it generated itself;
- same rounds: both rules on the same rounds, those of both sets of texts together.

Rounds that draft fewer than k tokens, at the end of a text, do not count. The 95 % intervals of the gain come from
resampling the prompts (bootstrap, 10,000 times, fixed seed). No time is measured: the figures do not depend on the
machine.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

import specdec_ref as sd
from specdec_ref.decoding import speculate

RULES: dict[str, sd.Verify] = {"token": sd.verify, "block": sd.verify_block}
RESAMPLES = 10_000
Numbers = NDArray[np.float64]


class Probabilities:
    """A `Randomness` that records the acceptance probabilities of a rule, and makes no decision itself."""

    def __init__(self) -> None:
        self.of_decisions = torch.empty(0)

    def accept(self, probability: Tensor) -> Tensor:
        self.of_decisions = probability
        return torch.zeros_like(probability, dtype=torch.bool)

    def draw(self, probabilities: Tensor) -> Tensor:
        return probabilities.argmax(-1)


def accepted_on_average(name: str, p: Tensor, q: Tensor, drafted: Tensor) -> list[float]:
    """Mean number of these drafted tokens that a rule accepts, one for each row.

    Token verification stops at the first rejection: Σ over i of the product of the first i probabilities. Block
    verification takes the longest prefix that passes: Σ over i of 1 − the product of the failures from i on.
    """
    randomness = Probabilities()
    RULES[name](p, q, drafted, randomness)
    decisions = randomness.of_decisions.double()
    at_least = decisions[..., :-1].cumprod(-1)
    if name == "block":
        at_least = 1 - (1 - decisions[..., 1:]).flip(-1).cumprod(-1)
    return list(at_least.sum(-1).tolist())


class Counted:
    """A verification rule that decides as `name` does, and records what each rule would accept on average.

    Attributes:
        accepted: of the last round, {rule: one number for each row}.
    """

    def __init__(self, name: str):
        self.name = name
        self.accepted: dict[str, list[float]] = {}

    def __call__(self, p: Tensor, q: Tensor, drafted: Tensor, randomness: sd.Randomness) -> sd.Verdict:
        self.accepted = {name: accepted_on_average(name, p, q, drafted) for name in RULES}
        return RULES[self.name](p, q, drafted, randomness)


def generate(
    pair: sd.Pair, prompts: list[list[int]], k: int, arguments: argparse.Namespace, name: str
) -> dict[str, Numbers]:
    """Texts of one rule, several after each prompt, as one batch.

    Returns:
        By prompt, over all rounds that drafted k tokens: 'rounds', 'emitted' tokens, and by rule the tokens that it
        emits on average.
    """
    assert pair.draft is not None
    target = sd.TransformersModel(pair.target)
    drafter = sd.ModelDrafter(sd.TransformersModel(pair.draft, target.vocab_size))
    rows = [sd.Row(tuple(prompt), arguments.tokens) for prompt in prompts for _ in range(arguments.texts)]
    prompt_of = {id(row): i // arguments.texts for i, row in enumerate(rows)}
    counted = Counted(name)
    totals = {column: np.zeros(len(prompts)) for column in ("rounds", "emitted", *RULES)}
    loop = speculate(
        target,
        drafter,
        list(rows),
        sd.FixedK(k),
        sd.Sampling(),
        sd.SeededRandomness(k, target.device),
        pair.eos,
        pair.context,
        verify=counted,
    )
    for extended in loop:
        for i, row in enumerate(extended):
            if len(row.rounds[-1].drafted) < k:
                continue
            prompt = prompt_of[id(row)]
            totals["rounds"][prompt] += 1
            totals["emitted"][prompt] += row.rounds[-1].accepted + 1
            for rule in RULES:
                totals[rule][prompt] += counted.accepted[rule][i] + 1
    return totals


def gain(token: Numbers, token_rounds: Numbers, block: Numbers, block_rounds: Numbers) -> dict[str, float]:
    """Tokens per round of both rules and the relative gain, with its 95 % interval. The arguments are by prompt."""
    n = len(token)
    resampled = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    by_token = token[resampled].sum(1) / token_rounds[resampled].sum(1)
    by_block = block[resampled].sum(1) / block_rounds[resampled].sum(1)
    low, high = np.quantile(by_block / by_token - 1, [0.025, 0.975])
    means = token.sum() / token_rounds.sum(), block.sum() / block_rounds.sum()
    figures = {"token": means[0], "block": means[1], "gain": means[1] / means[0] - 1, "low": low, "high": high}
    return {name: float(value) for name, value in figures.items()}


def summary(texts: dict[str, dict[str, Numbers]]) -> dict[str, Any]:
    """Both estimates for one k, from the texts of each rule."""
    token, block = texts["token"], texts["block"]
    rounds = token["rounds"] + block["rounds"]
    return {
        "rounds": {name: int(numbers["rounds"].sum()) for name, numbers in texts.items()},
        "emitted": {name: float(numbers["emitted"].sum() / numbers["rounds"].sum()) for name, numbers in texts.items()},
        "own texts": gain(token["token"], token["rounds"], block["block"], block["rounds"]),
        "same rounds": gain(token["token"] + block["token"], rounds, token["block"] + block["block"], rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[4, 6], help="tokens drafted per round (4 6)")
    parser.add_argument("--texts", type=int, default=4, help="texts after each held-out prompt (4)")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each text (128)")
    parser.add_argument("--draft", default="draft-medium", help="a draft that ships, or a folder (draft-medium)")
    parser.add_argument("--device", help="cpu, cuda, …; default the GPU where there is one")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "block_verification.json")
    arguments = parser.parse_args()
    console = Console(highlight=False)
    pair = sd.load_pair(draft=arguments.draft, device=arguments.device)
    prompts = [pair.tokenizer(text)["input_ids"][: pair.context // 2] for text in sd.held_out_prompts().values()]
    settings = {name: getattr(arguments, name) for name in ("draft", "texts", "tokens")}
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "settings": {**settings, "prompts": len(prompts), "temperature": 1.0},
        "results": {},
    }
    for k in arguments.k:
        with console.status(f"k = {k}"):
            result = summary({name: generate(pair, prompts, k, arguments, name) for name in RULES})
        report["results"][str(k)] = result
        for estimate in ("own texts", "same rounds"):
            figures = result[estimate]
            console.print(
                f"k = {k}, {estimate}: {figures['token']:.3f} tokens per round with token verification, "
                f"{figures['block']:.3f} with block verification, {figures['gain']:+.1%} "
                f"(95 % {figures['low']:+.1%} to {figures['high']:+.1%})",
                soft_wrap=True,
            )
        rounds, emitted = result["rounds"], result["emitted"]
        console.print(
            f"  {rounds['token']:,} and {rounds['block']:,} rounds; emitted as sampled: {emitted['token']:.3f} and "
            f"{emitted['block']:.3f} tokens per round",
            soft_wrap=True,
        )
    arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
