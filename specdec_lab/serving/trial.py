"""Try one configuration in the real vLLM: the pair that ships, without and then with speculation."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specdec_lab.serving.configuration import REMOVED, translate
from specdec_lab.serving.load import measure_server
from specdec_lab.serving.server import VLLMServer, find_vllm
from specdec_ref.errors import SpecdecError
from specdec_ref.loading import PRETRAINED, held_out_prompts
from specdec_ref.sampling import Sampling


@dataclass(frozen=True)
class VLLMTrial:
    """The result of `try_in_vllm`, with one request at a time.

    Attributes:
        without: tokens per second without speculation.
        speculative: tokens per second with it.
        acceptance_length: tokens per round.
        problem: why there are no figures, in one line.
    """

    without: float | None = None
    speculative: float | None = None
    acceptance_length: float | None = None
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return self.problem
        assert self.without is not None
        assert self.speculative is not None
        return (
            f"vLLM, one request at a time: {self.without:.0f} tokens/s without speculation, {self.speculative:.0f} "
            f"with ({self.speculative / self.without:.2f} times), {self.acceptance_length:.2f} tokens per round"
        )

    __repr__ = __str__


def try_in_vllm(
    config: Mapping[str, Any] | None,
    *,
    sampling: Sampling | None = None,
    prompts: Sequence[str] | None = None,
    max_new_tokens: int = 64,
) -> VLLMTrial:
    """Start vLLM without and with `config`, its `speculative_config`, and measure both. Takes a few minutes.

    Never raises for a configuration that vLLM rejects: the trial's `problem` explains it in one line. Neither does it
    raise for legacy arguments, for a missing vLLM, or where SPECDEC_LIVE is 0; then no server is started.
    """
    obstacle = _obstacle(config)
    if obstacle is not None:
        return VLLMTrial(problem=obstacle)
    texts = list(held_out_prompts().values())[:4] if prompts is None else list(prompts)
    paces, length = [], float("nan")
    try:
        for server_config in (None, config):
            with VLLMServer(str(PRETRAINED / "target"), server_config) as server:
                measure_server(server.url, texts[:2], max_new_tokens=16, sampling=sampling)  # warm-up
                measured = measure_server(server.url, texts, max_new_tokens=max_new_tokens, sampling=sampling)
            if measured.problem is not None:
                progress = (
                    f"{len(measured.requests)} of {len(texts)} requests, {measured.tokens_per_second:.0f} tokens/s"
                )
                return VLLMTrial(problem=f"vLLM: {measured.problem} (after {progress})")
            paces.append(measured.tokens_per_second)
            if measured.counters is not None:
                length = measured.counters.acceptance_length
    except (SpecdecError, OSError) as error:
        return VLLMTrial(problem=f"vLLM: {error}")
    return VLLMTrial(paces[0], paces[1], length)


def _obstacle(config: object) -> str | None:
    """Why vLLM is not started with this configuration, or None where it is."""
    if config is None:
        return "write the configuration first: a dictionary, vLLM's speculative_config"
    if not isinstance(config, Mapping):
        return f"config={config!r:.80}: takes a dictionary"
    removed = _removed_arguments(config)
    if removed is not None:
        return removed
    if os.environ.get("SPECDEC_LIVE") == "0":
        return "SPECDEC_LIVE=0: vLLM is not started"
    if find_vllm() is None:
        return "vLLM is not installed here: `make vllm-env`, then run this cell again"
    return None


def _removed_arguments(config: Mapping[str, Any]) -> str | None:
    """A line about arguments that vLLM has removed, or None. It needs no vLLM."""
    removed = [key for key in config if key in REMOVED]
    if not removed:
        return None
    try:
        notes = translate({"speculative_model": "", **{key: config[key] for key in removed}}).notes
    except SpecdecError as error:
        return f"vLLM removed {', '.join(removed)} in 2025; {error}"
    replacements = "; ".join(f"{key} → {notes[key]}" for key in removed)
    return f"vLLM removed these arguments in 2025: {replacements}"
