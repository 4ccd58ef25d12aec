"""An OpenAI-compatible completions server as a sampler: vLLM, SGLang, llama.cpp's server and others.

Text is not enough, because different tokens can spell the same text. So the server has to return token ids: as
`token_ids` (requested by return_token_ids), as logprobs whose tokens read 'token_id:17' (return_tokens_as_token_ids),
or as `tokens` (return_tokens). It gets the prompt as token ids, with every cut and penalty off that was not asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from specdec_lab.web import ask_json, only_model, request
from specdec_ref.errors import SpecdecError, is_whole
from specdec_ref.sampling import Sampling

ASKED: dict[str, Any] = {
    "logprobs": 0,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "return_tokens": True,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


class OpenAICompletions:
    """A sampler that requests continuations from `POST {url}/completions`, up to `batch` per request.

    Args:
        url: address of the server, with or without /v1.
        model: default the server's only model.
        eos: the ids at which the server stops, those of the model.
        timeout: seconds for one request.
        more: further fields of the request.

    Raises:
        SpecdecError: any failure, in one line.
    """

    def __init__(
        self,
        url: str,
        sampling: Sampling | None = None,
        *,
        model: str | None = None,
        eos: frozenset[int] = frozenset(),
        batch: int = 100,
        timeout: float = 120.0,
        api_key: str | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        request(url)
        self.url = url.rstrip("/") + ("" if url.rstrip("/").endswith("/v1") else "/v1")
        self.sampling = Sampling() if sampling is None else sampling
        self.eos, self.batch, self.timeout = eos, batch, timeout
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.more = dict(more or {})
        self.model = only_model(self.url, timeout, self.headers) if model is None else model
        self.name = f"{self.model} at {url}"

    def sample(self, prompt: Sequence[int], number: int, length: int, seed: int) -> list[list[int]]:
        rows: list[list[int]] = []
        while len(rows) < number:  # some servers give one at a time, whatever is asked
            body = {
                "model": self.model,
                "prompt": list(prompt),
                "n": number - len(rows),
                "max_tokens": length,
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p or 1.0,
                "top_k": self.sampling.top_k or -1,
                "seed": (seed + len(rows)) % 2**31,
            }
            asked = request(f"{self.url}/completions", ASKED | body | self.more, self.headers)
            choices = ask_json(asked, self.timeout).get("choices")
            if not isinstance(choices, list) or not choices:
                raise SpecdecError(f"{self.url}: answered without choices")
            rows += [self._ids(choice, length) for choice in choices]
        return rows[:number]

    def _ids(self, choice: Any, length: int) -> list[int]:
        """Token ids of one choice, with the end token where it stopped at one."""
        tokens = choice.get("token_ids", choice.get("tokens")) if isinstance(choice, dict) else None
        if tokens is None and isinstance(choice, dict) and isinstance(choice.get("logprobs"), dict):
            names = choice["logprobs"].get("tokens") or []
            if all(isinstance(n, str) and n.startswith("token_id:") for n in names):
                tokens = [int(n.removeprefix("token_id:")) for n in names if n.removeprefix("token_id:").isdigit()]
        if not isinstance(tokens, list) or not all(map(is_whole, tokens)):
            raise SpecdecError(
                f"{self.url}: gives no token ids; with vLLM they come with return_token_ids, "
                "with llama.cpp's server with return_tokens"
            )
        stopped = choice.get("finish_reason") == "stop" and len(tokens) < length
        if stopped and self.eos and not self.eos & set(tokens):
            tokens = [*tokens, min(self.eos)]  # some give the end token, some only say that it came
        return tokens
