"""The functions for users: text in, text out. They check the arguments, and `decoding.speculate`
decodes."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast, overload

import torch

from specdec_ref.acceptance import Verify, verify
from specdec_ref.beyond.block import verify_block
from specdec_ref.beyond.heads import HeadDrafter, ParallelHeadDrafter
from specdec_ref.beyond.trees import BestFirstDrafter, TreeDrafter
from specdec_ref.control import as_controller
from specdec_ref.decoding import Controller, Round, Row, speculate
from specdec_ref.drafting import Drafter, ModelDrafter
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.loading import Pair
from specdec_ref.models import TransformersModel
from specdec_ref.sampling import Sampling, SeededRandomness

TREE_DRAFTERS = TreeDrafter, BestFirstDrafter
MODEL_DRAFTERS = ModelDrafter, *TREE_DRAFTERS
HEAD_DRAFTERS = HeadDrafter, ParallelHeadDrafter
"""Drafters with a draft model or a head, for which device, vocabulary and context are checked."""

Prompt = str | Sequence[int]
"""Text or token ids. A 1-D tensor of ids works too."""

VERIFICATIONS: dict[str, Verify] = {"token": verify, "block": verify_block}
"""The verification rules by name."""


def verification_rule(verification: str) -> Verify:
    """The rule of that name, one of `VERIFICATIONS`. Raises SpecdecError for any other value."""
    if not isinstance(verification, str) or verification not in VERIFICATIONS:
        raise SpecdecError(f"verification={verification!r:.80}: takes 'token' or 'block'")
    return VERIFICATIONS[verification]


class Watcher(Protocol):
    """Receives every round, by wrapping the controller of the loop."""

    def watch(self, controller: Controller) -> Controller:
        """A controller that makes the same choices, and reports the rounds that it observes."""
        ...


@dataclass(frozen=True)
class Generation:
    """The generation for one prompt.

    Attributes:
        prompt_tokens: ids of the prompt.
        tokens: the new ids, including the end token if there was one.
        text: the new text, without the end token and without a stop string.
        rounds: one `Round` for each step of the target.
        seconds: wall clock of the whole call, prefill included, shared by all rows of a batch.
        finish: 'length', 'eos', 'stop', 'context' or 'interrupted'.
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
        """Accepted / examined tokens over all rounds; NaN without examined tokens.

        A round examines its tokens up to the first rejection. With token verification this rate
        estimates α = Σ min(p, q). Accepted / drafted does not, since it falls as k grows. In a tree
        the siblings at one position count as one token, which is accepted if one of them was.
        """
        accepted = sum(r.accepted for r in self.rounds)
        examined = sum(r.examined for r in self.rounds)
        return accepted / examined if examined else float("nan")

    @property
    def tokens_per_round(self) -> float:
        """Emitted tokens / rounds, that is, tokens per step of the target. NaN without rounds."""
        return (
            sum(len(r.emitted) for r in self.rounds) / len(self.rounds)
            if self.rounds
            else float("nan")
        )


@dataclass(frozen=True)
class Chunk:
    """The text that one round added to a stream (it may be empty), and the round itself."""

    text: str
    round: Round


@overload
def generate_autoregressive(  # type: ignore[overload-overlap]  # a str is a sequence of str as well
    pair: Pair,
    prompt: Prompt | torch.Tensor,
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | None = ...,
    stop: str | Sequence[str] = ...,
    monitor: Watcher | None = ...,
) -> Generation: ...
@overload
def generate_autoregressive(
    pair: Pair,
    prompt: Sequence[Prompt],
    *,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | None = ...,
    stop: str | Sequence[str] = ...,
    monitor: Watcher | None = ...,
) -> list[Generation]: ...
def generate_autoregressive(
    pair: Pair,
    prompt: Any,
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    monitor: Watcher | None = None,
) -> Generation | list[Generation]:
    """Decode one token per step of the target. This is the baseline: `generate_speculative` with
    k = 0.

    Args:
        pair: target and tokenizer; the draft is not used.
        prompt, max_new_tokens, sampling, seed, stop, monitor: as for `generate_speculative`.

    Returns:
        One generation, or a list of them for a list of prompts.

    Raises:
        SpecdecError: an argument is out of range or of the wrong type.
    """
    generations: Generation | list[Generation] = generate_speculative(
        pair,
        prompt,
        k=0,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        stop=stop,
        monitor=monitor,
    )
    return generations


@overload
def generate_speculative(  # type: ignore[overload-overlap]
    pair: Pair,
    prompt: Prompt | torch.Tensor,
    *,
    k: int | Controller = ...,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | None = ...,
    stop: str | Sequence[str] = ...,
    drafter: Drafter | None = ...,
    monitor: Watcher | None = ...,
    verification: str = ...,
) -> Generation: ...
@overload
def generate_speculative(
    pair: Pair,
    prompt: Sequence[Prompt],
    *,
    k: int | Controller = ...,
    max_new_tokens: int = ...,
    sampling: Sampling | None = ...,
    seed: int | None = ...,
    stop: str | Sequence[str] = ...,
    drafter: Drafter | None = ...,
    monitor: Watcher | None = ...,
    verification: str = ...,
) -> list[Generation]: ...
def generate_speculative(
    pair: Pair,
    prompt: Any,
    *,
    k: int | Controller = 4,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    drafter: Drafter | None = None,
    monitor: Watcher | None = None,
    verification: str = "token",
) -> Generation | list[Generation]:
    """Generate with draft and verify. The tokens have exactly the target's distribution, for any
    draft.

    Leviathan et al. 2022, algorithm 1.

    Args:
        pair: the models; `load_pair()` returns one.
        prompt: text, token ids, or a list of either, which is decoded as one batch.
        k: tokens drafted per round (0: none), or a controller.
        max_new_tokens: for each row, ≥ 0. A row also ends at the models' context (finish
            'context'). Memory is allocated as rows grow.
        sampling: temperature, top-k, top-p; default temperature 1.
        seed: the same seed on the same device gives the same tokens; None: a new seed each time.
        stop: a string or strings that end a generation.
        drafter: default the pair's own drafter, else its draft model.
        monitor: receives every round.
        verification: 'token' decides each drafted token by itself, up to the first rejection.
            'block' decides all of them together and accepts more on average, see `beyond.block`.

    Returns:
        A `Generation`; for a list of prompts, a list of them, and [] for an empty list.

    Raises:
        SpecdecError: an argument is out of range or of the wrong type.
    """
    many = not isinstance(prompt, str) and not _is_ids(prompt)
    listed = isinstance(prompt, Sequence) or (isinstance(prompt, torch.Tensor) and prompt.ndim > 0)
    if many and (not listed or isinstance(prompt, bytes)):
        raise SpecdecError(f"prompt={prompt!r:.80}: takes text, token ids, or a list of either")
    options = Options(k, max_new_tokens, sampling, seed, stop, drafter, monitor, verification)
    call = Call(pair, prompt if many else [prompt], options)
    for _ in call.rounds():
        pass
    generations = call.generations()
    return generations if many else generations[0]


def stream_speculative(
    pair: Pair,
    prompt: Prompt | torch.Tensor,
    *,
    k: int | Controller = 4,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    drafter: Drafter | None = None,
    monitor: Watcher | None = None,
    verification: str = "token",
    on_end: Callable[[Generation], None] = lambda generation: None,
) -> Iterator[Chunk]:
    """Generate as `generate_speculative` does, and yield a `Chunk` after each round.

    The texts of all chunks add up to the text of the generation. Text that may become a stop string
    is held back until it is certain, and so is half a character.

    Args:
        pair, k, max_new_tokens, sampling, seed, stop, drafter, monitor, verification: as in
            `generate_speculative`.
        prompt: one prompt, text or token ids.
        on_end: receives the whole `Generation`, with finish 'interrupted' if the stream was closed
            early.

    Raises:
        SpecdecError: an argument is out of range or of the wrong type. Raised by the call itself,
            before the first chunk.
    """
    if not isinstance(prompt, str) and not _is_ids(prompt):
        raise SpecdecError(
            "prompt: a stream takes one prompt, text or token ids, not a list of prompts"
        )
    if not callable(on_end):
        raise SpecdecError(f"on_end={on_end!r:.80}: takes a function of one Generation")
    options = Options(k, max_new_tokens, sampling, seed, stop, drafter, monitor, verification)
    return _stream(Call(pair, [cast(Prompt, prompt)], options), on_end)


def _stream(call: "Call", on_end: Callable[[Generation], None]) -> Iterator[Chunk]:
    row = call.rows[0]
    num_sent = 0
    try:
        for _ in call.rounds():
            text = call.text.certain(row)
            yield Chunk(text[num_sent:], row.rounds[-1])
            num_sent = max(num_sent, len(text))
    finally:
        on_end(call.generations()[0])


@dataclass(frozen=True)
class Options:
    """How to decode, as in `generate_speculative`. Checks everything that needs no model."""

    k: int | Controller
    max_new_tokens: int
    sampling: Sampling | None
    seed: int | None
    stop: str | Sequence[str]
    drafter: Drafter | None
    monitor: Watcher | None
    verification: str

    def __post_init__(self) -> None:
        if self.sampling is not None and not isinstance(self.sampling, Sampling):
            raise SpecdecError(
                f"sampling={self.sampling!r:.80}: takes a Sampling(temperature=…, top_k=…, top_p=…)"
            )
        if not is_whole(self.max_new_tokens) or self.max_new_tokens < 0:
            raise SpecdecError(
                f"max_new_tokens={self.max_new_tokens!r:.80}: takes a whole number ≥ 0"
            )
        if not all(isinstance(s, str) and s for s in self.stops):
            raise SpecdecError(
                f"stop={self.stop!r:.80}: takes a non-empty string or a list of them"
            )
        if self.monitor is not None and (
            isinstance(self.monitor, type) or not hasattr(self.monitor, "watch")
        ):
            raise SpecdecError(
                f"monitor={self.monitor!r:.80}: takes a SpeculativeDecodingMonitor(), or None"
            )
        verbs = ("start", "propose", "keep")
        is_class = isinstance(self.drafter, type)
        if self.drafter is not None and (
            is_class or not all(hasattr(self.drafter, verb) for verb in verbs)
        ):
            takes = "takes a Drafter (start, propose, keep), as PromptLookupDrafter(), or None"
            raise SpecdecError(f"drafter={self.drafter!r:.80}: {takes}")
        verification_rule(self.verification)
        if self.verification != "token" and isinstance(self.drafter, TREE_DRAFTERS):
            raise SpecdecError(
                f"verification={self.verification!r}: a tree of candidates has a rule of its own; "
                "takes 'token' with a tree drafter"
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        listed = isinstance(self.stop, Sequence) and not isinstance(self.stop, str)
        return tuple(self.stop) if listed else (cast(str, self.stop),)

    def controller(self) -> Controller:
        """The controller that chooses k. It reports to the monitor if there is one."""
        controller = as_controller(self.k)
        return controller if self.monitor is None else self.monitor.watch(controller)


class Call:
    """One call: models, rows and randomness for `speculate`, and the generated text."""

    def __init__(self, pair: Pair, prompts: Sequence[Prompt], options: Options):
        if not isinstance(pair, Pair):
            raise SpecdecError(f"pair={pair!r:.80}: takes a Pair, which load_pair() gives")
        self.eos = pair.eos
        self.sampling = options.sampling or Sampling()
        self.controller = options.controller()
        self.verify = verification_rule(options.verification)
        if options.drafter is None and self.controller.max_k > 0:
            options = replace(options, drafter=pair.drafter)
        self.target, drafter = _own_target(pair, options.drafter)
        if self.target.device.type == "meta":
            raise SpecdecError(
                "target: is on device meta, which holds no numbers; takes a loaded model"
            )
        self.context = self.target.context
        if self.controller.max_k >= self.context:
            raise SpecdecError(
                f"k={self.controller.max_k}: takes less than the context, {self.context} tokens"
            )
        self.drafter = self._usable_drafter(pair, drafter)
        draft = self.drafter.model if isinstance(self.drafter, MODEL_DRAFTERS) else None
        if draft is not None and not isinstance(draft, HEAD_DRAFTERS):
            self.context = min(self.context, draft.context)

        self.rows = [
            Row(self._ids(prompt, pair.tokenizer), options.max_new_tokens) for prompt in prompts
        ]
        lengths = [min(self.context, len(row.prompt) + row.max_new_tokens) for row in self.rows]
        for model in (self.target, draft):
            if isinstance(model, TransformersModel):
                model.final_lengths = lengths
        self.text = RowText(pair.tokenizer, self.eos, options.stops)
        self.randomness = SeededRandomness(options.seed, self.target.device)
        self.seconds = 0.0

    def _usable_drafter(self, pair: Pair, drafter: Drafter | None) -> Drafter | None:
        """The requested drafter, else one with the pair's draft model. Its device is checked, and
        its vocabulary limited to the target's."""
        if drafter is None and self.controller.max_k > 0:
            if pair.draft is None:
                raise SpecdecError(
                    "drafter: this pair has no draft model; "
                    "pass drafter=PromptLookupDrafter() or k=0"
                )
            drafter = ModelDrafter(TransformersModel(pair.draft, self.target.vocab_size))
        if not isinstance(drafter, MODEL_DRAFTERS) or isinstance(drafter.model, HEAD_DRAFTERS):
            return drafter
        model = drafter.model
        if model.device != self.target.device:
            raise SpecdecError(
                f"draft: is on {model.device}, the target on {self.target.device}; takes one device"
            )
        if model.vocab_size > self.target.vocab_size and isinstance(model, TransformersModel):
            # The draft must not propose ids of its own padding rows.
            return drafter.with_model(TransformersModel(model.model, self.target.vocab_size))
        return drafter

    def _ids(self, prompt: Prompt, tokenizer: Any) -> tuple[int, ...]:
        """The token ids of a prompt."""
        if isinstance(prompt, str):
            try:
                ids = tokenizer(prompt)["input_ids"]
            except (
                TypeError,
                UnicodeError,
            ) as error:  # half a surrogate pair is a str, but not text
                raise SpecdecError(
                    f"prompt={prompt!r:.80}: cannot be turned into tokens, is it text?"
                ) from error
        elif _is_ids(prompt):
            ids = [int(token) for token in prompt]
        else:
            raise SpecdecError(f"prompt={prompt!r:.80}: takes text, token ids, or a list of either")
        size = self.target.vocab_size
        wrong = [i for i in ids if not 0 <= i < size]
        if wrong:
            raise SpecdecError(
                f"prompt: token id {wrong[0]} is not in the vocabulary, 0 … {size - 1}"
            )
        if not ids:
            raise SpecdecError(
                "prompt: is empty; takes at least one token "
                "(the tokenizer's end-of-text token will do)"
            )
        if len(ids) > self.context:
            raise SpecdecError(
                f"prompt: {len(ids)} tokens, but the models hold at most {self.context}"
            )
        return tuple(ids)

    def rounds(self) -> Iterator[None]:
        """Rounds, until every row has finished or the caller stops."""
        began = time.perf_counter()
        nothing_to_do = not self.rows or self.rows[0].max_new_tokens == 0
        try:
            for extended in () if nothing_to_do else self._speculate():
                for row in extended:
                    self.text.cut_at_stop(row)
                self.seconds = time.perf_counter() - began
                yield
        finally:
            self.seconds = time.perf_counter() - began
            for row in self.rows:
                row.finish = row.finish or ("length" if nothing_to_do else "interrupted")

    def _speculate(self) -> Iterator[list[Row]]:
        return speculate(
            self.target,
            self.drafter,
            self.rows,
            self.controller,
            self.sampling,
            self.randomness,
            self.eos,
            self.context,
            self.verify,
        )

    def generations(self) -> list[Generation]:
        """One generation per prompt."""
        return [
            Generation(
                row.prompt,
                tuple(row.new),
                self.text.final(row),
                tuple(row.rounds),
                self.seconds,
                row.finish,
            )
            for row in self.rows
        ]


def _own_target(pair: Pair, drafter: Drafter | None) -> tuple[TransformersModel, Drafter | None]:
    """The target and the drafter of one call. A head gets a copy that reads this target's features.

    Both belong to one call, since other calls may decode with the same head at the same time.
    """
    head = drafter.model if isinstance(drafter, TREE_DRAFTERS) else drafter
    if not isinstance(head, HEAD_DRAFTERS):
        return TransformersModel(pair.target), drafter
    if head.target.model is not pair.target:
        raise SpecdecError(
            "drafter: this head reads another target; takes load_head(pair.target, …)"
        )
    target = TransformersModel(pair.target, feature_layers=head.target.feature_layers)
    head = head.with_target(target)
    return target, drafter.with_model(head) if isinstance(drafter, TREE_DRAFTERS) else head


class RowText:
    """The text of rows, and where a stop string ends it."""

    def __init__(self, tokenizer: Any, eos: frozenset[int], stops: tuple[str, ...]):
        self.tokenizer = tokenizer
        self.eos = eos
        self.stops = stops

    def decode(self, tokens: list[int]) -> str:
        """The text of these tokens, without end tokens."""
        return str(
            self.tokenizer.decode(
                [t for t in tokens if t not in self.eos], skip_special_tokens=True
            )
        )

    def cut_at_stop(self, row: Row) -> None:
        """End a row at the first token that completes a stop string, even inside a round."""
        if not self._has_stop(row.new):
            return
        last = row.rounds[-1]
        before = row.new[: len(row.new) - len(last.emitted)]
        lengths = range(1, len(last.emitted) + 1)
        n = next(n for n in lengths if self._has_stop([*before, *last.emitted[:n]]))
        row.new = [*before, *last.emitted[:n]]
        row.finish = "stop"
        row.rounds[-1] = replace(last, emitted=last.emitted[:n])

    def _has_stop(self, tokens: list[int]) -> bool:
        if not self.stops:
            return False
        text = self.decode(tokens)
        return any(stop in text for stop in self.stops)

    def certain(self, row: Row) -> str:
        """The text that no later token can change."""
        if row.finish:
            return self.final(row)
        text = self.decode(row.new).rstrip("\N{REPLACEMENT CHARACTER}")  # half a character
        beginnings = [
            n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])
        ]
        return text[: len(text) - max(beginnings, default=0)]

    def final(self, row: Row) -> str:
        """The text up to the first stop string."""
        text = self.decode(row.new)
        places = [text.find(stop) for stop in self.stops if stop in text]
        return text[: min(places, default=len(text))]


def _is_ids(prompt: object) -> bool:
    """Whether this is one prompt of token ids: a 1-D tensor, or a non-empty list of numbers."""
    if isinstance(prompt, torch.Tensor):
        return prompt.ndim == 1 and prompt.dtype in (torch.int64, torch.int32)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        return False
    return len(prompt) > 0 and all(is_whole(token) for token in prompt)
