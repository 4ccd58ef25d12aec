"""The promises of the adapters: each draws what it says, from whom it says, and every failure of a server is one line.

The server of these tests is real: it listens on loopback and samples from a tiny model. Statistical tests have fixed
seeds and fail for a right sampler once in 1,000 other seeds.
"""

import copy
import functools
import importlib.util
import json
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import specdec_ref as sd
from specdec_lab.equivalence import engines
from specdec_lab.equivalence.drafters import DRAFTERS, drafter_by_name
from specdec_lab.equivalence.empirical import SamplingPlan, carry_out, empirical, prepare
from specdec_lab.equivalence.engines import (
    OurLoop,
    SharedWork,
    TransformersAssisted,
    TransformersGenerate,
    autoregressive,
    engine_by_name,
)
from specdec_lab.equivalence.greedy import greedy_agreement
from specdec_lab.equivalence.sampler import SamplerError
from specdec_lab.equivalence.server_engine import OpenAICompletions
from specdec_lab.equivalence.tiny import head_drafter, random_head
from specdec_lab.measurement.methods import head_of
from specdec_lab.serving.configuration import speculative_config
from specdec_ref import decoding
from specdec_ref.beyond.heads import HeadDrafter
from specdec_ref.beyond.trees import BestFirstDrafter
from specdec_ref.fast.steps import choose_steps
from specdec_ref.loading import HEADS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = [[3, 7, 12, 9, 30], [5, 5, 8, 2, 40, 33, 1]]
CUTS = sd.Sampling(temperature=0.8, top_k=12, top_p=0.9)

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

Make = Callable[[sd.Pair, sd.Sampling], Any]
MakeDrafter = Callable[[sd.Pair], sd.Drafter | None]


def with_head(kind: str) -> MakeDrafter:
    """What makes the drafter of an untrained head."""

    def make(pair: sd.Pair) -> sd.Drafter:
        head = random_head(pair.target, kind)
        return head_drafter(head, sd.TransformersModel(pair.target, feature_layers=head.config.feature_layers))

    return make


def with_head_tree(pair: sd.Pair) -> sd.Drafter:
    """A tree of an untrained head's proposals."""
    head = with_head("feature")(pair)
    assert isinstance(head, HeadDrafter)
    return BestFirstDrafter(head)


METHODS: dict[str, MakeDrafter] = {
    **{name: functools.partial(drafter_by_name, name) for name in DRAFTERS if name not in (*HEADS, "head-tree")},
    "head-tree": with_head_tree,
    "head": with_head("feature"),
    "parallel-head": with_head("parallel"),
}
"""What makes the drafter of each method, for any pair."""


def ours(make: MakeDrafter) -> Make:
    """Our loop with that drafter."""
    return lambda pair, sampling: OurLoop(pair, 2, sampling, make(pair))


ENGINES: dict[str, Make] = {
    **{f"our loop, {name}": ours(make) for name, make in METHODS.items()},
    "our loop, block verification": lambda pair, sampling: OurLoop(pair, 3, sampling, verification="block"),
    "autoregressive": autoregressive,
    "transformers": TransformersGenerate,
    "transformers, assisted": lambda pair, sampling: TransformersAssisted(pair, sampling, tokens=2),
    "transformers, assisted, its own schedule": TransformersAssisted,
}


@pytest.fixture(scope="module")
def plan(pair: sd.Pair) -> SamplingPlan:
    return prepare(pair, PROMPTS, samples=1_000)


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_an_engine_gives_what_is_asked_and_the_same_for_the_same_seed(pair: sd.Pair, make: Make) -> None:
    engine = make(pair, sd.Sampling())
    state = torch.get_rng_state()
    rows, again, others = (torch.as_tensor(engine.sample(PROMPTS[0], 6, 5, seed)) for seed in (1, 1, 2))
    assert rows.shape == (6, 5)
    assert rows.dtype == torch.int64
    assert rows.equal(again)
    assert not rows.equal(others)
    assert len({tuple(row) for row in rows.tolist()}) > 1
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_an_engine_is_consistent_with_the_target(pair: sd.Pair, make: Make) -> None:
    few = "assisted" in make(pair, CUTS).name
    result = empirical(pair, make(pair, CUTS), PROMPTS, samples=400 if few else 2_000, sampling=CUTS, length=3)
    assert result.consistent, result.explain()


@pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
def test_an_engine_decodes_greedily_as_the_target(pair: sd.Pair, make: Make) -> None:
    result = greedy_agreement(pair, PROMPTS, 16, make(pair, sd.GREEDY))
    assert result.consistent, result.explain()


def test_transformers_engines_stop_at_the_targets_end_token(
    tiny_model: "Callable[..., PreTrainedModel]", disturbed: "Callable[..., PreTrainedModel]", pair: sd.Pair
) -> None:
    target = tiny_model("llama", eos_token_id=9)
    ending = sd.Pair(target, disturbed(target), pair.tokenizer)
    for engine in (TransformersGenerate(ending), TransformersAssisted(ending, tokens=2)):
        assert engine.eos == {9}
        result = empirical(ending, engine, PROMPTS, samples=800, length=3)
        assert result.consistent, result.explain()


def test_cuts_of_the_models_own_configuration_are_left_out(
    tiny_model: "Callable[..., PreTrainedModel]", pair: sd.Pair
) -> None:
    target = tiny_model("llama")
    target.generation_config.top_k, target.generation_config.repetition_penalty = 2, 1.5
    rows = TransformersGenerate(sd.Pair(target, None, pair.tokenizer)).sample(PROMPTS[0], 200, 1, 0)
    assert rows == TransformersGenerate(pair).sample(PROMPTS[0], 200, 1, 0)
    assert target.generation_config.top_k == 2


def test_our_engine_runs_the_loop_it_finds(pair: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a wrong version put in its place is what is tested."""
    right, calls = decoding.speculate, []

    def watched(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return right(*arguments, **options)

    engine = OurLoop(pair, 2)
    monkeypatch.setattr(decoding, "speculate", watched)
    engine.sample(PROMPTS[0], 3, 4, 0)
    assert len(calls) == 1


def test_shared_work_gives_every_row_what_it_would_get_alone(pair: sd.Pair) -> None:
    """Rows that part by prompt, by tokens and by how far they are taken back, some of them alike in all."""
    plain, shared = sd.TransformersModel(pair.target), SharedWork(pair.target)
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    for model in (plain, shared):
        model.start(5, 16)
        model.prefill(prompts)
    assert shared.cache.batch == 2
    more = torch.tensor([[1, 2], [1, 2], [5, 6], [1, 3], [1, 2]])
    torch.testing.assert_close(shared.extend(more), plain.extend(more), atol=1e-5, rtol=1e-5)
    assert shared.cache.batch == 3
    for model in (plain, shared):
        model.rewind([6, 7, 8, 6, 6])
    assert shared.lengths() == plain.cache.lengths == [6, 7, 8, 6, 6]
    assert shared.cache.batch == 4  # rows 0 and 4 are alike; row 3 fed something else once, and stays on its own
    torch.testing.assert_close(shared.extend(more), plain.extend(more), atol=1e-5, rtol=1e-5)
    for model in (plain, shared):
        model.keep([4, 2])
    more = torch.tensor([[9], [8]])
    torch.testing.assert_close(shared.extend(more), plain.extend(more), atol=1e-5, rtol=1e-5)
    assert shared.cache.batch == 2


def test_shared_work_scores_no_token_behind_the_end_of_a_text(pair: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of three lengths, of which some have one token to go: the same scores up to the end, and fewer of them."""
    plain, shared = sd.TransformersModel(pair.target), SharedWork(pair.target)
    monkeypatch.setattr(engines, "A_PASS", 1)
    shared.end = 9
    scored: list[int] = []
    run = sd.TransformersModel._forward
    monkeypatch.setattr(sd.TransformersModel, "_forward", lambda *a, **k: scored.append(a[2].numel()) or run(*a, **k))
    for model in (plain, shared):
        model.start(6, 16)
        model.prefill([PROMPTS[0]] * 6)
    more = torch.tensor([[1, 2, 3], [1, 2, 4], [5, 6, 7], [1, 3, 3], [1, 2, 3], [9, 9, 9]])
    both = []
    for model in (plain, shared):
        model.extend(more)
        model.rewind([8, 7, 6, 8, 6, 7])
        scored.clear()
        both.append(model.extend(more))
    scores, found = both
    assert sum(scored) == 1 + 2 + 3 + 1 + 3 + 2
    for row, needed in enumerate([1, 2, 3, 1, 3, 2]):
        torch.testing.assert_close(found[row, :needed], scores[row, :needed], atol=1e-5, rtol=1e-5)
        assert not found[row, needed:].any()
    for model in (plain, shared):  # those that go on have all that they need in their caches
        model.rewind([9, 8, 7, 9, 7, 8])
        model.keep([1, 2, 4])
    more = torch.tensor([[4], [5], [6]])
    torch.testing.assert_close(shared.extend(more), plain.extend(more), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("a_pass", "end", "scored"),
    [
        (1, None, [1, 2, 4]),  # one first token, two first pairs, four rows that are not alike
        (2, None, [2 * 2, 4]),  # here the second column is not worth a pass of its own
        (100, None, [4 * 3]),
        (1, 7, [1, 2 * 2]),  # the third token comes after the end, so it makes no difference
    ],
)
def test_shared_work_scores_a_beginning_once_that_many_rows_have_in_common(
    pair: sd.Pair, monkeypatch: pytest.MonkeyPatch, a_pass: int, end: int | None, scored: list[int]
) -> None:
    """Where what is saved is worth another pass; and what is scored is the same."""
    plain, shared = sd.TransformersModel(pair.target), SharedWork(pair.target)
    monkeypatch.setattr(engines, "A_PASS", a_pass)
    shared.end = end
    found: list[int] = []
    run = sd.TransformersModel._forward
    for model in (plain, shared):
        model.start(5, 16)
        model.prefill([PROMPTS[0]] * 5)
    more = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 5, 3], [1, 2, 4], [1, 5, 6]])
    scores = plain.extend(more)
    monkeypatch.setattr(sd.TransformersModel, "_forward", lambda *a, **k: found.append(a[2].numel()) or run(*a, **k))
    needed = 3 if end is None else end - len(PROMPTS[0])
    torch.testing.assert_close(shared.extend(more)[:, :needed], scores[:, :needed], atol=1e-5, rtol=1e-5)
    assert found == scored
    assert shared.lengths() == [len(PROMPTS[0]) + 3] * 5
    for model in (plain, shared):  # and so is what the cache holds of it
        model.rewind([len(PROMPTS[0]) + 1] * 5)
    more = torch.tensor([[2], [2], [5], [7], [7]])
    torch.testing.assert_close(shared.extend(more), plain.extend(more), atol=1e-5, rtol=1e-5)


def test_our_engine_draws_the_same_whether_or_not_it_scores_what_nobody_asks_for(
    pair: sd.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "A_PASS", 1)
    sampled = [OurLoop(pair, 3, CUTS).sample(PROMPTS[0], 200, 5, seed=4)]
    monkeypatch.setattr(SharedWork, "_forward", sd.TransformersModel._forward)
    sampled.append(OurLoop(pair, 3, CUTS).sample(PROMPTS[0], 200, 5, seed=4))
    assert torch.equal(*sampled)


@pytest.mark.parametrize(
    ("needed", "passes"),
    [
        ([3, 3, 3], [(0, 3, 3)]),
        ([3] * 50 + [1] * 20, [(0, 70, 3)]),  # 40 tokens too many are cheaper than a pass of their own
        ([3] * 50 + [1] * 80, [(0, 50, 3), (50, 130, 1)]),
        ([1] * 80 + [3], [(0, 80, 1), (80, 81, 3)]),
        ([1] * 20 + [3] + [1] * 200, [(0, 21, 3), (21, 221, 1)]),
        ([2, 1] * 200, [(0, 400, 2)]),  # each takes little, and no two neighbors are alike
    ],
)
def test_neighbours_are_scored_together_unless_that_wastes_more_than_a_pass(
    needed: list[int], passes: list[tuple[int, int, int]]
) -> None:
    assert [(part.start, part.stop, m) for part, m in engines.adjacent_rows(needed)] == passes


def test_shared_work_scores_trees_as_each_row_would_alone(pair: sd.Pair) -> None:
    """Equal and different trees after equal and different texts; then other paths are kept, and the texts go on."""
    plain, shared = sd.TransformersModel(pair.target), SharedWork(pair.target)
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]]
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4]])
    parents = torch.tensor([[-1, 0, 0, 1], [-1, 0, 0, 1], [-1, 0, 0, 1], [-1, 0, 0, 1], [-1, 0, 0, 2]])
    shared.end = 8  # nodes are not in the order of their positions, so all of them are scored
    for model in (plain, shared):
        model.start(5, 24)
        model.prefill(prompts)
    torch.testing.assert_close(shared.extend_tree(tokens, parents), plain.extend_tree(tokens, parents))
    assert shared.cache.batch == 4
    shared.end = None
    for model in (plain, shared):
        model.keep_path([[0, 1, 3], [0, 2], [0, 1], [0], [0, 2, 3]])
    assert shared.lengths() == plain.lengths() == [8, 7, 9, 6, 8]
    assert shared.cache.batch == 5
    more = torch.tensor([[9, 8], [9, 8], [9, 8], [9, 8], [9, 8]])
    torch.testing.assert_close(shared.extend(more), plain.extend(more), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_shared_work_changes_no_sample(
    name: str,
    tiny_model: "Callable[..., PreTrainedModel]",
    disturbed: "Callable[..., PreTrainedModel]",
    pair: sd.Pair,
) -> None:
    """The same seed gives the same tokens as `speculate` on models that share nothing. In float64."""
    target = tiny_model("llama").double()
    precise = sd.Pair(target, disturbed(target).double(), pair.tokenizer)
    engine = OurLoop(precise, 3, sd.Sampling(), METHODS[name](precise))
    drafter = METHODS[name](precise) or sd.ModelDrafter(sd.TransformersModel(precise.draft))
    plain = getattr(head_of(drafter) or drafter, "target", sd.TransformersModel(target))
    for seed in range(2):
        rows = [decoding.Row(tuple(PROMPTS[0]), 9) for _ in range(12)]
        for _ in decoding.speculate(plain, drafter, list(rows), sd.FixedK(3), sd.Sampling(), sd.SeededRandomness(seed)):
            pass
        assert engine.sample(PROMPTS[0], 12, 9, seed).tolist() == [row.new for row in rows]
        drafter = METHODS[name](precise) if name == "suffix" else drafter  # it would remember these texts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nonsense", "drafter='nonsense': takes one of draft, head"),
        ("tree-top-k", "drafter='tree-top-k': needs a draft model"),
        (str(Path(__file__).parent), "has no config.json of a head"),
    ],
)
def test_an_unusable_drafter_is_a_clear_error(name: str, words: str, pair: sd.Pair) -> None:
    with pytest.raises(sd.SpecdecError, match=re.escape(words)):
        drafter_by_name(name, sd.Pair(pair.target, None, pair.tokenizer))


def test_block_verification_refuses_a_tree(pair: sd.Pair) -> None:
    with pytest.raises(sd.SpecdecError, match="verification='block': a tree of candidates has a rule of its own"):
        OurLoop(pair, 2, drafter=drafter_by_name("tree-iid", pair), verification="block")


DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, ON_A_GPU])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", [1, 40])
def test_our_engine_draws_the_same_however_steps_are_run(
    tiny_model: "Callable[..., PreTrainedModel]",
    disturbed: "Callable[..., PreTrainedModel]",
    pair: sd.Pair,
    number: int,
    device: str,
) -> None:
    """Captured steps belong to the memory of a cache, which shared work lays out anew."""
    target = tiny_model("llama").to(device).double()
    same = sd.Pair(target, disturbed(target).double(), pair.tokenizer)
    sampled = {}
    for steps in ("plain", "graphs"):
        for model in (same.target, same.draft):
            choose_steps(model, steps)
        engine = OurLoop(same, 2)
        sampled[steps] = [engine.sample(PROMPTS[seed % 2], number, 4, seed).tolist() for seed in range(8)]
    assert sampled["plain"] == sampled["graphs"]


@pytest.mark.cuda
@ON_A_GPU
def test_our_loop_is_consistent_with_the_target_on_a_gpu(pair: sd.Pair) -> None:
    there = sd.Pair(copy.deepcopy(pair.target).cuda(), copy.deepcopy(pair.draft).cuda(), pair.tokenizer)
    result = empirical(there, OurLoop(there, 2), PROMPTS, samples=8_000)
    assert result.consistent, result.explain()


@pytest.mark.parametrize("name", ["ours", "autoregressive", "transformers", "assisted", f"{__name__}:of_our_own"])
def test_engines_have_names(pair: sd.Pair, name: str) -> None:
    assert torch.as_tensor(engine_by_name(name, pair, k=2).sample(PROMPTS[0], 2, 3, 0)).shape == (2, 3)


def of_our_own(pair: sd.Pair, sampling: sd.Sampling) -> OurLoop:
    """An engine by `module:attribute`."""
    return OurLoop(pair, 1, sampling)


NOT_CALLABLE = 3


def takes_nothing() -> OurLoop:
    """A function that takes other arguments than an engine's."""
    raise AssertionError


def fails(pair: sd.Pair, sampling: sd.Sampling) -> OurLoop:
    """An engine that cannot be made."""
    raise RuntimeError("no GPU,\nno engine")


def makes_nothing(pair: sd.Pair, sampling: sd.Sampling) -> None:
    """A function that forgets to return its engine."""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "takes one of ours, autoregressive"),
        ("nonsense", "takes one of ours"),
        ("openai:", "takes one of ours"),
        ("openai:not an address", "takes the address of a server"),
        ("no_such_module:thing", "No module named 'no_such_module'"),
        (f"{__name__}:no_such_thing", "no attribute 'no_such_thing'"),
        (f"{__name__}:NOT_CALLABLE", "is no function"),
        (f"{__name__}:takes_nothing", "its function failed: TypeError: takes_nothing"),
        (f"{__name__}:fails", "its function failed: RuntimeError: no GPU, no engine"),
        (f"{__name__}:makes_nothing", "sampler=None: takes an object with sample"),
    ],
)
def test_unknown_engines_are_refused(pair: sd.Pair, name: str, words: str) -> None:
    with pytest.raises(sd.SpecdecError, match=words):
        engine_by_name(name, pair)


def test_engines_that_need_a_draft_say_so(pair: sd.Pair) -> None:
    alone = sd.Pair(pair.target, None, pair.tokenizer)
    for name in ("ours", "assisted"):
        with pytest.raises(sd.SpecdecError, match="no draft model"):
            engine_by_name(name, alone)
    with pytest.raises(sd.SpecdecError, match="tokens=0"):
        TransformersAssisted(pair, tokens=0)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_its_engine_says_what_to_install(pair: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair.draft.config, "_name_or_path", "some/draft")
    with pytest.raises(sd.SpecdecError, match="vllm: cannot be imported"):
        engine_by_name("vllm", pair)


def test_vllm_is_asked_to_draft_and_for_token_ids(pair: sd.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with vLLM's interface, which draws from the tiny model: vLLM itself needs a GPU."""
    asked: list[dict[str, Any]] = []

    class LLM:
        def __init__(self, **options: Any):
            asked.append(options)

        def generate(self, prompts: list[dict[str, list[int]]], parameters: Any, use_tqdm: bool) -> list[Any]:
            (prompt,) = prompts
            rows = autoregressive(pair).sample(
                prompt["prompt_token_ids"], parameters.n, parameters.max_tokens, parameters.seed or 0
            )
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=tuple(r)) for r in rows.tolist()])]

    stand_in: Any = types.ModuleType("vllm")
    stand_in.LLM, stand_in.SamplingParams = (
        LLM,
        lambda **options: asked.append(options) or types.SimpleNamespace(**options),
    )
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    with pytest.raises(sd.SpecdecError, match="loaded from neither"):
        engine_by_name("vllm", pair, model="some/model")
    monkeypatch.setattr(pair.draft.config, "_name_or_path", "some/draft")
    rows = engine_by_name("vllm", pair, model="some/model").sample(PROMPTS[0], 5, 3, 1)
    assert torch.tensor(rows).shape == (5, 3)
    assert asked[0] == {
        "model": "some/model",
        "generation_config": "vllm",
        "dtype": "float32",
        **({} if torch.cuda.is_available() else {"gpu_memory_utilization": 0.5}),
        "speculative_config": speculative_config("some/draft", 2),
    }
    assert (asked[1]["top_k"], asked[1]["top_p"], asked[1]["ignore_eos"]) == (-1, 1.0, True)


# A server.


class Server(ThreadingHTTPServer):
    """Completions as OpenAI-compatible servers give them, sampled by `engine`. The rest is what may be odd about it."""

    daemon_threads = True

    def __init__(self, engine: Any):
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine = engine
        self.models = ["tiny"]
        self.ids = "token_ids"
        self.one_at_a_time = False
        self.leaves_out: set[int] = set()
        self.fails_after: int | None = None
        self.failure: Callable[[Handler], None] = lambda handler: handler.close()
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What a broken connection raises here is wanted."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None:
        """Silence."""

    def close(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.wfile.flush()
        self.connection.close()

    def answer(self, content: Any, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer({"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if self.path != "/v1/completions" or body["model"] not in self.server.models:
            self.answer({"error": {"message": f"The model {body['model']} does not exist."}}, 404)
        elif self.server.fails_after is not None and len(self.server.bodies) > self.server.fails_after:
            self.server.failure(self)
        else:
            number = 1 if self.server.one_at_a_time else body["n"]
            rows = self.server.engine.sample(body["prompt"], number, body["max_tokens"], body["seed"])
            self.answer({"choices": [self.choice(list(row)) for row in torch.as_tensor(rows).tolist()]})

    def choice(self, row: list[int]) -> dict[str, Any]:
        end = next((i for i, token in enumerate(row) if token in self.server.leaves_out), None)
        tokens, reason = (row, "length") if end is None else (row[:end], "stop")
        choice: dict[str, Any] = {"text": "…", "finish_reason": reason}
        if self.server.ids == "logprobs":
            choice["logprobs"] = {"tokens": [f"token_id:{token}" for token in tokens]}
        elif self.server.ids == "text":
            choice["logprobs"] = {"tokens": ["a"] * len(tokens)}
        elif self.server.ids:
            choice[self.server.ids] = tokens
        return choice


@pytest.fixture
def server(pair: sd.Pair) -> Iterator[Server]:
    with Server(autoregressive(pair)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("ids", ["token_ids", "logprobs", "tokens"])
def test_a_right_server_is_consistent_however_it_gives_token_ids(server: Server, plan: SamplingPlan, ids: str) -> None:
    server.ids = ids
    result = carry_out(plan, OpenAICompletions(server.url))
    assert result.consistent, result.explain()
    assert result.samples == 1_000
    assert result.sampler == f"tiny at {server.url}"


def test_a_wrong_server_is_refuted(server: Server, pair: sd.Pair) -> None:
    server.engine = autoregressive(sd.Pair(pair.draft, None, pair.tokenizer))
    result = empirical(pair, OpenAICompletions(server.url, batch=500), PROMPTS, samples=4_000)
    assert not result.consistent


def test_a_server_is_asked_for_plain_sampling_by_token_ids(server: Server) -> None:
    OpenAICompletions(server.url + "/v1/", CUTS, more={"min_p": 0.1}).sample(PROMPTS[0], 7, 3, 11)
    (body,) = server.bodies
    assert body["prompt"] == PROMPTS[0]
    assert (body["n"], body["max_tokens"], body["seed"]) == (7, 3, 11)
    assert (body["temperature"], body["top_k"], body["top_p"]) == (0.8, 12, 0.9)
    assert body["repetition_penalty"] == 1.0
    assert body["min_p"] == 0.1
    OpenAICompletions(server.url).sample(PROMPTS[0], 1, 1, 0)
    assert (server.bodies[1]["top_k"], server.bodies[1]["top_p"]) == (-1, 1.0)


def test_a_server_that_gives_one_at_a_time_is_asked_again_with_another_seed(server: Server) -> None:
    server.one_at_a_time = True
    rows = OpenAICompletions(server.url).sample(PROMPTS[0], 20, 4, 0)
    assert len(rows) == len(server.bodies) == len({body["seed"] for body in server.bodies}) == 20
    assert len({tuple(row) for row in rows}) > 10


def test_an_end_token_that_a_server_leaves_out_is_put_back(server: Server, pair: sd.Pair) -> None:
    server.leaves_out = {9}
    result = empirical(pair, OpenAICompletions(server.url, eos=frozenset({9})), PROMPTS, samples=1_000)
    assert result.consistent, result.explain()


def test_a_server_that_gives_no_token_ids_is_recognized(server: Server) -> None:
    for ids in ("", "text"):
        server.ids = ids
        with pytest.raises(sd.SpecdecError, match="gives no token ids"):
            OpenAICompletions(server.url).sample(PROMPTS[0], 2, 3, 0)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (lambda handler: handler.close(), "cannot be reached"),
        (lambda handler: handler.answer({"error": "out of\nmemory"}, 500), "answered 500 .*memory"),
        (lambda handler: handler.answer(b"<html>"), "no JSON"),
        (lambda handler: handler.answer([1]), r"answered \[1\]"),
        (lambda handler: handler.answer({"choices": []}), "without choices"),
        (lambda handler: threading.Event().wait(2), "no answer within 0.2 s"),
    ],
    ids=["dies half-way", "error 500", "no JSON", "no object", "no choices", "hangs"],
)
def test_a_server_that_fails_half_way_is_one_line_and_what_it_gave_is_kept(
    server: Server, plan: SamplingPlan, failure: Callable[[Handler], None], words: str
) -> None:
    server.fails_after, server.failure = 3, failure
    with pytest.raises(SamplerError, match=words) as failed:
        carry_out(plan, OpenAICompletions(server.url, timeout=0.2 if "0.2" in words else 120.0))
    assert "after 300 of 1,000 samples" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert failed.value.partial is not None
    assert failed.value.partial.samples == 300


def test_the_wrong_model_is_named(server: Server) -> None:
    with pytest.raises(sd.SpecdecError, match=r"answered 404 .* other does not exist"):
        OpenAICompletions(server.url, model="other").sample(PROMPTS[0], 1, 1, 0)
    server.models = ["one", "two"]
    with pytest.raises(sd.SpecdecError, match="has one, two models; name one"):
        OpenAICompletions(server.url)


def test_a_server_that_is_down_is_one_line(pair: sd.Pair) -> None:
    with Server(autoregressive(pair)) as closed:
        url = closed.url
    with pytest.raises(sd.SpecdecError, match="cannot be reached"):
        engine_by_name(f"openai:{url}", pair)
