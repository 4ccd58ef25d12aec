"""What bad input gets: a `SpecdecError` of one line that names the argument, its value and what it takes, or the right
edge result. Never an exception from three floors down, never a hang, never the network. One table, one line a promise.
"""

import contextlib
import copy
import dataclasses
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

import specdec_ref as sd
from specdec_ref import loading
from specdec_ref.loading import DEFAULT_DRAFT

torch.set_num_threads(1)

END = "<|end|>"
CONTEXT = 64
ROWS = 260  # 257 ids and three rows of padding
NAN, INF = float("nan"), float("inf")
GPU = torch.cuda.is_available()
HUNG_AFTER = 60  # seconds; a case takes milliseconds


# A workshop of tiny models: byte-level tokenizer, one Llama layer of width 16, and every way to break the folder.


def byte_vocabulary() -> dict[str, int]:
    return {END: 0, **{byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=1)}}


def save_tokenizer(folder: Path, vocabulary: dict[str, int]) -> None:
    tokenizer = Tokenizer(tokenizer_models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)


def save_model(folder: Path, seed: int, rows: int = ROWS, context: int = CONTEXT) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[0] = 0  # the end token is unlikely, so that a run lasts for more than three rounds
        model.lm_head.weight.mul_(20)
    model.save_pretrained(folder)


def edit_json(path: Path, **changes: object) -> None:
    """Set the keys given; None takes a key out."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def swapped(vocabulary: dict[str, int]) -> dict[str, int]:
    return {**vocabulary, "a": vocabulary["b"], "b": vocabulary["a"]}


def renamed(vocabulary: dict[str, int]) -> dict[str, int]:
    return {"<|stop|>" if token == END else token: i for token, i in vocabulary.items()}


def overflowing(vocabulary: dict[str, int]) -> dict[str, int]:
    return {**vocabulary, "ab": ROWS + 10}


def with_tokenizer(change: Callable[[dict[str, int]], dict[str, int]]) -> Callable[[Path], None]:
    return lambda folder: save_tokenizer(folder, change(byte_vocabulary()))


def only_pickled(folder: Path) -> None:
    torch.save(load_file(weights(folder)), folder / "pytorch_model.bin")
    weights(folder).unlink()


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(weights(folder))
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, weights(folder), metadata={"format": "pt"})


def weights_of_nan(folder: Path) -> None:
    tensors = load_file(weights(folder))
    tensors["model.norm.weight"][3] = NAN
    save_file(tensors, weights(folder), metadata={"format": "pt"})


def own_code(folder: Path, model_type: str) -> None:
    """Code in the folder that its configuration asks to run. If it ran, it would write a file."""
    code = f"open({str(folder / 'was_run')!r}, 'w').close()\nclass Config: pass\nclass Model: pass\nclass Words: pass\n"
    (folder / "own.py").write_text(code, encoding="utf-8")
    asks = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit_json(folder / "config.json", auto_map=asks, model_type=model_type)
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Words", None]})


def recurrent(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_recurrent().save_pretrained(folder)
    save_tokenizer(folder, byte_vocabulary())


def tiny_recurrent() -> MambaForCausalLM:
    return MambaForCausalLM(MambaConfig(vocab_size=ROWS, hidden_size=16, num_hidden_layers=1, state_size=4))


FOLDERS: dict[str, Callable[[Path], object]] = {
    "good": lambda folder: None,
    "draft": lambda folder: save_model(folder, seed=1),
    "padded": lambda folder: save_model(folder, seed=2, rows=ROWS + 40),
    "short": lambda folder: save_model(folder, seed=3, context=CONTEXT // 2),
    "swapped": with_tokenizer(swapped),
    "renamed": with_tokenizer(renamed),
    "overflowing": with_tokenizer(overflowing),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config not JSON": lambda folder: (folder / "config.json").write_text("{not json\nat all", encoding="utf-8"),
    "config a list": lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"),
    "config without type": lambda folder: edit_json(folder / "config.json", model_type=None),
    "config of other size": lambda folder: edit_json(folder / "config.json", intermediate_size=48),
    "unknown type": lambda folder: edit_json(folder / "config.json", model_type="nonesuch"),
    "no weights": lambda folder: weights(folder).unlink(),
    "empty weights": lambda folder: weights(folder).write_bytes(b""),
    "truncated weights": lambda folder: weights(folder).write_bytes(weights(folder).read_bytes()[:-999]),
    "corrupt header": lambda folder: weights(folder).write_bytes(b"\xff" * 8 + weights(folder).read_bytes()[8:]),
    "a tensor missing": without_a_tensor,
    "weights of NaN": weights_of_nan,
    "only pickled": only_pickled,
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
    "tokenizer not JSON": lambda folder: (folder / "tokenizer.json").write_text("{", encoding="utf-8"),
    "own code": lambda folder: own_code(folder, "nonesuch"),
    "own code, known type": lambda folder: own_code(folder, "llama"),
    "recurrent": recurrent,
}


class Workshop:
    """Makes folders when first asked for, and the calls that the table is about with tame defaults."""

    def __init__(self, root: Path):
        self.root = root
        save_model(root / "good", seed=0)
        save_tokenizer(root / "good", byte_vocabulary())
        self.pair = sd.load_pair(self.folder("good"), self.folder("draft"), device="cpu")

    def folder(self, name: str) -> str:
        folder = self.root / name
        if name != "good" and not folder.exists():
            shutil.copytree(self.root / "good", folder)
            FOLDERS[name](folder)
        return str(folder)

    def load(self, target: str = "good", draft: str | None = None, **options: Any) -> sd.Pair:
        options = {"device": "cpu", **options}
        return sd.load_pair(self.folder(target), draft and self.folder(draft), **options)

    def generate(self, prompt: Any = "def f", pair: Any = None, **options: Any) -> Any:
        options = {"k": 3, "max_new_tokens": 12, "seed": 0, **options}
        return sd.generate_speculative(self.pair if pair is None else pair, prompt, **options)

    def stream(self, prompt: Any = "def f", **options: Any) -> Iterator[sd.Chunk]:
        options = {"k": 3, "max_new_tokens": 12, "seed": 0, **options}
        return sd.stream_speculative(self.pair, prompt, **options)

    @contextlib.contextmanager
    def shipping(self, *names: str) -> Iterator[None]:
        """As if exactly these folders were the models that ship."""
        with pytest.MonkeyPatch.context() as patch:
            home = self.root / "-".join(["shipped", *names])
            for name in names:
                shutil.copytree(self.folder("good"), home / name, dirs_exist_ok=True)
            patch.setattr(loading, "PRETRAINED", home)
            yield

    @contextlib.contextmanager
    def poison(self, role: str, change: Callable[[torch.Tensor], None]) -> Iterator[None]:
        """While this lasts, `change` edits the logits [B, n, V] of the target or of the draft."""

        def edit(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
            logits = logits.clone()
            change(logits)
            return logits

        hook = getattr(self.pair, role).lm_head.register_forward_hook(edit)
        try:
            yield
        finally:
            hook.remove()

    def poisoned(self, role: str, change: Callable[[torch.Tensor], None], prompt: Any = "def f", **options: Any) -> Any:
        with self.poison(role, change):
            return self.generate(prompt, **options)

    def poisoned_in_round_3(self, role: str, change: Callable[[torch.Tensor], None], **options: Any) -> None:
        armed = False  # the hook is there from the start: a model may be prepared for what it has then
        with self.poison(role, lambda logits: change(logits) if armed else None):
            stream = self.stream(max_new_tokens=40, **options)
            next(stream), next(stream)
            armed = True
            next(stream)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("bad-input"))


@pytest.fixture(autouse=True)
def no_network_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("reached for the network")

    def hung(*args: object) -> None:
        pytest.fail(f"still running after {HUNG_AFTER} seconds")

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)  # another file may have imported it before the variable was set
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    if not hasattr(signal, "SIGALRM"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HUNG_AFTER)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# What breaks logits, controllers and drafters.


def one_nan(logits: torch.Tensor) -> None:
    logits[..., 3] = NAN


def one_inf(logits: torch.Tensor) -> None:
    logits[..., 3] = INF


def nothing_possible(logits: torch.Tensor) -> None:
    logits[:] = -INF


def one_possible(logits: torch.Tensor) -> None:
    logits[..., :5] = logits[..., 6:] = -INF


def in_row_1(change: Callable[[torch.Tensor], None]) -> Callable[[torch.Tensor], None]:
    return lambda logits: change(logits[1])


class Says:
    """A controller that answers always the same."""

    max_k = 4

    def __init__(self, answer: object):
        self.answer = answer

    def next_k(self) -> Any:
        return self.answer

    def observe(self, rounds: list[sd.Round]) -> None:
        pass


class OnlyNextK:
    def next_k(self) -> int:
        return 2


class Proposes:
    """A drafter that answers with whatever `make(rows, k)` gives."""

    def __init__(self, make: Callable[[int, int], Any]):
        self.make = make

    def start(self, batch: int, capacity: int) -> None:
        pass

    def keep(self, rows: list[int]) -> None:
        pass

    def propose(self, sequences: list[list[int]], k: int, sampling: sd.Sampling, randomness: sd.Randomness) -> Any:
        return self.make(len(sequences), k)


class OnlyProposes:
    def propose(self, sequences: list[list[int]], k: int, sampling: sd.Sampling, randomness: sd.Randomness) -> sd.Draft:
        return sd.Draft(torch.ones(len(sequences), k, dtype=torch.int64))


def ids(b: int, k: int, token: int = 5) -> torch.Tensor:
    return torch.full((b, k), token)


def flat(b: int, k: int, width: int = ROWS) -> torch.Tensor:
    return torch.full((b, k, width), 1 / width)


def speedup(**changes: Any) -> float:
    return sd.predicted_speedup(**{"alpha": 0.5, "k": 4, "c": 0.1, **changes})


# The table. `bad`: raises SpecdecError whose one line holds these words. `edge`: the result passes this check.


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    call: Callable[[Workshop], Any]
    words: tuple[str, ...] = ()
    holds: Callable[[Any], bool] | None = None
    skip: bool = False


def bad(name: str, call: Callable[[Workshop], Any], *words: str, skip: bool = False) -> Case:
    assert words, name
    return Case(name, call, words, skip=skip)


def edge(name: str, call: Callable[[Workshop], Any], holds: Callable[[Any], bool]) -> Case:
    return Case(name, call, holds=holds)


def options(argument: str, values: dict[str, Any], *words: str) -> list[Case]:
    """The same argument of `generate` with each value; the message holds the value as well."""
    return [
        bad(f"generate: {argument}={shown}", lambda w, v=v: w.generate(**{argument: v}), f"{argument}=", shown, *words)
        for shown, v in values.items()
    ]


def shown(*values: Any) -> dict[str, Any]:
    return {repr(value): value for value in values}


COLD, WARM = sd.GREEDY, sd.Sampling(temperature=0.7, top_k=20, top_p=0.9)

K_AND_CONTROLLER = [
    edge("generate: k=0", lambda w: w.generate(k=0), lambda g: len(g.tokens) == len(g.rounds) == 12),
    edge("generate: k=np.int64(2)", lambda w: w.generate(k=np.int64(2)), lambda g: len(g.tokens) == 12),
    edge(
        "generate: k larger than what is left to generate",
        lambda w: w.generate(k=40, max_new_tokens=3),
        lambda g: len(g.tokens) == 3 and g.finish == "length" and max(len(r.drafted) for r in g.rounds) <= 2,
    ),
    *options("k", shown(-1, 2.5, True, "4", None, [4]), "whole number"),
    bad("generate: k as large as the context", lambda w: w.generate(k=CONTEXT), f"k={CONTEXT}", "context"),
    bad("generate: k=100000", lambda w: w.generate(k=100_000), "k=100000", "context"),
    bad("generate: k is a model", lambda w: w.generate(k=w.pair.draft), "k=", "controller"),
    bad("generate: k is a controller's class", lambda w: w.generate(k=sd.FixedK), "k=", "controller"),
    bad("generate: k is a controller without max_k", lambda w: w.generate(k=OnlyNextK()), "k=", "controller", "max_k"),
    bad("generate: k=FixedK(-1)", lambda w: w.generate(k=sd.FixedK(-1)), "k", "-1"),
    *[
        bad(f"controller: next_k gives {answer!r}", lambda w, a=answer: w.generate(k=Says(a)), "next_k", repr(answer))
        for answer in (-1, 5, 1000, 2.0, None, "3")
    ],
]

PROMPT = [
    bad("generate: prompt=''", lambda w: w.generate(""), "prompt", "empty"),
    bad("generate: prompt is an empty tensor", lambda w: w.generate(torch.tensor([], dtype=torch.int64)), "prompt"),
    bad("generate: prompt is a list of no ids", lambda w: w.generate([[]]), "prompt", "[]"),
    bad("generate: prompt is a list with an empty string", lambda w: w.generate(["def f", ""]), "prompt", "empty"),
    bad("generate: prompt=None", lambda w: w.generate(None), "prompt=None", "text"),
    bad("generate: prompt=5", lambda w: w.generate(5), "prompt=5", "text"),
    bad("generate: prompt is half a surrogate pair", lambda w: w.generate("a\ud800"), "prompt", "ud800", "text"),
    bad("generate: prompt is a generator", lambda w: w.generate(p for p in ["a"]), "prompt", "a list"),
    bad("generate: prompt is bytes", lambda w: w.generate(b"def f"), "prompt=b'def f'", "text"),
    bad("generate: prompt is a tokenizer's output", lambda w: w.generate(w.pair.tokenizer("def f")), "prompt", "ids"),
    bad("generate: prompt holds floats", lambda w: w.generate([1.0, 2.0]), "prompt", "1.0", "ids"),
    bad("generate: prompt is a float tensor", lambda w: w.generate(torch.tensor([1.0, 2.0])), "prompt", "ids"),
    bad("generate: prompt is a mask", lambda w: w.generate(torch.ones(4, dtype=torch.bool)), "prompt", "ids"),
    bad("generate: prompt is one number as a tensor", lambda w: w.generate(torch.tensor(5)), "prompt", "ids"),
    bad("generate: prompt is a batch of batches", lambda w: w.generate(torch.ones(2, 2, 2).long()), "prompt", "ids"),
    bad("generate: prompt is nested too deeply", lambda w: w.generate([[[1, 2]]]), "prompt=[[1, 2]]", "ids"),
    bad("generate: prompt holds None", lambda w: w.generate(["def f", None]), "prompt=None", "text"),
    bad("generate: prompt mixes ids and text", lambda w: w.generate([1, "def f"]), "prompt=1", "text"),
    bad("generate: prompt with id -1", lambda w: w.generate([1, -1]), "prompt", "-1", "vocabulary"),
    bad("generate: prompt with an id too large", lambda w: w.generate([1, ROWS]), "prompt", str(ROWS), "vocabulary"),
    bad("generate: prompt with an id of 2**70", lambda w: w.generate([2**70]), "prompt", str(2**70), "vocabulary"),
    bad("generate: prompt of 65 tokens for 64", lambda w: w.generate([5] * 65), "prompt", "65", "64"),
    bad("generate: one prompt of a batch too long", lambda w: w.generate(["a", "b" * 99]), "prompt", "99", "64"),
    bad(
        "generate: prompt too long for the draft",
        lambda w: w.generate([5] * 40, pair=w.load("good", "short")),
        "prompt", "40", "32",
    ),
    edge(
        "generate: prompt that fills the context",
        lambda w: w.generate([5] * CONTEXT),
        lambda g: len(g.tokens) == 1 and g.finish == "context",
    ),
    edge(
        "generate: prompts that fill the context, next to short ones",
        lambda w: w.generate([[5] * CONTEXT, [5], [5] * (CONTEXT - 2)]),
        lambda gs: [len(g.tokens) for g in gs] == [1, 12, 3],
    ),
    edge("generate: no prompts", lambda w: w.generate([]), lambda gs: gs == []),
    edge("generate: a tensor of ids, batched", lambda w: w.generate(torch.ones(2, 3).long()), lambda gs: len(gs) == 2),
    bad("stream: a list of prompts", lambda w: w.stream(["a", "b"]), "prompt", "one prompt"),
    bad("stream: checks at the call, not at the first round", lambda w: w.stream("a", k=-1), "k=-1"),
]  # fmt: skip

LENGTH_SEED_STOP = [
    *options("verification", shown("blocks", "", None, True, ["block"]), "'token' or 'block'"),
    *options("max_new_tokens", shown(-1, 2.5, None, "9", True), "whole number"),
    edge(
        "generate: max_new_tokens=0",
        lambda w: w.generate(max_new_tokens=0),
        lambda g: (g.tokens, g.text, g.rounds, g.finish) == ((), "", (), "length"),
    ),
    edge("stream: max_new_tokens=0", lambda w: list(w.stream(max_new_tokens=0)), lambda chunks: chunks == []),
    edge(
        "generate: max_new_tokens=10**12 ends at the context",
        lambda w: w.generate(max_new_tokens=10**12),
        lambda g: g.finish == "context" and len(g.prompt_tokens) + len(g.tokens) == CONTEXT + 1,
    ),
    *options("seed", shown(-1, 1.5, "x", 2**64, True), "whole number"),
    edge("generate: seed=2**63 - 1", lambda w: w.generate(seed=2**63 - 1), lambda g: len(g.tokens) == 12),
    bad("SeededRandomness: seed=-1", lambda w: sd.SeededRandomness(-1), "seed=-1", "whole number"),
    bad("SeededRandomness: seed='x'", lambda w: sd.SeededRandomness("x"), "seed='x'", "whole number"),  # type: ignore[arg-type]
    *options("stop", shown("", [""], 5, [5], ["a", ""], b"a"), "non-empty string"),
    bad("stream: on_end=5", lambda w: w.stream(on_end=5), "on_end=5"),
]

SAMPLING = [
    *[
        bad(f"Sampling: {name}={value!r}", lambda w, n=name, v=value: sd.Sampling(**{n: v}), f"{name}={value!r}", takes)
        for name, takes, values in (
            ("temperature", "≥ 0", (-0.1, NAN, INF, -INF, "1", True, None, 1j)),
            ("top_p", "(0, 1]", (0, 0.0, 2, -1, NAN, "0.9", True)),
            ("top_k", "whole number", (0, -1, 1.5, "5", True, False)),
        )
        for value in values
    ],
    *options("sampling", shown("greedy", 0.8, {"temperature": 0}, sd.Sampling), "takes a Sampling"),
    bad("generate: sampling is a model", lambda w: w.generate(sampling=w.pair.draft), "sampling", "takes a Sampling"),
    edge(
        "Sampling: temperature=1e-50 is as good as greedy",
        lambda w: (w.generate(sampling=sd.Sampling(temperature=1e-50)), w.generate(sampling=COLD)),
        lambda pair: pair[0].tokens == pair[1].tokens,
    ),
    edge(
        "Sampling: top_k larger than the vocabulary",
        lambda w: (w.generate(sampling=sd.Sampling(top_k=10**6)), w.generate()),
        lambda pair: pair[0].tokens == pair[1].tokens,
    ),
    edge(
        "Sampling: top_p=1e-12 keeps the most likely token",
        lambda w: (w.generate(sampling=sd.Sampling(top_p=1e-12)), w.generate(sampling=COLD)),
        lambda pair: pair[0].tokens == pair[1].tokens,
    ),
]  # fmt: skip

LOGITS = [
    *[
        bad(
            f"logits: {change.__name__} from the {role}, {how}",
            lambda w, r=role, c=change, s=sampling: w.poisoned(r, c, sampling=s),
            role, "logits", "NaN",
        )
        for role in ("target", "draft")
        for change in (one_nan, one_inf, nothing_possible)
        for how, sampling in (("greedy", COLD), ("sampled", sd.Sampling()), ("sampled from top-k and top-p", WARM))
    ],
    *[
        bad(
            f"logits: {change.__name__} from the {role}, {where}, {how}",
            lambda w, r=role, c=change, s=sampling, call=call: call(w, r, c, s),
            role, "logits", "NaN",
        )
        for role in ("target", "draft")
        for how, sampling, change in (("greedy", COLD, one_inf), ("sampled", sd.Sampling(), one_nan))
        for where, call in (
            ("only in round 3", lambda w, r, c, s: w.poisoned_in_round_3(r, c, sampling=s)),
            ("only in row 1 of 3", lambda w, r, c, s: w.poisoned(r, in_row_1(c), ["a", "bc", "def"], sampling=s)),
        )
    ],
    bad("logits: one_nan from the target, no draft", lambda w: w.poisoned("target", one_nan, k=0), "target", "NaN"),
    *[
        bad(
            f"logits: NaN in the weights of the {role}",
            lambda w, r=role: w.generate(pair=w.load(**{"target": "good", "draft": "good", r: "weights of NaN"})),
            role, "logits", "NaN",
        )
        for role in ("target", "draft")
    ],
    edge(
        "logits: all but one token impossible",
        lambda w: w.poisoned("target", one_possible),
        lambda g: set(g.tokens) == {5} and len(g.tokens) == 12,
    ),
    edge(
        "logits: all but one token impossible for the draft",
        lambda w: w.poisoned("draft", one_possible),
        lambda g: len(g.tokens) == 12,
    ),
]  # fmt: skip

DRAFTER = [
    bad("generate: drafter='ngram'", lambda w: w.generate(drafter="ngram"), "drafter='ngram'", "PromptLookupDrafter"),
    bad("generate: drafter is a plain object", lambda w: w.generate(drafter=OnlyNextK()), "drafter=", "Drafter"),
    bad("generate: drafter is a model", lambda w: w.generate(drafter=w.pair.draft), "drafter=", "Drafter"),
    bad("generate: drafter is a class", lambda w: w.generate(drafter=sd.PromptLookupDrafter), "drafter=", "Drafter"),
    bad("generate: drafter has no start", lambda w: w.generate(drafter=OnlyProposes()), "drafter=", "start"),
    bad("generate: pair without a draft", lambda w: w.generate(pair=w.load()), "drafter", "PromptLookupDrafter()"),
    edge(
        "generate: pair without a draft, k=0",
        lambda w: w.generate(pair=w.load(), k=0),
        lambda g: len(g.tokens) == 12,
    ),
    edge(
        "generate: pair without a draft, prompt lookup",
        lambda w: w.generate(pair=w.load(), drafter=sd.PromptLookupDrafter()),
        lambda g: len(g.tokens) == 12,
    ),
    bad("generate: draft on another device", lambda w: w.generate(pair=elsewhere(w, "draft")), "draft", "meta", "cpu"),
    bad("generate: target on no device", lambda w: w.generate(pair=elsewhere(w, "target")), "target", "meta"),
    bad("generate: pair is a name", lambda w: w.generate(pair="gpt2"), "pair='gpt2'", "load_pair"),
    bad("generate: pair is a model", lambda w: w.generate(pair=w.pair.target), "pair=", "load_pair"),
    bad("PromptLookupDrafter: max_ngram=0", lambda w: sd.PromptLookupDrafter(max_ngram=0), "max_ngram=0", "min_ngram"),
    bad("PromptLookupDrafter: min_ngram=4", lambda w: sd.PromptLookupDrafter(min_ngram=4), "min_ngram=4", "max_ngram"),
    bad("PromptLookupDrafter: max_ngram=2.5", lambda w: sd.PromptLookupDrafter(2.5), "max_ngram=2.5"),  # type: ignore[arg-type]
    bad("PromptLookupDrafter: max_ngram='3'", lambda w: sd.PromptLookupDrafter("3"), "max_ngram='3'"),  # type: ignore[arg-type]
    *[
        bad(
            f"ModelDrafter: min_confidence={value!r}",
            lambda w, v=value: sd.ModelDrafter(sd.TransformersModel(w.pair.draft), v),
            f"min_confidence={value!r}", "probability",
        )
        for value in (2, -0.1, NAN, "0.5", None)
    ],
    bad("ModelDrafter: a transformers model", lambda w: sd.ModelDrafter(w.pair.draft), "model=", "TransformersModel"),
    *[
        bad(f"TreeDrafter: branching={shown}", lambda w, v=value: tree_of(w, branching=v), f"branching={shown}", *words)
        for value, shown, words in (
            ((0,), "(0,)", ("each ≥ 1",)),
            ((2, -1), "(2, -1)", ("number of siblings",)),
            ((), "()", ("number of siblings",)),
            (3, "3", ("as (3, 2, 1)",)),
            ((2.5,), "(2.5,)", ("number of siblings",)),
            ("321", "'321'", ("number of siblings",)),
            (None, "None", ("number of siblings",)),
            ((261,), "(261,)", ("at most the draft's vocabulary, 260",)),
            ((8, 8), "(8, 8)", ("72 nodes", "at most the draft's context, 64")),
        )
    ],
    bad("TreeDrafter: unknown scheme", lambda w: tree_of(w, scheme="best"), "scheme='best'", "iid, without", "top-k"),
    bad("TreeDrafter: scheme=None", lambda w: tree_of(w, scheme=None), "scheme=None", "top-k"),
    bad("TreeDrafter: a transformers model", lambda w: sd.TreeDrafter(w.pair.draft), "model=", "TransformersModel"),
    edge(
        "TreeDrafter: a tree as large as the context",
        lambda w: w.generate(drafter=tree_of(w, branching=(64,)), max_new_tokens=100),
        lambda g: g.finish == "context" and len(g.prompt_tokens) + len(g.tokens) == CONTEXT + 1,
    ),
    *[
        bad(
            f"BestFirstDrafter: {name}={value!r}",
            lambda w, n=name, v=value: sd.BestFirstDrafter(sd.TransformersModel(w.pair.draft), **{n: v}),
            f"{name}={value!r}", takes,
        )
        for name, value, takes in (
            ("nodes", 0, "whole number ≥ 1"),
            ("nodes", 2.5, "whole number ≥ 1"),
            ("nodes", 65, "at most the draft's context"),
            ("depth", "4", "whole number ≥ 1"),
            ("depth", 6, "84 candidates"),
            ("width", 0, "whole number ≥ 1"),
            ("width", 261, "at most the draft's vocabulary, 260"),
        )
    ],
    bad(
        "TreeDrafter: draft on another device",
        lambda w: w.generate(drafter=sd.TreeDrafter(sd.TransformersModel(elsewhere(w, "draft").draft))),
        "draft", "meta", "cpu",
    ),
    edge(
        "ModelDrafter: a model with more padding rows than the target",
        lambda w: w.generate(drafter=sd.ModelDrafter(sd.TransformersModel(w.load("padded").target))),
        lambda g: len(g.tokens) == 12 and all(t < ROWS for r in g.rounds for t in r.drafted),
    ),
    *[
        bad(f"drafter: {what}", lambda w, m=make: w.generate(drafter=Proposes(m)), "draft", *words)
        for what, make, words in (
            ("returns None", lambda b, k: None, ("Draft", "None")),
            ("returns a plain tensor", lambda b, k: ids(b, k), ("Draft", "tensor")),
            ("more tokens than asked", lambda b, k: sd.Draft(ids(b, k + 1)), ("4", "3")),
            ("far more tokens than asked", lambda b, k: sd.Draft(ids(b, 500)), ("500", "3")),
            ("id too large", lambda b, k: sd.Draft(ids(b, k, ROWS)), ("260", "vocabulary")),
            ("id too large, with q", lambda b, k: sd.Draft(ids(b, k, ROWS), flat(b, k)), ("260", "vocabulary")),
            ("id -1", lambda b, k: sd.Draft(ids(b, k, -1)), ("-1", "vocabulary")),
            ("float tokens", lambda b, k: sd.Draft(ids(b, k).float()), ("tokens", "int64")),
            ("one row too many", lambda b, k: sd.Draft(ids(b + 1, k)), ("tokens", "[2, 3]")),
            ("one dimension", lambda b, k: sd.Draft(ids(b, k)[0]), ("tokens", "[3]")),
            ("q for another batch", lambda b, k: sd.Draft(ids(b, k), flat(b + 1, k)), ("probabilities", "[2, 3, 260]")),
            ("q for fewer tokens", lambda b, k: sd.Draft(ids(b, k), flat(b, k - 1)), ("probabilities", "[1, 2, 260]")),
            ("q too wide", lambda b, k: sd.Draft(ids(b, k), flat(b, k, 300)), ("probabilities", "[1, 3, 300]")),
            ("q of NaN", lambda b, k: sd.Draft(ids(b, k), flat(b, k) * NAN), ("NaN",)),
            ("lengths for another batch", lambda b, k: sd.Draft(ids(b, k), None, ids(2, 1)[:, 0]), ("lengths", "[2]")),
            ("lengths beyond the tokens", lambda b, k: sd.Draft(ids(b, k), None, ids(b, 1, 9)[:, 0]), ("9", "0 … 3")),
            ("negative lengths", lambda b, k: sd.Draft(ids(b, k), flat(b, k), ids(b, 1, -2)[:, 0]), ("-2", "0 … 3")),
            ("lengths as floats", lambda b, k: sd.Draft(ids(b, k), None, torch.ones(b)), ("lengths", "float32")),
            ("tokens as a list", lambda b, k: sd.Draft([[5] * k] * b), ("tokens", "[[5, 5, 5]]", "tensor")),
            ("q as a list", lambda b, k: sd.Draft(ids(b, k), [[1.0] * k] * b), ("probabilities", "tensor")),
            ("q twice too large", lambda b, k: sd.Draft(ids(b, k), 2 * flat(b, k)), ("probabilities", "sum to one")),
            ("q of logits", lambda b, k: sd.Draft(ids(b, k), flat(b, k).log()), ("probabilities", "sum to one")),
            ("q of zeros", lambda b, k: sd.Draft(ids(b, k), 0 * flat(b, k)), ("probabilities", "sum to one")),
        )
    ],
    edge(
        "drafter: no tokens at all",
        lambda w: w.generate(drafter=Proposes(lambda rows, k: sd.Draft(ids(rows, 0)))),
        lambda g: len(g.tokens) == len(g.rounds) == 12,
    ),
    edge(
        "drafter: fewer tokens than asked",
        lambda w: w.generate(drafter=Proposes(lambda rows, k: sd.Draft(ids(rows, min(k, 1))))),
        lambda g: len(g.tokens) == 12,
    ),
]  # fmt: skip

LOADING = [
    *[
        bad(f"load_pair: {name} as {role}", lambda w, n=name, r=role: w.load(**{"target": "good", r: n}), role, *words)
        for role in ("target", "draft")
        for name, words in (
            ("no config", ("config.json",)),
            ("config not JSON", ("cannot be loaded",)),
            ("unknown type", ("nonesuch",)),
            ("truncated weights", ("cannot be loaded",)),
            ("corrupt header", ("cannot be loaded", "header")),
            ("only pickled", ("cannot be loaded", "safetensors")),
            ("own code", ("cannot be loaded",)),
            ("recurrent", ("mamba", "rewound")),
            ("overflowing", (str(ROWS + 10), str(ROWS))),
        )
    ],
    *[
        bad(f"load_pair: {name}", lambda w, n=name: w.load(n), "target", *words)
        for name, words in (
            ("config a list", ("cannot be loaded",)),
            ("config without type", ("cannot be loaded", "model_type")),
            ("config of other size", ("cannot be loaded",)),
            ("no weights", ("cannot be loaded", "safetensors")),
            ("empty weights", ("cannot be loaded",)),
            ("a tensor missing", ("up_proj",)),
            ("no tokenizer", ("tokenizer",)),
            ("tokenizer not JSON", ("tokenizer",)),
        )
    ],
    bad("load_pair: draft has two ids swapped", lambda w: w.load("good", "swapped"), "draft", "'a'", "'b'"),
    bad("load_pair: draft has another string", lambda w: w.load("good", "renamed"), "draft", "<|stop|>", END),
    edge(
        "load_pair: draft has more padding rows",
        lambda w: [w.generate(["de", "a"], pair=w.load("good", "padded"), sampling=s) for s in (COLD, sd.Sampling())],
        lambda runs: all(len(g.tokens) == 12 and max(g.tokens) < ROWS for run in runs for g in run),
    ),
    edge(
        "load_pair: target has more padding rows",
        lambda w: [w.generate(["de", "a"], pair=w.load("padded", "good"), sampling=s) for s in (COLD, sd.Sampling())],
        lambda runs: all(len(g.tokens) == 12 for run in runs for g in run),
    ),
    edge(
        "load_pair: code in the folder is not run where none is needed",
        lambda w: [w.load("own code, known type"), (w.root / "own code, known type" / "was_run").exists()],
        lambda result: result[0].draft is None and not result[1],
    ),
    bad("load_pair: missing folder", lambda w: sd.load_pair(str(w.root / "gone")), "target", "gone", "folder"),
    bad("load_pair: missing folder as a Path", lambda w: sd.load_pair(w.root / "gone"), "target", "gone", "folder"),
    bad("load_pair: no draft folder", lambda w: sd.load_pair(w.folder("draft"), "a/b/c"), "draft='a/b/c'", "folder"),
    bad("load_pair: a file", lambda w: sd.load_pair(str(weights(Path(w.folder("good"))))), "target", "folder"),
    bad("load_pair: empty folder", lambda w: sd.load_pair(empty_folder(w.root)), "target", "config.json"),
    bad("load_pair: target=''", lambda w: sd.load_pair(""), "target=''", "folder"),
    bad("load_pair: target=5", lambda w: sd.load_pair(5), "target=5", "folder"),  # type: ignore[arg-type]
    bad("load_pair: target is a model", lambda w: sd.load_pair(w.pair.target), "target=", "folder"),
    bad("load_pair: hub name while offline", lambda w: sd.load_pair("nobody/nothing"), "'nobody/nothing'", "offline"),
    bad("load_pair: not a possible hub name", lambda w: sd.load_pair("no such*name"), "target='no such*name'", "hub"),
    bad("load_pair: unknown shipped name", lambda w: ship(w, draft="huge"), "draft='huge'", DEFAULT_DRAFT),
    bad("load_pair: nothing ships", lambda w: ship_nothing(w, sd.load_pair), "target", "specdec train"),
    bad("held_out_prompts: nothing ships", lambda w: ship_nothing(w, sd.held_out_prompts), "prompts.json"),
    bad("load_pair: device='cuda' where none is", lambda w: w.load(device="cuda"), "device='cuda'", "cpu", skip=GPU),
    bad("load_pair: device='nonsense'", lambda w: w.load(device="nonsense"), "device='nonsense'", "cpu"),
    bad("load_pair: device=''", lambda w: w.load(device=""), "device=''", "cpu"),
    bad("load_pair: device=5", lambda w: w.load(device=5), "device=", "5", "cpu", skip=GPU),
    bad("load_pair: device=2.5", lambda w: w.load(device=2.5), "device=", "2.5", "cpu"),
    bad("load_pair: device='meta'", lambda w: w.load(device="meta"), "device='meta'", "cpu"),
    bad("load_pair: dtype='int8'", lambda w: w.load(dtype="int8"), "dtype='int8'", "float32"),
    bad("load_pair: dtype='nonsense'", lambda w: w.load(dtype="nonsense"), "dtype='nonsense'", "float32"),
    bad("load_pair: dtype=torch.int64", lambda w: w.load(dtype=torch.int64), "dtype=torch.int64", "float32"),
    bad("load_pair: dtype='float8_e4m3fn'", lambda w: w.load(dtype="float8_e4m3fn"), "float8_e4m3fn", "float32"),
    bad("load_pair: dtype=16", lambda w: w.load(dtype=16), "dtype=16", "float32"),
    bad("TransformersModel: recurrent model", lambda w: sd.TransformersModel(tiny_recurrent()), "mamba", "rewound"),
    bad("TransformersModel: a name", lambda w: sd.TransformersModel("gpt2"), "model='gpt2'"),  # type: ignore[arg-type]
]  # fmt: skip

THEORY = [
    *[
        bad(f"expected_tokens: alpha={a!r}", lambda w, a=a: sd.expected_tokens(a, 4), f"alpha={a!r}", "probability")
        for a in (-0.1, 1.5, NAN, "x", None)
    ],
    bad("expected_tokens: one alpha of an array", lambda w: sd.expected_tokens(np.array([0, 1.5]), 4), "alpha=", "1.5"),
    bad("expected_tokens: a long array of alphas", lambda w: sd.expected_tokens(np.full(500, 2.0), 4), "alpha=", "2."),
    *[
        bad(f"expected_tokens: k={k!r}", lambda w, k=k: sd.expected_tokens(0.5, k), f"k={k!r}", "whole number")
        for k in (-1, 2.5, True, "4", None)
    ],
    *[
        bad(f"predicted_speedup: {name}={value!r}", lambda w, n=name, v=value: speedup(**{n: v}), f"{name}={value!r}")
        for name, values in (
            ("alpha", (-0.1, 1.5)),
            ("k", (-1, 2.5, "4")),
            ("c", (-0.1, NAN, "x", None)),
            ("v", (0, -1, NAN, "x")),
            ("overhead", (-0.1, NAN, "x")),
        )
        for value in values
    ],
    bad("predicted_speedup: k=0, c=-1", lambda w: sd.predicted_speedup(0.5, 0, -1), "c=-1"),
    bad("predicted_speedup: v(n) is 0", lambda w: sd.predicted_speedup(0.5, 4, 0.1, v=lambda n: 0), "v=0", "> 0"),
    edge("expected_tokens: alpha=0", lambda w: sd.expected_tokens(0.0, 4), lambda tokens: tokens == 1),
    edge("expected_tokens: alpha=1", lambda w: sd.expected_tokens(1.0, 4), lambda tokens: tokens == 5),
    bad("best_k: alpha=2", lambda w: sd.best_k(2, 0.1), "alpha=2", "probability"),
    bad("best_k: c=nan", lambda w: sd.best_k(0.5, NAN), "c=nan"),
    bad("best_k: max_k=-1", lambda w: sd.best_k(0.5, 0.1, max_k=-1), "max_k=-1", "whole number"),
    bad("best_k: max_k=2.5", lambda w: sd.best_k(0.5, 0.1, max_k=2.5), "max_k=2.5", "whole number"),  # type: ignore[arg-type]
    edge("best_k: max_k=0", lambda w: sd.best_k(0.9, 0.1, max_k=0), lambda k: k == 0),
    *[
        bad(f"break_even_alpha: k={k!r}", lambda w, k=k: sd.break_even_alpha(k, 0.1), f"k={k!r}", "whole number")
        for k in (0, -1, 2.5, "4")
    ],
    bad("break_even_alpha: c=-1", lambda w: sd.break_even_alpha(4, -1), "c=-1"),
    edge("break_even_alpha: an expensive draft", lambda w: sd.break_even_alpha(4, 2.0), lambda a: a == INF),
]  # fmt: skip

TABLE = [*K_AND_CONTROLLER, *PROMPT, *LENGTH_SEED_STOP, *SAMPLING, *LOGITS, *DRAFTER, *LOADING, *THEORY]


def tree_of(workshop: Workshop, **arguments: Any) -> sd.TreeDrafter:
    return sd.TreeDrafter(sd.TransformersModel(workshop.pair.draft), **arguments)


def elsewhere(workshop: Workshop, role: str) -> sd.Pair:
    """The pair with one of its models on 'meta', where tensors have shapes and no numbers: the other device of any
    machine."""
    return dataclasses.replace(workshop.pair, **{role: copy.deepcopy(getattr(workshop.pair, role)).to("meta")})


def empty_folder(root: Path) -> Path:
    folder = root / "empty"
    folder.mkdir(exist_ok=True)
    return folder


def ship(workshop: Workshop, **arguments: Any) -> sd.Pair:
    with workshop.shipping("target", DEFAULT_DRAFT):
        return sd.load_pair(device="cpu", **arguments)


def ship_nothing(workshop: Workshop, call: Callable[[], Any]) -> Any:
    with workshop.shipping():
        return call()


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in TABLE])
def test_case(case: Case, workshop: Workshop) -> None:
    if case.skip:
        pytest.skip("this machine has a GPU")
    if case.holds is not None:
        result = case.call(workshop)
        assert case.holds(result), result
        return
    with pytest.raises(sd.SpecdecError) as caught:
        case.call(workshop)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert len(message) <= 400, message
    missing = [word for word in case.words if word.lower() not in message.lower()]
    assert not missing, f"{missing} not in: {message}"


def test_the_table_is_long_enough_and_names_each_case_once() -> None:
    assert len(TABLE) >= 50
    assert len({case.name for case in TABLE}) == len(TABLE)


@pytest.mark.parametrize("folder", ["own code", "own code, known type"])
def test_code_that_comes_with_a_model_is_never_run(workshop: Workshop, folder: str) -> None:
    with contextlib.suppress(sd.SpecdecError):
        workshop.load(folder)
    assert not (Path(workshop.folder(folder)) / "was_run").exists()


def test_a_hub_name_while_offline_fails(workshop: Workshop) -> None:
    with pytest.raises(sd.SpecdecError):
        sd.load_pair("nobody/nothing")


def test_a_failed_call_leaves_the_pair_as_it_was(workshop: Workshop) -> None:
    before = workshop.generate(["def f", "a"])
    with pytest.raises(sd.SpecdecError):
        workshop.poisoned_in_round_3("draft", one_nan)
    after = workshop.generate(["def f", "a"])
    assert [g.tokens for g in after] == [g.tokens for g in before]


def test_a_stream_that_breaks_hands_over_what_it_had(workshop: Workshop) -> None:
    ended: list[sd.Generation] = []
    with pytest.raises(sd.SpecdecError):
        workshop.poisoned_in_round_3("target", one_nan, on_end=ended.append)
    assert [g.finish for g in ended] == ["interrupted"]
    assert len(ended[0].rounds) == 2
    assert ended[0].tokens == tuple(token for r in ended[0].rounds for token in r.emitted)


# Ctrl-C: it reaches the caller, who still gets what was generated, and nothing is left half done.


def press_ctrl_c(logits: torch.Tensor) -> None:
    raise KeyboardInterrupt


def interrupted_in_the_model(workshop: Workshop, role: str, ended: list[sd.Generation], **options: Any) -> None:
    workshop.poisoned_in_round_3(role, press_ctrl_c, on_end=ended.append, **options)


def interrupted_in_the_consumer(workshop: Workshop, ended: list[sd.Generation], **options: Any) -> None:
    with contextlib.closing(workshop.stream(max_new_tokens=40, on_end=ended.append, **options)) as stream:  # type: ignore[type-var]
        for n, _ in enumerate(stream, start=1):
            if n == 2:
                raise KeyboardInterrupt


@pytest.mark.parametrize("sampling", [COLD, sd.Sampling()], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    "interrupt",
    [
        lambda *a, **o: interrupted_in_the_model(a[0], "target", *a[1:], **o),
        lambda *a, **o: interrupted_in_the_model(a[0], "draft", *a[1:], **o),
        interrupted_in_the_consumer,
    ],
    ids=["in the target", "in the draft", "in the consumer"],
)
def test_ctrl_c_while_streaming(workshop: Workshop, interrupt: Callable[..., None], sampling: sd.Sampling) -> None:
    whole = workshop.generate(max_new_tokens=40, sampling=sampling)
    ended: list[sd.Generation] = []
    with pytest.raises(KeyboardInterrupt):
        interrupt(workshop, ended, sampling=sampling)

    assert len(ended) == 1
    partial = ended[0]
    assert partial.finish == "interrupted"
    assert len(partial.rounds) == 2
    assert 2 <= len(partial.tokens) < 40
    assert partial.tokens == whole.tokens[: len(partial.tokens)]
    assert partial.text == workshop.pair.tokenizer.decode(partial.tokens, skip_special_tokens=True)
    assert partial.seconds > 0

    assert not torch.is_inference_mode_enabled()
    assert workshop.generate(max_new_tokens=40, sampling=sampling).tokens == whole.tokens


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_ctrl_c_at_the_nth_layer_that_a_new_pair_runs(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Prefill, first draft and first verify, where a model may still be busy preparing itself."""
    whole = workshop.generate()
    pair = workshop.load("good", "draft")
    layer = type(pair.target.model.layers[0])
    forward, calls = layer.forward, 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise KeyboardInterrupt
        return forward(*arguments, **options)

    ended: list[sd.Generation] = []
    with monkeypatch.context() as patch:
        patch.setattr(layer, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(sd.stream_speculative(pair, "def f", k=3, max_new_tokens=12, seed=0, on_end=ended.append))
    assert [g.finish for g in ended] == ["interrupted"]
    assert ended[0].tokens == whole.tokens[: len(ended[0].tokens)]
    assert not torch.is_inference_mode_enabled()
    assert workshop.generate(pair=pair).tokens == whole.tokens


def test_ctrl_c_in_a_batch(workshop: Workshop) -> None:
    before = workshop.generate(["def f", "a"])
    with pytest.raises(KeyboardInterrupt):
        workshop.poisoned("target", press_ctrl_c, ["def f", "a"])
    assert not torch.is_inference_mode_enabled()
    assert [g.tokens for g in workshop.generate(["def f", "a"])] == [g.tokens for g in before]


def test_a_stream_closed_early_is_interrupted_and_a_whole_one_is_not(workshop: Workshop) -> None:
    ended: list[sd.Generation] = []
    stream = workshop.stream(on_end=ended.append)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    list(workshop.stream(on_end=ended.append))
    list(workshop.stream(max_new_tokens=0, on_end=ended.append))
    assert [g.finish for g in ended] == ["interrupted", "length", "length"]
