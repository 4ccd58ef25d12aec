"""The benchmark suite: ways to decode compared on short, medium and long prompts, one request at a time.

All ways take turns on the same prompts, in an order that is shuffled for each prompt. So a change of the machine's
speed affects all of them alike. Each timed generation is written to disk before the next begins: after an interrupt,
the same call continues where it stopped. Results are computed from all samples each time (`results`).
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

import torch

from specdec_lab.measurement.benchmark_workload import machine_facts, model_facts, peak_memory, prompts_of_length
from specdec_lab.measurement.costs import measure_costs
from specdec_lab.measurement.methods import (
    can_draft,
    draft_module,
    drafts_one_at_a_time,
    fresh,
    is_tree,
    usual_k,
    with_method,
)
from specdec_lab.measurement.recording import Record, Recording, read
from specdec_lab.measurement.suite_result import SuiteResult, results_of
from specdec_ref.api import Generation, generate_speculative
from specdec_ref.control import FixedK
from specdec_ref.decoding import Controller, Round
from specdec_ref.drafting import PromptLookupDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.loading import DEFAULT_DRAFT, HEADS, Pair, load_pair, shipped
from specdec_ref.sampling import Sampling

SAMPLES = "samples.jsonl"
LENGTHS = {"short": 32, "medium": 128, "long": 512}


@dataclass(frozen=True)
class Configuration:
    """One way to decode.

    Attributes:
        name: name of the way.
        kind: 'baseline', 'fixed' (k steps of a draft model or head), 'one pass' (a parallel head, suffixes), 'tree',
            'lookup', 'adaptive' or 'cost model'.
        draft: name of the draft model or head; '' for 'lookup'.
        k: drafted tokens per round, at most.
    """

    name: str
    kind: str
    draft: str = ""
    k: int = 0

    def controller(self) -> Controller:
        """A new controller. As in a server, it serves all generations of this way in turn and learns from them."""
        if self.kind == "adaptive":
            from specdec_lab.teaching.heuristics import AdaptiveSpeculation

            return AdaptiveSpeculation(min_k=min(2, self.k), max_k=self.k)
        if self.kind == "cost model":
            from specdec_ref.control import CostModelSpeculation

            return CostModelSpeculation(max_k=self.k)
        return FixedK(self.k)


@dataclass(frozen=True)
class Settings:
    """The settings of a suite.

    Attributes:
        lengths: prompt lengths in tokens, by name.
        prompts: different prompts of each length.
        repeats: timed runs of each way on each prompt. A later run in the same folder may have more.
        max_new_tokens: of each generation.
        ks: fixed numbers of drafted tokens.
        adaptive: whether controllers take part, up to the largest k.
        sampling: of all generations.

    Raises:
        SpecdecError: a value is out of range.
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
        """Everything that two comparable samples must share: all settings but the number of repeats."""
        return {name: value for name, value in asdict(self).items() if name != "repeats"}


def load_drafts(
    target: str | None = None, draft: str | None = None, *, device: str | None = None, dtype: str | None = None
) -> dict[str, Pair]:
    """Pairs by the draft's name, all with the same target.

    Without a target and a draft: all shipped drafts and heads, their trees, and suffix decoding. Arguments and errors
    are those of `load_pair`.
    """
    first = load_pair(target, draft, device=device, dtype=dtype)
    if target is not None or draft is not None:
        return {Path(draft).name if draft else "": first}
    pairs = {DEFAULT_DRAFT: first}
    for name in shipped():
        if name in HEADS:
            pairs[name] = with_method(first, name)
        elif name not in ("target", DEFAULT_DRAFT):
            shipped_pair = load_pair(draft=name, device=device, dtype=dtype)
            pairs[name] = replace(first, draft=shipped_pair.draft)
    trees = ("tree", "head-tree") if "head" in pairs else ("tree",)
    return pairs | {name: with_method(first, name) for name in (*trees, "suffix")}


def configurations(models: Mapping[str, Pair], settings: Settings) -> tuple[Configuration, ...]:
    """All ways to decode: the baseline, each draft at each k, controllers with the first draft, prompt lookup."""
    drafts = [name for name, pair in models.items() if can_draft(pair)]
    ways = [Configuration("baseline", "baseline")]
    for name in drafts:
        kind = "fixed" if drafts_one_at_a_time(models[name]) else "tree" if is_tree(models[name]) else "one pass"
        ks = sorted({usual_k(models[name], k) for k in settings.ks}) if kind != "fixed" else settings.ks
        ways += [Configuration(f"{name} k={k}", kind, name, k) for k in ks]
        if settings.adaptive and name == drafts[0]:
            ways += [Configuration(kind, kind, name, max(settings.ks)) for kind in ("adaptive", "cost model")]
    ways += [Configuration(f"prompt lookup k={k}", "lookup", "", k) for k in settings.ks]
    return tuple(ways)


def run_suite(
    models: Pair | Mapping[str, Pair],
    settings: Settings | None = None,
    *,
    folder: Path | None = None,
    texts: Sequence[str] | None = None,
    on_step: Callable[[str, int, int], None] = lambda what, completed, total: None,
) -> SuiteResult:
    """Make the missing measurements, then compute the results of all samples.

    Args:
        models: a pair, or pairs by the draft's name that share one target.
        settings: see `Settings`.
        folder: the folder of samples.jsonl, which a later call continues; None stores nothing.
        texts: prompts are cut from these; default the held-out ones.
        on_step: called before each run with its name, how many runs are done, and of how many.

    Raises:
        SpecdecError: the folder has samples of other settings, models, versions or another machine.
    """
    settings = settings or Settings()
    pairs = {"draft": models} if isinstance(models, Pair) else dict(models)
    if not pairs or not all(isinstance(pair, Pair) for pair in pairs.values()):
        raise SpecdecError(f"models={models!r:.80}: takes a Pair, or pairs by the draft's name")
    first = next(iter(pairs.values()))
    if any(pair.target is not first.target for pair in pairs.values()):
        raise SpecdecError("models: their targets differ; takes pairs that share one target")
    largest = max(settings.lengths.values()) + settings.max_new_tokens
    if largest > min(pair.context for pair in pairs.values()):
        raise SpecdecError(f"lengths: with {settings.max_new_tokens} new tokens {largest}; the models hold fewer")
    ways = configurations(pairs, settings)
    prompts = {
        name: prompts_of_length(first.tokenizer, tokens, settings.prompts, texts)
        for name, tokens in settings.lengths.items()
    }
    modules = {name: draft_module(pair) for name, pair in pairs.items()}
    facts = {
        "settings": {**settings.facts(), "texts": _digest(prompts)},
        "target": model_facts(first.target),
        "drafts": {name: model_facts(module) for name, module in modules.items() if module is not None},
        "machine": machine_facts(first),
        "configurations": [asdict(way) for way in ways],
    }
    with Recording(folder / SAMPLES if folder else None, facts) as recording:
        tasks = list(_missing(recording.records, pairs, ways, settings))
        warmed_up: set[tuple[str, str]] = set()
        controllers = {way.name: way.controller() for way in ways}
        for num_done, task in enumerate(tasks):
            on_step(task.name, num_done, len(tasks))
            if task.way is None:
                recording.append(_costs(task.name, task.length, pairs[task.name], settings))
                continue
            way, controller = task.way, controllers[task.way.name]
            pair, prompt = pairs.get(way.draft, first), prompts[task.length][task.prompt]
            if (way.name, task.length) not in warmed_up:  # untimed, on the same prompt
                _timed(pair, way, controller, prompt, settings, task.repeat)
                warmed_up.add((way.name, task.length))
            sample = _timed(pair, way, controller, prompt, settings, task.repeat)
            recording.append({"kind": "sample", "config": way.name, **task.key(), **sample})
        return results_of(recording.facts, recording.records)


def load_suite(folder: Path) -> SuiteResult:
    """The results of the samples in a folder, without measuring. Raises SpecdecError if it has none."""
    return results_of(*read(folder / SAMPLES))


@dataclass(frozen=True)
class Task:
    """One thing to measure: a generation, or the step costs of a draft.

    Attributes:
        name: for the progress bar; for step costs, the draft.
        length: name of the prompt length.
        way: how to decode; None for step costs.
        prompt, repeat: which prompt and which repeat.
    """

    name: str
    length: str
    way: Configuration | None = None
    prompt: int = 0
    repeat: int = 0

    def key(self) -> Record:
        """A key that identifies the sample among those of its way."""
        return {"length": self.length, "prompt": self.prompt, "repeat": self.repeat}


def _missing(
    records: Sequence[Record], pairs: Mapping[str, Pair], ways: Sequence[Configuration], settings: Settings
) -> Iterator[Task]:
    """The measurements that are missing, in order: step costs first, then all ways in turn, prompt by prompt."""
    costs = {(r["draft"], r["length"]) for r in records if r["kind"] == "costs"}
    samples = {(r["config"], r["length"], r["prompt"], r["repeat"]) for r in records if r["kind"] == "sample"}
    for name, pair in pairs.items():
        for length in settings.lengths:
            if can_draft(pair) and (name, length) not in costs:
                yield Task(name, length)
    for repeat, length, prompt in product(range(settings.repeats), settings.lengths, range(settings.prompts)):
        order = list(ways)
        random.Random(f"{repeat} {length} {prompt}").shuffle(order)
        for way in order:
            if (way.name, length, prompt, repeat) not in samples:
                yield Task(f"{way.name}, {length}", length, way, prompt, repeat)


def _costs(name: str, length: str, pair: Pair, settings: Settings) -> Record:
    """Step costs of one draft at one prompt length, in the middle of the text to be generated."""
    max_k = max(settings.ks)
    context = max(1, min(settings.lengths[length] + settings.max_new_tokens // 2, pair.context - max_k - 1))
    costs = measure_costs(pair, max_k=max_k, context=context, sampling=settings.sampling)
    return {"kind": "costs", "draft": name, "length": length, **asdict(costs)}


def _timed(
    pair: Pair, way: Configuration, controller: Controller, prompt: Sequence[int], settings: Settings, seed: int
) -> Record:
    """One generation with the clock running, as a record."""
    watch = _FirstToken()
    if pair.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(pair.device)
    began = time.perf_counter()
    generation: Generation = generate_speculative(
        fresh(pair),
        prompt,
        k=controller,
        max_new_tokens=settings.max_new_tokens,
        sampling=settings.sampling,
        seed=seed,
        drafter=PromptLookupDrafter() if way.kind == "lookup" else None,
        monitor=watch,
    )
    seconds = time.perf_counter() - began
    rounds = generation.rounds
    drafted = Counter(r.depth for r in rounds)
    return {
        "seconds": seconds,
        "first_seconds": watch.at - began,
        "first_tokens": len(rounds[0].emitted),
        "tokens": len(generation.tokens),
        "accepted": sum(r.accepted for r in rounds),
        "examined": sum(r.examined for r in rounds),
        "drafted": sorted(drafted.items()),  # [drafted tokens or levels, number of such rounds]
        "draft_seconds": sum(r.draft_seconds for r in rounds),
        "memory": peak_memory(pair.device),
    }


class _FirstToken:
    """A monitor that records when the first round ends."""

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
    """A fingerprint of the prompts, so that other texts count as other settings."""
    return hashlib.sha256(repr(prompts).encode()).hexdigest()[:12]
