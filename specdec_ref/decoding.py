"""The loop: draft k tokens, score them all in one step of the target, keep what the rule accepts, add one token more.

`speculate` is the whole method; the rest of the file is arguments and results. It serves every case: autoregressive
decoding is k = 0, greedy decoding is temperature 0, one prompt is a batch of one. At the start of a round each model's
cache holds all tokens of a row but the last one or two, and the round feeds those first. Rejected tokens leave by
rewinding, so nothing ever sees them again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from specdec_ref.acceptance import verify
from specdec_ref.control import Controller, Round, as_controller
from specdec_ref.drafting import Draft, Drafter, ModelDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.models import LanguageModel, Pair, TransformersModel
from specdec_ref.sampling import Randomness, Sampling, SeededRandomness

if TYPE_CHECKING:
    from specdec_ref.monitoring import Watcher

Prompt = str | Sequence[int]

ROUNDING = 0.01
"""What the sum of q may be off one: probabilities in bfloat16 are rounded by 0.4 %."""


@dataclass
class Row:
    """A sequence that grows. finish: '' while it does, then 'eos', 'stop', 'length', 'context' or 'interrupted'."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    new: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    finish: str = ""

    @property
    def sequence(self) -> list[int]:
        """Prompt and new tokens."""
        return [*self.prompt, *self.new]

    def add(self, tokens: list[int], eos: frozenset[int], limit: int) -> tuple[int, ...]:
        """Append what still belongs to the generation, an end token included. Returns what was appended."""
        tokens = tokens[: min(self.max_new_tokens - len(self.new), limit - len(self.prompt) - len(self.new))]
        end = next((i for i, token in enumerate(tokens) if token in eos), None)
        if end is not None:
            tokens, self.finish = tokens[: end + 1], "eos"
        self.new += tokens
        if not self.finish and len(self.new) == self.max_new_tokens:
            self.finish = "length"
        if not self.finish and len(self.prompt) + len(self.new) == limit:
            self.finish = "context"
        return tuple(tokens)


@torch.inference_mode()
def speculate(
    target: LanguageModel,
    drafter: Drafter | None,
    rows: list[Row],
    controller: Controller,
    sampling: Sampling,
    randomness: Randomness,
    eos: frozenset[int] = frozenset(),
    context: int | None = None,
) -> Iterator[list[Row]]:
    """Decode `rows` in place, as one batch, until each has a `finish`. Yields after every round the rows it extended.

    context: tokens that the models can hold; default the target's. The last emitted token need not be held.
    """
    context, size = context or target.context, target.vocab_size
    nothing = Draft(torch.empty(len(rows), 0, dtype=torch.int64, device=target.device))
    clock = _Clock(target.device)
    capacity = min(context, max(len(r.prompt) + r.max_new_tokens for r in rows) + controller.max_k)
    parts = [part for part in (target, drafter) if part is not None]
    for part in parts:
        part.start(len(rows), capacity)
    target.prefill([list(row.prompt[:-1]) for row in rows])

    while rows:
        sequences = [row.sequence for row in rows]
        asked, most = controller.next_k(), controller.max_k
        if not is_whole(asked) or not 0 <= asked <= most:
            raise SpecdecError(f"k: the controller's next_k gave {asked!r:.80}; takes a whole number, 0 … {most}")
        fits = min(asked, context - max(map(len, sequences)))
        useful = [row.max_new_tokens - len(row.new) - 1 for row in rows]  # one token is not the draft's
        k = min(fits, max(useful))

        started = clock.now()
        draft = drafter.propose(sequences, k, sampling, randomness) if drafter else nothing
        if not isinstance(draft, Draft):
            raise SpecdecError(f"drafter: its propose gave {draft!r:.80}; takes a Draft")
        draft.check(len(rows), k, size)
        drafted = draft.tokens.to(target.device)
        draft = replace(draft, tokens=drafted.clamp(0, size - 1))  # reported when the host may look
        if min(useful) < k:
            draft = draft.up_to(torch.tensor(useful).to(target.device, non_blocking=True))
        after_draft = clock.now()
        target.rewind([len(s) - 1 for s in sequences])
        last = torch.tensor([s[-1:] for s in sequences]).to(target.device, non_blocking=True)
        more = fits - k if len(rows) == 1 else 0  # a sequence's last steps stay as long: a new shape would be slow
        logits = target.extend(torch.cat([last, draft.tokens, last.expand(-1, more)], 1))
        p = sampling.probabilities(logits[:, : draft.tokens.shape[1] + 1])  # row i: after i drafted tokens
        q = draft.distribution(size, p)
        verdict = verify(p, q, draft.tokens, randomness)
        after_verify = clock.now()

        # The only time in a round that the host waits for the device.
        meant = draft.meant().to(target.device)
        mass = q.sum(-1)
        is_meant = torch.arange(mass.shape[1], device=mass.device) < meant[:, None]
        off = (mass - is_meant.to(mass)).abs() > ROUNDING
        broken = torch.stack([p.sum((1, 2)).isnan(), mass.sum(1).isnan(), off.any(1)], 1)
        counts = torch.stack([verdict.accepted, verdict.next_token, meant], 1)
        outcome = torch.cat([counts, broken, drafted], 1).tolist()
        seconds = clock.between(started, after_draft), clock.between(after_draft, after_verify)
        for row, (accepted, next_token, n, p_broken, q_broken, q_off, *tokens) in zip(rows, outcome, strict=True):
            if not 0 <= n <= len(tokens):
                raise SpecdecError(f"drafter: its lengths hold {n}; takes 0 … {len(tokens)}, the tokens of a row")
            if unknown := [token for token in tokens[:n] if not 0 <= token < size]:
                raise SpecdecError(f"drafter: token id {unknown[0]} is not in the vocabulary, 0 … {size - 1}")
            if p_broken or q_broken:
                who = "target" if p_broken else "draft"
                raise SpecdecError(f"{who}: its logits hold NaN or infinity, nothing to draw")
            if q_off:
                raise SpecdecError("drafter: its probabilities do not sum to one; takes what each token was drawn from")
            emitted = row.add([*tokens[:accepted], next_token], eos, context + 1)
            row.rounds.append(Round(tuple(tokens[:n]), accepted, emitted, *seconds))
        controller.observe([row.rounds[-1] for row in rows])
        yield rows

        active = [i for i, row in enumerate(rows) if not row.finish]
        if active and len(active) < len(rows):
            nothing = Draft(nothing.tokens[: len(active)])
            for part in parts:
                part.keep(active)
        rows = [rows[i] for i in active]


class _Clock:
    """Time marks that do not make the host wait: device events on CUDA, the host's clock elsewhere."""

    def __init__(self, device: torch.device):
        self._device = device if device.type == "cuda" else None

    def now(self) -> Any:
        if self._device is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds; on CUDA only after the host has waited for `end`."""
        return float(start.elapsed_time(end)) / 1e3 if self._device else float(end - start)


@dataclass(frozen=True)
class Generation:
    """What was generated after one prompt.

    tokens: the new ids, with the end token where there was one. text: the new text, without it and without a stop
    string. finish: 'length', 'eos', 'stop', 'context' or 'interrupted'. seconds: wall clock of the whole call, prefill
    included, shared by all rows of a batch.
    """

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    rounds: tuple[Round, ...]
    seconds: float
    finish: str

    @property
    def tokens_per_second(self) -> float:
        """New tokens of this row / seconds."""
        return len(self.tokens) / self.seconds if self.seconds > 0 else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / judged tokens, over all rounds; a round judges up to its first rejection. NaN where none was.

        This estimates α = Σ min(p, q). Accepted / drafted does not: it falls as k grows.
        """
        accepted = sum(r.accepted for r in self.rounds)
        judged = sum(min(r.accepted + 1, len(r.drafted)) for r in self.rounds)
        return accepted / judged if judged else float("nan")

    @property
    def tokens_per_round(self) -> float:
        """Emitted tokens / rounds: what one step of the target bought. NaN where there was no round."""
        return sum(len(r.emitted) for r in self.rounds) / len(self.rounds) if self.rounds else float("nan")


@dataclass(frozen=True)
class Chunk:
    """What one round added to a stream: the text that is now certain (it may be empty), and the round itself."""

    text: str
    round: Round


def generate_autoregressive(
    pair: Pair,
    prompt: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    monitor: "Watcher | None" = None,
) -> Any:
    """One token per step of the target: the baseline. Exactly `generate_speculative` with k = 0."""
    return generate_speculative(
        pair, prompt, k=0, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop, monitor=monitor
    )


def generate_speculative(
    pair: Pair,
    prompt: Prompt | Sequence[Prompt],
    *,
    k: int | Controller = 4,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    drafter: Drafter | None = None,
    monitor: "Watcher | None" = None,
) -> Any:
    """Generate with draft and verify; the tokens have exactly the target's distribution, whatever the draft.

    prompt: text, token ids, or a list of either. Returns a `Generation`; for a list, a list of them, decoded as one
    batch; for an empty list, []. k: tokens drafted per round (0: none), or a controller. max_new_tokens: for each row,
    ≥ 0; the models' context bounds a row too (finish 'context'), and memory is taken as rows grow. sampling: default
    `Sampling()`, temperature 1. seed: the same seed on the same device gives the same tokens; None: a new one each
    time. stop: strings that end a generation. drafter: default the pair's draft model. monitor: is shown every round.
    Raises SpecdecError for arguments it cannot use. Leviathan et al. 2022, algorithm 1.
    """
    many = not isinstance(prompt, str) and not _is_ids(prompt)
    listed = isinstance(prompt, Sequence) or (isinstance(prompt, torch.Tensor) and prompt.ndim > 0)
    if many and (not listed or isinstance(prompt, bytes)):
        raise SpecdecError(f"prompt={prompt!r:.80}: takes text, token ids, or a list of either")
    prompts = prompt if many else [prompt]
    job = _Job(pair, prompts, k, max_new_tokens, sampling, seed, stop, drafter, monitor)  # type: ignore[arg-type]
    for _ in job.run():
        pass
    return job.generations() if many else job.generations()[0]


def stream_speculative(
    pair: Pair,
    prompt: Prompt,
    *,
    k: int | Controller = 4,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    drafter: Drafter | None = None,
    monitor: "Watcher | None" = None,
    on_end: Callable[[Generation], None] = lambda generation: None,
) -> Iterator[Chunk]:
    """The same, as it happens: a `Chunk` per round, whose texts add up to the text. Takes one prompt.

    What may become a stop string, or is half a character, is held back until it is certain. on_end gets the whole
    `Generation`, with finish 'interrupted' where the stream was closed early. Arguments are checked at the call, which
    raises SpecdecError for those it cannot use.
    """
    if not isinstance(prompt, str) and not _is_ids(prompt):
        raise SpecdecError("prompt: a stream takes one prompt, text or token ids, not a list of prompts")
    if not callable(on_end):
        raise SpecdecError(f"on_end={on_end!r:.80}: takes a function of one Generation")
    return _stream(_Job(pair, [prompt], k, max_new_tokens, sampling, seed, stop, drafter, monitor), on_end)


def _stream(job: "_Job", on_end: Callable[[Generation], None]) -> Iterator[Chunk]:
    row, told = job.rows[0], 0
    try:
        for _ in job.run():
            text = job.certain_text(row)
            yield Chunk(text[told:], row.rounds[-1])
            told = max(told, len(text))
    finally:
        on_end(job.generations()[0])


class _Job:
    """One call: arguments checked at the door, rows decoded, stop strings looked for, results handed out."""

    def __init__(
        self,
        pair: Pair,
        prompts: Sequence[Prompt],
        k: int | Controller,
        max_new_tokens: int,
        sampling: Sampling | None,
        seed: int | None,
        stop: str | Sequence[str],
        drafter: Drafter | None,
        monitor: "Watcher | None",
    ):
        if not isinstance(pair, Pair):
            raise SpecdecError(f"pair={pair!r:.80}: takes a Pair, which load_pair() gives")
        self.tokenizer, self.eos = pair.tokenizer, pair.eos
        self.sampling = Sampling() if sampling is None else sampling
        if not isinstance(self.sampling, Sampling):
            raise SpecdecError(f"sampling={sampling!r:.80}: takes a Sampling(temperature=…, top_k=…, top_p=…)")
        if not is_whole(max_new_tokens) or max_new_tokens < 0:
            raise SpecdecError(f"max_new_tokens={max_new_tokens!r:.80}: takes a whole number ≥ 0")
        self.stops = tuple(stop) if isinstance(stop, Sequence) and not isinstance(stop, str) else (stop,)
        if not all(isinstance(s, str) and s for s in self.stops):
            raise SpecdecError(f"stop={stop!r:.80}: takes a non-empty string or a list of them")
        self.controller = as_controller(k)
        if monitor is not None:
            if isinstance(monitor, type) or not hasattr(monitor, "watch"):
                raise SpecdecError(f"monitor={monitor!r:.80}: takes a SpeculativeDecodingMonitor(), or None")
            self.controller = monitor.watch(self.controller)
        self.target = TransformersModel(pair.target)
        if self.target.device.type == "meta":
            raise SpecdecError("target: is on device meta, which holds no numbers; takes a loaded model")
        self.context = self.target.context
        if self.controller.max_k >= self.context:
            raise SpecdecError(f"k={self.controller.max_k}: takes less than the context, {self.context} tokens")
        self.drafter = drafter
        verbs = ("start", "propose", "keep")
        if drafter is not None and (isinstance(drafter, type) or not all(hasattr(drafter, verb) for verb in verbs)):
            takes = "takes a Drafter (start, propose, keep), for instance PromptLookupDrafter(), or None"
            raise SpecdecError(f"drafter={drafter!r:.80}: {takes}")
        if drafter is None and self.controller.max_k > 0:
            if pair.draft is None:
                raise SpecdecError("drafter: this pair has no draft model; pass drafter=PromptLookupDrafter() or k=0")
            self.drafter = ModelDrafter(TransformersModel(pair.draft, self.target.vocab_size))
        if isinstance(self.drafter, ModelDrafter):
            model, ours = self.drafter.model, self.target.vocab_size
            if model.device != self.target.device:
                raise SpecdecError(f"draft: is on {model.device}, the target on {self.target.device}; takes one device")
            self.context = min(self.context, model.context)
            if model.vocab_size > ours and isinstance(model, TransformersModel):  # not to propose its own padding
                self.drafter = ModelDrafter(TransformersModel(model.model, ours), self.drafter.min_confidence)
        self.rows = [Row(self._ids(prompt), max_new_tokens) for prompt in prompts]
        lengths = [min(self.context, len(row.prompt) + max_new_tokens) for row in self.rows]
        self.target.final_lengths = lengths
        if isinstance(self.drafter, ModelDrafter) and isinstance(self.drafter.model, TransformersModel):
            self.drafter.model.final_lengths = lengths
        self.randomness = SeededRandomness(seed, self.target.device)
        self.seconds = 0.0

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            try:
                ids = self.tokenizer(prompt)["input_ids"]
            except (TypeError, UnicodeError) as error:  # half a surrogate pair is a str that is no text
                raise SpecdecError(f"prompt={prompt!r:.80}: cannot be turned into tokens, is it text?") from error
        elif _is_ids(prompt):
            ids = [int(token) for token in prompt]
        else:
            raise SpecdecError(f"prompt={prompt!r:.80}: takes text, token ids, or a list of either")
        size = self.target.vocab_size
        if wrong := [i for i in ids if not 0 <= i < size]:
            raise SpecdecError(f"prompt: token id {wrong[0]} is not in the vocabulary, 0 … {size - 1}")
        if not ids:
            raise SpecdecError("prompt: is empty; takes at least one token (the tokenizer's end-of-text token will do)")
        if len(ids) > self.context:
            raise SpecdecError(f"prompt: {len(ids)} tokens, but the models hold at most {self.context}")
        return tuple(ids)

    def run(self) -> Iterator[None]:
        """Rounds, until every row has finished or the caller has had enough."""
        began = time.perf_counter()
        rows = self.rows if self.rows and self.rows[0].max_new_tokens else []
        how = self.controller, self.sampling, self.randomness, self.eos, self.context
        try:
            for extended in speculate(self.target, self.drafter, rows, *how) if rows else ():
                for row in extended if self.stops else ():
                    self._cut_at_stop(row)
                self.seconds = time.perf_counter() - began
                yield
        finally:
            self.seconds = time.perf_counter() - began
            for row in self.rows:
                row.finish = row.finish or ("interrupted" if rows else "length")

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode([t for t in tokens if t not in self.eos], skip_special_tokens=True))

    def _cut_at_stop(self, row: Row) -> None:
        """End a row at the first token that completes a stop string, also in the middle of a round."""
        if not any(s in self._text(row.new) for s in self.stops):
            return
        last = row.rounds[-1]
        emitted, before = last.emitted, len(row.new) - len(last.emitted)
        n = next(
            n for n in range(1, len(emitted) + 1) if any(s in self._text(row.new[: before + n]) for s in self.stops)
        )
        row.new, row.finish = row.new[: before + n], "stop"
        row.rounds[-1] = replace(last, emitted=emitted[:n])

    def certain_text(self, row: Row) -> str:
        """The text that no later token can change."""
        text = self._text(row.new)
        if row.finish:
            return self._without_stop(text)
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # half a character
        held = max((n for s in self.stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return text[: len(text) - held]

    def _without_stop(self, text: str) -> str:
        return text[: min((text.find(s) for s in self.stops if s in text), default=len(text))]

    def generations(self) -> list[Generation]:
        return [
            Generation(
                row.prompt,
                tuple(row.new),
                self._without_stop(self._text(row.new)),
                tuple(row.rounds),
                self.seconds,
                row.finish,
            )
            for row in self.rows
        ]


def _is_ids(prompt: object) -> bool:
    """Whether this is one prompt of token ids: a 1-D tensor, or a non-empty list of whole numbers."""
    if isinstance(prompt, torch.Tensor):
        return prompt.ndim == 1 and prompt.dtype in (torch.int64, torch.int32)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        return False
    return len(prompt) > 0 and all(is_whole(token) for token in prompt)
