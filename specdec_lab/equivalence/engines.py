"""Samplers to test: our own loop with every drafting method, transformers' generation, vLLM, or your own.

Each is a `Sampler` for one way of sampling. `specdec_lab.equivalence.server_engine` samples from a server.
"""

import copy
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from specdec_lab.equivalence.sampler import Sampler, crash, function_of
from specdec_lab.measurement.methods import head_of
from specdec_ref import decoding
from specdec_ref.api import MODEL_DRAFTERS, TREE_DRAFTERS, verification_rule
from specdec_ref.beyond.suffix import SuffixDrafter
from specdec_ref.cache import FixedSlots, RewindableCache
from specdec_ref.control import as_controller
from specdec_ref.decoding import Controller
from specdec_ref.drafting import Drafter, ModelDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.fast.steps import PlainRunner
from specdec_ref.loading import Pair
from specdec_ref.models import TransformersModel, score_rows
from specdec_ref.sampling import Sampling, SeededRandomness

DRAFTING = "ours", "assisted", "vllm"
"""Engines that take k. The others have a schedule of their own, or do not draft."""
ENGINES = (
    *("ours", "autoregressive", "transformers", "assisted", "assisted-default"),
    *("openai:URL", "vllm", "module:attribute"),
)


A_PASS = 128
"""Scoring so many tokens costs as much as another forward pass. Rows are separated only where that saves more."""

MANY = 3_000
"""Rows of a batch where time matters: the more rows, the more of them begin alike. 4,000 were slower, and took 5 GB."""


class SharedWork(TransformersModel):
    """Scores rows once as long as they are alike, since a test samples thousands of texts after one prompt.

    The cache has one row for each history of tokens that were fed and rewound. Rows separate when their histories
    differ, and never join again, so every score is computed from that row's own history alone. A step of several
    tokens is split where rows begin alike and the split scores fewer tokens. The loop and the drafter see the usual
    rows. The cache's memory is used again by the next one of the same size.

    end: tokens from this position on are not scored (their logits are 0), since texts end there. None: all are scored.
    """

    end: int | None = None

    def start(self, batch: int, capacity: int) -> None:
        super().start(1, capacity)
        self._cache_row = torch.zeros(batch, dtype=torch.int64, device=self.device)  # [B], each row's row in the cache
        if batch > 1:  # shapes change at every step, so recording or capturing them would not pay
            self.cache = RewindableCache(1, capacity, self.device)
            self._runner = PlainRunner(self.cache)
        if getattr(self, "_size", None) != (batch, capacity):
            self._size = batch, capacity
            self._buffers: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: slots for as many rows as there can be

    @torch.inference_mode()
    def prefill(self, tokens: list[list[int]]) -> None:
        numbers = {row: i for i, row in enumerate(dict.fromkeys(map(tuple, tokens)))}
        which = torch.tensor([numbers[tuple(row)] for row in tokens], device=self.device)
        texts = [list(row) for row in numbers]
        super().prefill([texts[i] for i in self._separate(which[:, None])[:, 0].tolist()])

    @torch.inference_mode()
    def extend(self, tokens: Tensor) -> Tensor:
        if len(self._cache_row) == 1:
            return super().extend(tokens)
        if self.end is not None:
            at = torch.tensor(self.lengths(), device=self.device)[:, None]
            tokens = tokens.masked_fill(at + torch.arange(tokens.shape[1], device=self.device) >= self.end, 0)
        step = super().extend
        logits = [step(self._separate(piece))[self._cache_row] for piece in self._pieces(tokens)]
        return logits[0] if len(logits) == 1 else torch.cat(logits, 1)

    @torch.inference_mode()
    def extend_tree(self, tokens: Tensor, parents: Tensor) -> Tensor:
        n = tokens.shape[1]
        different = self._separate(torch.cat([tokens, parents.to(self.device) + 1], 1))
        end, self.end = self.end, None  # nodes are not in the order of their positions
        try:
            logits = super().extend_tree(different[:, :n], different[:, n:].cpu() - 1)
        finally:
            self.end = end
        return logits[self._cache_row]

    @torch.inference_mode()
    def keep_path(self, paths: list[list[int]]) -> None:
        longest = max(map(len, paths))
        padded = [[len(path), *path, *[0] * (longest - len(path))] for path in paths]
        different = self._separate(torch.tensor(padded, device=self.device))
        super().keep_path([path[1 : 1 + path[0]] for path in different.tolist()])

    @property
    def features(self) -> Tensor:
        """Hidden states of every row, [B, n, layers · d]."""
        return super().features[self._cache_row]

    def _pieces(self, tokens: Tensor) -> list[Tensor]:
        """Columns to score one after the other: rows that differ in a later column may be alike in earlier ones."""
        alike, counts, sizes = self._cache_row, [], [0]
        for column in tokens.unbind(1):
            alike = _refined(alike, column)
            counts.append(int(alike.max()) + 1)
            if len(counts) > 1 and (counts[-1] - counts[-2]) * sizes[-1] >= A_PASS:
                sizes.append(0)
            sizes[-1] += 1
        return list(tokens.split(sizes, 1))

    def rewind(self, lengths: list[int]) -> None:
        wanted = torch.tensor(lengths, device=self.device)[:, None]
        super().rewind(self._separate(wanted, rewinding=True)[:, 0].tolist())

    def keep(self, rows: list[int]) -> None:
        self._cache_row = self._cache_row[torch.tensor(rows, device=self.device)]

    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return [self.cache.lengths[i] for i in self._cache_row.tolist()]

    def _forward(
        self, cache: Any, tokens: Tensor, positions: Tensor, masks: tuple[Tensor, ...], keep_logits: int = 0
    ) -> Tensor:
        """The forward pass, in groups of adjacent rows with equally many tokens to score.

        Returns logits [B, n or keep_logits, V].
        """
        n = tokens.shape[1]
        if self.end is None or keep_logits or len(positions) == 1 or not cache.slots:
            return super()._forward(cache, tokens, positions, masks, keep_logits)
        whole = {layer: cache.window(layer) for layer in cache.slots}
        logits = torch.zeros(*tokens.shape, score_rows(self.model), dtype=self._dtype, device=self.device)
        for part, m in adjacent_rows((self.end - positions[:, 0]).clamp(0, n).tolist()):
            if m == 0:
                continue
            slots = {layer: (keys[part], values[part]) for layer, (keys, values) in whole.items()}
            few, where, masked = tokens[part, :m], positions[part, :m], tuple(mask[part, :, :m] for mask in masks)
            logits[part, :m] = super()._forward(FixedSlots(slots, where, cache.rows[: len(few)]), few, where, masked)
        return logits

    @torch.inference_mode()
    def _separate(self, doing: Tensor, rewinding: bool = False) -> Tensor:
        """Give rows that differ in their next action a cache row each.

        The first of those that come from one cache row stays there, so that little is copied. The others move to
        unused cache rows, the shortest first.

        Args:
            doing: [B, n] ≥ 0, what each row does next: the tokens that it feeds, or the length that it rewinds to.
            rewinding: whether `doing` are lengths.

        Returns:
            `doing` of each cache row, [cache rows, n].
        """
        alike = self._cache_row  # group numbers, ordered by cache row, then by action
        for column in doing.unbind(1):
            alike = _refined(alike, column)
        n = int(alike.max()) + 1
        example = alike.new_zeros(n).scatter_(
            0, alike, torch.arange(len(alike), device=self.device)
        )  # one row of each group
        sources, different = self._cache_row[example].tolist(), doing[example]
        staying = [i for i, s in enumerate(sources) if s < n and (i == 0 or sources[i - 1] != s)]  # they are sorted
        row_of = dict(zip(staying, (sources[i] for i in staying), strict=True))
        occupied = set(row_of.values())
        long = different[:, 0].tolist() if rewinding else [self.cache.lengths[source] for source in sources]
        moving = sorted((i for i in range(n) if i not in row_of), key=long.__getitem__)
        destinations = dict(zip(moving, (row for row in range(n) if row not in occupied), strict=True))
        moves = {row: sources[i] for i, row in destinations.items()}
        row_of |= destinations
        self._copy_rows(moves, n)
        order = torch.tensor([row_of[i] for i in range(n)], device=self.device)
        self._cache_row = order[alike]
        ordered = torch.empty_like(different)
        ordered[order] = different
        return ordered

    def _copy_rows(self, moves: dict[int, int], rows: int) -> None:
        """Copy cache rows, row → source, and keep the first `rows` of them."""
        cache, before = self.cache, self.cache.batch
        if not moves and rows == before:
            return
        lengths = [*cache.lengths, *[0] * max(0, rows - before)]
        for row, source in moves.items():
            lengths[row] = cache.lengths[source]
        cache.lengths, cache.batch = lengths[:rows], rows
        cache.rows = torch.arange(rows, device=self.device)[:, None]
        left = {row: source for row, source in moves.items() if row < before}  # onto unused rows
        new = [source for _, source in sorted(moves.items() - left.items())]  # for the rows from `before` on
        to, origin, new_origin = (
            torch.tensor(list(x), dtype=torch.int64, device=self.device) for x in (left, left.values(), new)
        )
        for layer, slots in cache.slots.items():
            known = self._buffers.get(layer)
            if known is None or known[0].shape[1:] != slots[0].shape[1:]:  # trees make a cache grow
                keys, values = (t.new_zeros(self._size[0], *t.shape[1:]) for t in slots)
                self._buffers[layer] = keys, values
            for buffer, present in zip(self._buffers[layer], slots, strict=True):
                if present.data_ptr() != buffer.data_ptr():
                    buffer[: len(present)] = present
                if left:
                    buffer.index_copy_(0, to, buffer.index_select(0, origin))
                if new:
                    flat = buffer.flatten(1)
                    torch.index_select(flat[:before], 0, new_origin, out=flat[before : before + len(new)])
            keys, values = self._buffers[layer]
            cache.slots[layer] = keys[:rows], values[:rows]


def _refined(alike: Tensor, doing: Tensor) -> Tensor:
    """Number groups of rows, [B]: rows with the same number so far and the same next action get the same new number.

    The new numbers are ordered by the old ones, then by the action.
    """
    numbers: Tensor = (alike * (int(doing.max()) + 1) + doing).unique(return_inverse=True)[1]
    return numbers


def adjacent_rows(needed: list[int]) -> list[tuple[slice, int]]:
    """Adjacent rows that are scored in one pass, and how many tokens of each: the most that any of them needs."""
    groups: list[tuple[slice, int]] = []
    first = 0
    for largest, rows in groupby(needed):
        here, m = slice(first, first := first + len(list(rows))), largest
        if groups:
            before, m = groups[-1]
            wasted = abs(largest - m) * (before.stop - before.start if largest > m else here.stop - here.start)
            if wasted < A_PASS:
                groups[-1] = slice(before.start, here.stop), max(largest, m)
                continue
        groups.append((here, largest))
    return groups


def shared_models(pair: Pair, drafter: Drafter | None, max_k: int) -> tuple[SharedWork, Drafter | None]:
    """The target and the drafter of one sampler, on models that share work.

    Args:
        pair: has the target, and the drafter or draft model that is used without `drafter`.
        drafter: any drafting method, or None.
        max_k: the most tokens that are drafted per round; 0 needs no drafter.

    Raises:
        SpecdecError: nothing can draft.
    """
    drafter = drafter or pair.drafter
    head = head_of(drafter)
    if head is not None:
        target = SharedWork(pair.target, feature_layers=head.target.feature_layers)
        head = head.with_target(target)
        return target, drafter.with_model(head) if isinstance(drafter, TREE_DRAFTERS) else head
    target = SharedWork(pair.target)
    if isinstance(drafter, MODEL_DRAFTERS) and isinstance(drafter.model, TransformersModel):
        return target, drafter.with_model(SharedWork(drafter.model.model, target.vocab_size))
    if drafter is None and max_k:
        if pair.draft is None:
            raise SpecdecError("draft: this pair has no draft model; name one, or pass a drafter or k=0")
        return target, ModelDrafter(SharedWork(pair.draft, target.vocab_size))
    return target, drafter


class OurLoop:
    """Our decoding loop, in batches, without end tokens.

    It runs `decoding.speculate` as it is when `sample` is called, so the test also sees a wrong version that was put in
    its place.

    Args:
        pair: the models.
        k: a number or a controller.
        sampling: default temperature 1.
        drafter: any drafting method; default the pair's draft model.
        batch: rows to decode at a time.
        verification: 'token' or 'block', as in `generate_speculative`.

    Raises:
        SpecdecError: nothing can draft, or block verification was asked for with a drafter of trees.
    """

    def __init__(
        self,
        pair: Pair,
        k: int | Controller = 2,
        sampling: Sampling | None = None,
        drafter: Drafter | None = None,
        batch: int = 2_000,
        verification: str = "token",
    ):
        self.sampling = Sampling() if sampling is None else sampling
        self.batch = batch
        self.controller = as_controller(k)
        self.verify = verification_rule(verification)
        if verification != "token" and isinstance(drafter, TREE_DRAFTERS):
            raise SpecdecError(
                f"verification={verification!r}: a tree of candidates has a rule of its own; takes 'token'"
            )
        self.target, self.drafter = shared_models(pair, drafter, self.controller.max_k)
        self.context = pair.context
        drafted = f"k = {self.controller.max_k}" if self.controller.max_k else "autoregressive"
        self.name = f"our loop, {drafted}"
        if verification != "token":
            self.name += f", {verification} verification"

    def sample(self, prompt: Sequence[int], number: int, length: int, seed: int) -> Tensor:
        rows = [decoding.Row(tuple(prompt), length) for _ in range(number)]
        randomness = SeededRandomness(seed, self.target.device)
        self.target.end = len(prompt) + length - 1  # no scores are needed after the last token of a text
        for model in (self.target, getattr(self.drafter, "model", None)):
            if isinstance(model, SharedWork):
                model.final_lengths = [len(prompt) + length]
        drafter = self.drafter
        if isinstance(drafter, SuffixDrafter):  # it remembers texts, but equal seeds have to give equal samples
            drafter = copy.deepcopy(drafter)
        loop = decoding.speculate(
            self.target,
            drafter,
            list(rows),
            self.controller,
            self.sampling,
            randomness,
            context=self.context,
            verify=self.verify,
        )
        for _ in loop:
            pass
        return torch.tensor([row.new for row in rows])


def autoregressive(pair: Pair, sampling: Sampling | None = None, batch: int = 2_000) -> OurLoop:
    """Our loop one token at a time: the baseline, which is consistent with the target if the test itself is right."""
    return OurLoop(pair, 0, sampling, batch=batch)


class TransformersGenerate:
    """transformers' own `generate`, in batches, with every other processor of logits switched off."""

    name = "transformers generate"

    def __init__(self, pair: Pair, sampling: Sampling | None = None, batch: int = 500):
        self.sampling = Sampling() if sampling is None else sampling
        self.batch = batch
        self.eos = pair.eos
        self.target = _with_plain_generation(pair.target, pair.eos)

    def sample(self, prompt: Sequence[int], number: int, length: int, seed: int) -> list[list[int]]:
        return _generate(self.target, [list(prompt)] * number, length, self.sampling, seed)


class TransformersAssisted:
    """transformers' assisted generation, one sequence at a time, which makes it slow.

    tokens: drafted per round, in every round; None: transformers' own schedule and confidence threshold.
    """

    def __init__(self, pair: Pair, sampling: Sampling | None = None, tokens: int | None = None, batch: int = 50):
        if pair.draft is None:
            raise SpecdecError("draft: this pair has no draft model, and assisted generation needs one")
        if tokens is not None and (not is_whole(tokens) or tokens < 1):
            raise SpecdecError(
                f"tokens={tokens!r:.80}: takes a whole number ≥ 1, or None for transformers' own schedule"
            )
        self.name = "transformers assisted" + (", its own schedule" if tokens is None else f", k = {tokens}")
        self.sampling = Sampling() if sampling is None else sampling
        self.batch = batch
        self.eos = pair.eos
        self.target = _with_plain_generation(pair.target, pair.eos)
        self.assistant = _with_plain_generation(pair.draft, pair.eos)
        if tokens is not None:  # on the assistant's configuration: on the target's they are ignored
            self.assistant.generation_config.num_assistant_tokens = tokens
            self.assistant.generation_config.num_assistant_tokens_schedule = "constant"
            self.assistant.generation_config.assistant_confidence_threshold = 0.0

    def sample(self, prompt: Sequence[int], number: int, length: int, seed: int) -> list[list[int]]:
        seeds = torch.randint(2**31, (number,), generator=torch.Generator().manual_seed(seed)).tolist()
        run = partial(_generate, self.target, [list(prompt)], length, self.sampling, assistant_model=self.assistant)
        return [run(seed=own)[0] for own in seeds]


def _generate(
    target: Any, prompts: list[list[int]], length: int, sampling: Sampling, seed: int, **more: Any
) -> list[list[int]]:
    """New tokens of each row by `target.generate`. Leaves torch's own stream of random numbers as it was."""
    options: dict[str, Any] = {"do_sample": not sampling.greedy, "max_new_tokens": length} | more
    if not sampling.greedy:
        options |= {"temperature": float(sampling.temperature), "top_k": int(sampling.top_k or 0)}
        options |= {"top_p": float(sampling.top_p or 1.0)}
    ids = torch.tensor(prompts, device=target.device)
    with torch.random.fork_rng(devices=[target.device] if target.device.type == "cuda" else []):
        torch.manual_seed(seed)
        out = target.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return out[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


def _with_plain_generation(model: Any, eos: frozenset[int]) -> Any:
    """The same model with an empty generation configuration: no penalties, no top-k or top-p of its own."""
    from transformers import GenerationConfig

    plain = copy.copy(model)
    plain.generation_config = GenerationConfig(pad_token_id=min(eos, default=0), eos_token_id=sorted(eos) or None)
    return plain


class VLLM:
    """vLLM in this process. model: a folder or hub name. options: for `vllm.LLM`, e.g. `speculative_config`."""

    name = "vLLM"

    def __init__(self, model: str, sampling: Sampling | None = None, batch: int = 1_000, **options: Any):
        try:
            vllm: Any = import_module("vllm")
        except ImportError as error:
            raise SpecdecError(
                f"vllm: cannot be imported here ({error}); pip install vllm, or --engine openai:URL"
            ) from error
        self.sampling = Sampling() if sampling is None else sampling
        self.batch = batch
        self._vllm = vllm
        # 'vllm' and not 'auto': else the model's generation_config cuts with a top-k and top-p of its own
        # and on a CPU it would ask for nine tenths of the machine's memory
        modest = {} if torch.cuda.is_available() else {"gpu_memory_utilization": 0.5}
        try:
            self._model = vllm.LLM(model=model, **({"generation_config": "vllm"} | modest | options))
        except Exception as error:
            raise SpecdecError(f"vllm: does not start with {model}: {crash(error)}") from error

    def sample(self, prompt: Sequence[int], number: int, length: int, seed: int) -> list[list[int]]:
        parameters = self._vllm.SamplingParams(
            n=number,
            max_tokens=length,
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k or -1,
            top_p=self.sampling.top_p or 1.0,
            seed=seed if torch.cuda.is_available() else None,  # vLLM 0.32 on CPUs breaks off at some seeded requests
            ignore_eos=True,
            detokenize=False,
        )
        (output,) = self._model.generate([{"prompt_token_ids": list(prompt)}], parameters, use_tqdm=False)
        return [list(completion.token_ids) for completion in output.outputs]


def engine_by_name(
    name: str,
    pair: Pair,
    *,
    k: int = 2,
    sampling: Sampling | None = None,
    model: str | None = None,
    verification: str = "token",
    drafter: str = "draft",
) -> Sampler:
    """The sampler that the command line calls `name`.

    Args:
        name: one of `ENGINES`. A `module:attribute` is called with (pair, sampling) and returns a sampler.
        pair: the models. vLLM drafts with the pair's draft.
        k: tokens drafted per round, by the engines in `DRAFTING`. 'assisted-default' has transformers' own schedule
            and confidence threshold.
        sampling: default temperature 1.
        model: the target's name on the server or for vLLM.
        verification: 'token' or 'block', for 'ours' alone.
        drafter: the drafting method, for 'ours' alone; see `drafter_by_name`.

    Raises:
        SpecdecError: an unknown name.
    """
    from specdec_lab.equivalence.drafters import drafter_by_name
    from specdec_lab.equivalence.server_engine import OpenAICompletions

    kind, _, rest = name.partition(":")
    known: dict[str, Callable[[], Sampler]] = {
        "ours": lambda: named(OurLoop(pair, k, sampling, drafter_by_name(drafter, pair), MANY, verification), drafter),
        "autoregressive": lambda: autoregressive(pair, sampling, batch=MANY),
        "transformers": lambda: TransformersGenerate(pair, sampling),
        "assisted": lambda: TransformersAssisted(pair, sampling, k),
        "assisted-default": lambda: TransformersAssisted(pair, sampling),
        "vllm": lambda: _vllm(pair, k, sampling, model),
    }
    if name in known:
        return known[name]()
    if kind == "openai" and rest:
        return OpenAICompletions(rest, sampling, model=model, eos=pair.eos, api_key=os.environ.get("OPENAI_API_KEY"))
    if not kind or not rest or kind == "openai":
        raise SpecdecError(f"engine={name!r:.80}: takes one of {', '.join(ENGINES)}")
    return _imported_sampler(name, pair, sampling)


def named(loop: OurLoop, drafter: str) -> OurLoop:
    """The same loop. Its name includes the drafter, unless that is the draft model."""
    if drafter != "draft":
        loop.name += f", {drafter}"
    return loop


def _vllm(pair: Pair, k: int, sampling: Sampling | None, model: str | None) -> Sampler:
    """vLLM with the pair's target and, where there is one, its draft."""
    options: dict[str, Any] = {"dtype": str(pair.target.dtype).removeprefix("torch.")}
    if pair.draft is not None:
        draft = str(pair.draft.config._name_or_path)
        if not draft:
            raise SpecdecError("draft: vLLM takes a folder or a hub name, and this draft was loaded from neither")
        options["speculative_config"] = {
            "method": "draft_model",
            "model": draft,
            "num_speculative_tokens": k,
            "draft_sample_method": "probabilistic",  # sampled from q, as our loop does
        }
    return VLLM(model or str(pair.target.config._name_or_path), sampling, **options)


def _imported_sampler(name: str, pair: Pair, sampling: Sampling | None) -> Sampler:
    """The sampler that a `module:attribute` returns for (pair, sampling)."""
    module, _, attribute = name.partition(":")
    try:
        make = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecdecError(f"engine={name!r:.80}: cannot be imported: {error}") from error
    if not callable(make):
        raise SpecdecError(f"engine={name!r:.80}: is no function; takes one of (pair, sampling) that gives a sampler")
    try:
        sampler = make(pair, sampling)
    except SpecdecError:
        raise
    except Exception as error:
        raise SpecdecError(f"engine={name!r:.80}: its function failed: {crash(error)}") from error
    function_of(sampler)
    return sampler  # type: ignore[no-any-return]
