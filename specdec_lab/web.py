"""HTTP requests to a server. Every failure raises a SpecdecError of one line."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from specdec_ref.errors import SpecdecError


def request(url: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None) -> Any:
    """A request to open: GET, or POST of `body` as JSON. Raises SpecdecError for an invalid http(s) address."""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise SpecdecError(f"url={url!r:.80}: takes the address of a server, http://…")
    data = None if body is None else json.dumps(body).encode()
    try:
        return urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    except ValueError as error:
        raise SpecdecError(f"url={url!r:.80}: {error}") from error


@contextmanager
def answered(asked: urllib.request.Request, timeout: float) -> Iterator[http.client.HTTPResponse]:
    """The open answer. timeout: seconds without a byte. Raises SpecdecError, also during reading."""
    where = asked.full_url
    try:
        try:
            opened = urllib.request.urlopen(asked, timeout=timeout)
        except ValueError as error:  # a header with a line end, an impossible host name
            raise SpecdecError(f"{where}: cannot be asked: {error}") from error
        with opened as answer:
            yield answer
    except urllib.error.HTTPError as error:
        with error:
            explanation = " ".join(error.read(300).decode(errors="replace").split())
        raise SpecdecError(f"{where}: answered {error.code} {error.reason}: {explanation}") from error
    except TimeoutError as error:
        raise SpecdecError(f"{where}: no answer within {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise SpecdecError(f"{where}: no answer within {timeout:g} s") from error
        raise SpecdecError(f"{where}: cannot be reached: {reason or type(error).__name__}") from error


def ask_json(asked: urllib.request.Request, timeout: float) -> dict[str, Any]:
    """The JSON object that a server answers with. Raises SpecdecError for anything else."""
    with answered(asked, timeout) as answer:
        data = answer.read()
    try:
        content = json.loads(data)
    except ValueError as error:
        raise SpecdecError(f"{asked.full_url}: its answer is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise SpecdecError(f"{asked.full_url}: answered {content!r:.80}; takes a JSON object")
    return content


def only_model(url: str, timeout: float, headers: Mapping[str, str] | None = None) -> str:
    """The name of the one model of an OpenAI-compatible server. url: up to and with /v1. Raises SpecdecError."""
    models = ask_json(request(f"{url}/models", headers=headers), timeout).get("data") or []
    names = [str(m["id"]) for m in models if isinstance(m, dict) and "id" in m]
    if len(names) != 1:
        raise SpecdecError(f"{url}: has {', '.join(names) or 'no'} models; name one with model= (--model)")
    return names[0]
