"""The benchmark suite: ways to decode side by side, over short, medium and long prompts, one request at a time.

Every way runs on the same prompts in turn, in an order that is shuffled anew for each prompt, so that a machine that
drifts drifts for all alike. Each timed generation is on the disk before the next begins: an interrupt loses nothing and
the same call goes on where it stopped. What the samples say is worked out afresh from them each time (`results`).
"""

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from specdec_ref.control import Controller, FixedK, Round
from specdec_ref.decoding import Generation, generate_speculative
from specdec_ref.drafting import PromptLookupDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.measurement.costs import measure_costs
from specdec_ref.measurement.recording import Record, Recording, read
from specdec_ref.measurement.results import BenchmarkResult as BenchmarkResult
from specdec_ref.measurement.results import SuiteResult, results_of
from specdec_ref.measurement.workload import machine_facts, model_facts, peak_memory, prompts_of_length
from specdec_ref.models import DEFAULT_DRAFT, Pair, load_pair, shipped
from specdec_ref.sampling import Sampling

SAMPLES = "samples.jsonl"
LENGTHS = {"short": 32, "medium": 128, "long": 512}


@dataclass(frozen=True)
class Configuration:
    """One way to decode. kind: 'baseline', 'fixed', 'adaptive', 'cost model' or 'lookup'; draft: a model's name; k: so
    many tokens a round, at most."""

    name: str
    kind: str
    draft: str = ""
    k: int = 0

    def controller(self) -> Controller:
        """A new one. It serves all generations of this way, in turn, as it would in a server: it learns from them."""
        if self.kind == "adaptive":
            from specdec_ref.control import AdaptiveSpeculation

            return AdaptiveSpeculation(min_k=min(2, self.k), max_k=self.k)
        if self.kind == "cost model":
            from specdec_ref.control import CostModelSpeculation

            return CostModelSpeculation(max_k=self.k)
        return FixedK(self.k)


@dataclass(frozen=True)
class Settings:
    """What the suite runs.

    lengths: names of prompt lengths, in tokens. prompts: different ones of each length. ks: fixed numbers of drafted
    tokens. repeats: timed runs of each way on each prompt; more of them may be asked for later, in the same folder.
    adaptive: also controllers, up to the largest k. Raises SpecdecError.
    """

    lengths: Mapping[str, int] = field(default_factory=lambda: dict(LENGTHS))
    prompts: int = 6
    repeats: int = 2
    max_new_tokens: int = 128
    ks: tuple[int, ...] = (2, 4, 8)
    adaptive: bool = True
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        for name in ("prompts", "repeats", "max_new_tokens"):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise SpecdecError(f"{name}={getattr(self, name)!r:.80}: takes a whole number ≥ 1")
        for name, values in (("ks", self.ks), ("lengths", tuple(self.lengths.values()))):
            if not values or not all(is_whole(value) and value >= 1 for value in values):
                raise SpecdecError(f"{name}={getattr(self, name)!r:.80}: takes whole numbers ≥ 1, at least one")

    def facts(self) -> Record:
        """What must be the same for two samples to be comparable: everything but how many there are."""
        return {name: value for name, value in asdict(self).items() if name != "repeats"}


def load_drafts(
    target: str | None = None, draft: str | None = None, *, device: str | None = None, dtype: str | None = None
) -> dict[str, Pair]:
    """Pairs by the draft's name, all with one and the same target. Neither named: every draft that ships.

    The arguments are those of `load_pair`, and so are the errors.
    """
    first = load_pair(target, draft, device=device, dtype=dtype)
    if target is not None or draft is not None:
        return {Path(draft).name if draft else "": first}
    pairs = {DEFAULT_DRAFT: first}
    for name in shipped():
        if name not in ("target", DEFAULT_DRAFT):
            other = load_pair(draft=name, device=device, dtype=dtype)
            pairs[name] = replace(first, draft=other.draft)
    return pairs


def configurations(models: Mapping[str, Pair], settings: Settings) -> tuple[Configuration, ...]:
    """Everyone who runs: the baseline, each draft at each k, controllers with the first draft, prompt lookup."""
    drafts = [name for name, pair in models.items() if pair.draft is not None]
    everyone = [Configuration("baseline", "baseline")]
    for name in drafts:
        everyone += [Configuration(f"{name} k={k}", "fixed", name, k) for k in settings.ks]
        if settings.adaptive and name == drafts[0]:
            everyone += [Configuration(kind, kind, name, max(settings.ks)) for kind in ("adaptive", "cost model")]
    everyone += [Configuration(f"prompt lookup k={k}", "lookup", "", k) for k in settings.ks]
    return tuple(everyone)


def run_suite(
    models: Pair | Mapping[str, Pair],
    settings: Settings | None = None,
    *,
    folder: Path | None = None,
    texts: Sequence[str] | None = None,
    on_step: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> SuiteResult:
    """Measure what is not yet measured, then say what all samples tell.

    models: a pair, or pairs by the draft's name that share one target. folder: where samples.jsonl is kept and found
    again; None: nowhere. texts: what prompts are cut from, default the held-out ones. on_step: told before each run
    what it is, how many are done, and of how many. Raises SpecdecError for a folder with other settings, models,
    machine or versions in it.
    """
    settings = settings or Settings()
    pairs = {"draft": models} if isinstance(models, Pair) else dict(models)
    if not pairs or not all(isinstance(pair, Pair) for pair in pairs.values()):
        raise SpecdecError(f"models={models!r:.80}: takes a Pair, or pairs by the draft's name")
    first = next(iter(pairs.values()))
    if any(pair.target is not first.target for pair in pairs.values()):
        raise SpecdecError("models: their targets differ; takes pairs that share one target")
    everyone = configurations(pairs, settings)
    prompts = {
        name: prompts_of_length(first.tokenizer, tokens, settings.prompts, texts)
        for name, tokens in settings.lengths.items()
    }
    largest = max(settings.lengths.values()) + settings.max_new_tokens
    if largest > min(pair.context for pair in pairs.values()):
        raise SpecdecError(f"lengths: with {settings.max_new_tokens} new tokens {largest}; the models hold fewer")
    facts = {
        "settings": {**settings.facts(), "texts": _digest(prompts)},
        "target": model_facts(first.target),
        "drafts": {name: model_facts(pair.draft) for name, pair in pairs.items() if pair.draft is not None},
        "machine": machine_facts(first),
        "configurations": [asdict(one) for one in everyone],
    }
    with Recording(folder / SAMPLES if folder else None, facts) as recording:
        work = list(_missing(recording.records, pairs, everyone, settings))
        warm: set[tuple[str, str]] = set()
        controllers = {one.name: one.controller() for one in everyone}
        for done, (what, length, one, i, repeat) in enumerate(work):
            on_step(what, done, len(work))
            if one is None:
                recording.append(_costs(what, length, pairs[what], settings))
                continue
            pair = pairs.get(one.draft, first)
            prompt = prompts[length][i]
            if (one.name, length) not in warm:  # untimed, on the same prompt
                _timed(pair, one, controllers[one.name], prompt, settings, repeat)
                warm.add((one.name, length))
            sample = {"kind": "sample", "config": one.name, "length": length, "prompt": i, "repeat": repeat}
            recording.append(sample | _timed(pair, one, controllers[one.name], prompt, settings, repeat))
        return results_of(recording.facts, recording.records)


def load_suite(folder: Path) -> SuiteResult:
    """What the samples in a folder say, without measuring anything. Raises SpecdecError where it holds none."""
    return results_of(*read(folder / SAMPLES))


Task = tuple[str, str, Configuration | None, int, int]
"""What it is called, prompt length, who runs (None: step costs of the draft of that name), prompt, repeat."""


def _missing(
    records: Sequence[Record], pairs: Mapping[str, Pair], everyone: Sequence[Configuration], settings: Settings
) -> Iterator[Task]:
    """What is still to be measured, in order: step costs first, then everyone in turn, prompt by prompt."""
    costs = {(r["draft"], r["length"]) for r in records if r["kind"] == "costs"}
    there = {(r["config"], r["length"], r["prompt"], r["repeat"]) for r in records if r["kind"] == "sample"}
    for name, pair in pairs.items():
        for length in settings.lengths:
            if pair.draft is not None and (name, length) not in costs:
                yield name, length, None, 0, 0
    for repeat in range(settings.repeats):
        for length in settings.lengths:
            for prompt in range(settings.prompts):
                order = list(everyone)
                random.Random(f"{repeat} {length} {prompt}").shuffle(order)
                for one in order:
                    if (one.name, length, prompt, repeat) not in there:
                        yield f"{one.name}, {length}", length, one, prompt, repeat


def _costs(name: str, length: str, pair: Pair, settings: Settings) -> Record:
    """Step costs of one draft at one prompt length, in the middle of the text to be generated."""
    most = max(settings.ks)
    context = max(1, min(settings.lengths[length] + settings.max_new_tokens // 2, pair.context - most - 1))
    costs = measure_costs(pair, max_k=most, context=context, sampling=settings.sampling)
    return {"kind": "costs", "draft": name, "length": length, **asdict(costs)}


def _timed(
    pair: Pair, one: Configuration, controller: Controller, prompt: Sequence[int], settings: Settings, seed: int
) -> Record:
    """One generation with the clock running, as a record."""
    watch = _FirstToken()
    if pair.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(pair.device)
    began = time.perf_counter()
    generation: Generation = generate_speculative(
        pair,
        prompt,
        k=controller,
        max_new_tokens=settings.max_new_tokens,
        sampling=settings.sampling,
        seed=seed,
        drafter=PromptLookupDrafter() if one.kind == "lookup" else None,
        monitor=watch,
    )
    seconds = time.perf_counter() - began
    rounds = generation.rounds
    drafted: dict[int, int] = {}
    for r in rounds:
        drafted[len(r.drafted)] = drafted.get(len(r.drafted), 0) + 1
    return {
        "seconds": seconds,
        "first_seconds": watch.at - began,
        "first_tokens": len(rounds[0].emitted),
        "tokens": len(generation.tokens),
        "accepted": sum(r.accepted for r in rounds),
        "judged": sum(min(r.accepted + 1, len(r.drafted)) for r in rounds),
        "drafted": sorted(drafted.items()),  # so many tokens were drafted in so many rounds
        "draft_seconds": sum(r.draft_seconds for r in rounds),
        "memory": peak_memory(pair.device),
    }


class _FirstToken:
    """A watcher that looks at the clock when the first round ends, and otherwise stays out of the way."""

    at = 0.0

    def watch(self, controller: Controller) -> Controller:
        self._inner, self.max_k = controller, controller.max_k
        return self

    def next_k(self) -> int:
        return self._inner.next_k()

    def observe(self, rounds: list[Round]) -> None:
        self.at = self.at or time.perf_counter()
        self._inner.observe(rounds)


def _digest(prompts: Mapping[str, Sequence[Sequence[int]]]) -> str:
    """Names the prompts, so that other texts are other settings."""
    return hashlib.sha256(repr(prompts).encode()).hexdigest()[:12]
