"""Measure a server as its users see it: tokens per second, time to the first token and per token, acceptance.

Works with any OpenAI-compatible completions server; the counters are vLLM's. `vllm bench serve` does more for servers
under real load. This module is small, needs no vLLM, and reports the same quantities as the rest of the course.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np

from specdec_lab.serving.metrics import SpeculationCounters, read_counters
from specdec_lab.web import answered, only_model, request
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.sampling import Sampling

Prompt = str | Sequence[int]
MOST_AT_ONCE = 256


@dataclass(frozen=True)
class ServedRequest:
    """One answered request.

    Attributes:
        tokens: new tokens.
        first_seconds: until the first token arrived.
        seconds: until the last token arrived.
        chunks: pieces that the answer was streamed in.
    """

    tokens: int
    first_seconds: float
    seconds: float
    chunks: int

    @property
    def seconds_per_token(self) -> float:
        """Seconds per token after the first piece. The first piece counts as an average one."""
        after = self.tokens * (1 - 1 / self.chunks)
        return (self.seconds - self.first_seconds) / after if after > 0 else float("nan")


@dataclass(frozen=True)
class ServerMeasurement:
    """The result of `measure_server`, also of a measurement that ended early.

    Attributes:
        url, model, concurrency: what was measured.
        seconds: from the first request to the end of the last.
        requests: the answered requests.
        counters: growth of the server's counters meanwhile, including other users' requests; None without counters.
        no_counters: why there are no counters, in one line, or None.
        problem: why it ended early, in one line, or None.
    """

    url: str
    model: str
    concurrency: int
    seconds: float
    requests: tuple[ServedRequest, ...]
    counters: SpeculationCounters | None = None
    no_counters: str | None = None
    problem: str | None = None

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.requests)

    @property
    def tokens_per_second(self) -> float:
        """Of all requests together."""
        return self.tokens / self.seconds

    def percentiles(self, what: str, *shares: float) -> tuple[float, ...]:
        """Percentiles over the requests.

        Args:
            what: 'first_seconds', 'seconds' or 'seconds_per_token'.
            shares: in per cent; default 50 and 99.

        Returns:
            One value per share. Answers in one piece have no time per token; NaN where no other answer exists.
        """
        shares = shares or (50, 99)
        values = [value for answer in self.requests if not isnan(value := getattr(answer, what))]
        return tuple(map(float, np.percentile(values, shares))) if values else (nan,) * len(shares)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; times in seconds, None where there is none."""
        facts: dict[str, Any] = {
            "url": self.url,
            "model": self.model,
            "concurrency": self.concurrency,
            "requests": len(self.requests),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "problem": self.problem,
            "no_counters": self.no_counters,
        }
        for what in ("first_seconds", "seconds_per_token"):
            facts[what] = dict(zip(("p50", "p99"), map(_known, self.percentiles(what)), strict=True))
        if self.counters is not None:
            facts |= {"acceptance_length": _known(self.counters.acceptance_length), "counters": vars(self.counters)}
        return facts


def measure_server(
    url: str,
    prompts: Sequence[Prompt],
    *,
    concurrency: int = 1,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    model: str | None = None,
    timeout: float = 120.0,
    api_key: str | None = None,
    on_done: Callable[[int, int], None] = lambda completed, total: None,
) -> ServerMeasurement:
    """Request a continuation of every prompt and measure the answers.

    Args:
        url: of the server, with or without /v1.
        prompts: texts, or token ids, with which the tokenization is certain.
        concurrency: requests at a time.
        max_new_tokens: exact length of each answer.
        sampling: default temperature 1.
        model: default the only one that the server has.
        timeout: seconds without a byte.
        api_key: sent as a bearer token.
        on_done: called after each request with (requests done, requests in all).

    Raises:
        SpecdecError: an argument is out of range, or no request was answered. Where some were answered, they are
            returned together with the `problem`.
    """
    for name, value in (("concurrency", concurrency), ("max_new_tokens", max_new_tokens)):
        if not is_whole(value) or not 1 <= value <= (MOST_AT_ONCE if name == "concurrency" else 10**6):
            raise SpecdecError(f"{name}={value!r:.80}: takes a whole number ≥ 1" + _most(name))
    if isinstance(prompts, str) or not prompts or not all(len(prompt) for prompt in prompts):
        raise SpecdecError(f"prompts={prompts!r:.80}: takes texts or lists of token ids, none of them empty")
    sampling = Sampling() if sampling is None else sampling
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request(url)  # an address?
    root = url.rstrip("/") + ("" if url.rstrip("/").endswith("/v1") else "/v1")
    model = only_model(root, timeout, headers) if model is None else model
    body = {
        "model": model,
        "max_tokens": max_new_tokens,
        "ignore_eos": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p or 1.0,
        "top_k": sampling.top_k or -1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    before, no_counters = _counters(root, timeout, headers)
    asker = _Asker(root, body, prompts, headers, timeout, on_done)
    began = time.perf_counter()
    asker.run(concurrency)
    seconds = time.perf_counter() - began
    if not asker.done:
        raise SpecdecError(asker.problem or f"{root}: answered nothing")
    counters = None
    if before is not None:
        after, no_counters = _counters(root, timeout, headers)
        if after is not None:
            try:
                counters = after - before
            except SpecdecError as error:  # the server was restarted; the timings are still valid
                no_counters = str(error)
    return ServerMeasurement(root, model, concurrency, seconds, tuple(asker.done), counters, no_counters, asker.problem)


class _Asker:
    """Threads that take the next prompt until none is left, or a request fails."""

    def __init__(
        self,
        root: str,
        body: Mapping[str, Any],
        prompts: Sequence[Prompt],
        headers: Mapping[str, str],
        timeout: float,
        on_done: Callable[[int, int], None],
    ):
        self.root, self.body, self.headers, self.timeout, self.on_done = root, body, headers, timeout, on_done
        self.total = len(prompts)
        self.waiting = [prompt if isinstance(prompt, str) else [int(i) for i in prompt] for prompt in reversed(prompts)]
        self.done: list[ServedRequest] = []
        self.problem: str | None = None
        self.lock = threading.Lock()

    def run(self, concurrency: int) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(concurrency, self.total))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            with self.lock:
                self.problem = "interrupted"
            if not self.done:
                raise

    def _work(self) -> None:
        while True:
            with self.lock:
                if self.problem is not None or not self.waiting:
                    return
                prompt = self.waiting.pop()
            try:
                answer = self._one(prompt)
                with self.lock:
                    self.done.append(answer)
                    self.on_done(len(self.done), self.total)
            except Exception as error:  # a thread would end without a message
                problem = str(error) if isinstance(error, SpecdecError) else f"{type(error).__name__}: {error}"
                with self.lock:
                    self.problem = self.problem or problem
                return

    def _one(self, prompt: str | list[int]) -> ServedRequest:
        asked = request(f"{self.root}/completions", {**self.body, "prompt": prompt}, self.headers)
        began = time.perf_counter()
        first = last = 0.0
        tokens = chunks = 0
        ended = False
        with answered(asked, self.timeout) as answer:
            for line in answer:
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    ended = True
                    break
                piece = _piece(data, self.root)
                if piece.get("choices"):
                    last = time.perf_counter() - began
                    first = first or last
                    chunks += 1
                usage = piece.get("usage")
                tokens = int((usage if isinstance(usage, dict) else {}).get("completion_tokens") or tokens)
        if not ended:
            raise SpecdecError(f"{self.root}: stopped in the middle of an answer")
        if not chunks or not tokens:
            raise SpecdecError(f"{self.root}: its answer does not say how many tokens it has (stream_options)")
        return ServedRequest(tokens, first, last, chunks)


def _known(value: float) -> float | None:
    return None if isnan(value) else value


def _piece(data: bytes, root: str) -> dict[str, Any]:
    """One piece of a streamed answer."""
    try:
        piece = json.loads(data)
    except ValueError as error:
        raise SpecdecError(f"{root}: streamed {data!r:.80}; takes JSON ({error})") from error
    if not isinstance(piece, dict) or "error" in piece:
        raise SpecdecError(f"{root}: {piece['error'] if isinstance(piece, dict) else piece!r:.200}")
    return piece


def _counters(root: str, timeout: float, headers: Mapping[str, str]) -> tuple[SpeculationCounters | None, str | None]:
    try:
        return read_counters(root, timeout, headers), None
    except SpecdecError as error:
        return None, str(error)


def _most(name: str) -> str:
    return f", at most {MOST_AT_ONCE}" if name == "concurrency" else ""
