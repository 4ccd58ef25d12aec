"""Load models and check that they fit together: `load_pair`, and the pair that ships."""

import json
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from specdec_ref.beyond.heads import load_head
from specdec_ref.consistency import check_consistent
from specdec_ref.errors import SpecdecError, one_line
from specdec_ref.fast.layout import store_by_columns
from specdec_ref.fast.steps import STEPS, choose_steps
from specdec_ref.models import check_rewindable, context_length, score_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from specdec_ref.drafting import Drafter

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PRETRAINED = Path(str(resources.files("specdec_ref"))) / "pretrained"
DEFAULT_DRAFT = "draft-medium"
HEADS = {"head": "head-feature", "parallel-head": "head-parallel"}
"""The heads that ship, by the name that `load_pair` takes, and their folders."""


@dataclass(frozen=True)
class Pair:
    """A target, its draft and the tokenizer.

    Attributes:
        target: a plain transformers model.
        draft: a smaller model with the same tokenizer; None if the pair has no draft model.
        tokenizer: the tokenizer of the target and the draft.
        drafter: proposes tokens in place of the draft model: the head that
            `load_pair(draft="head")` loads, or any other `Drafter`.
    """

    target: "PreTrainedModel"
    draft: "PreTrainedModel | None"
    tokenizer: "PreTrainedTokenizerBase"
    drafter: "Drafter | None" = None

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return self.target.device

    @property
    def context(self) -> int:
        """Tokens that both models can hold."""
        models = [m for m in (self.target, self.draft) if m is not None]
        return min(context_length(m.config.get_text_config(decoder=True)) for m in models)

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end a generation: the target's own."""
        ids = self.target.generation_config.eos_token_id
        ids = self.target.config.eos_token_id if ids is None else ids
        return frozenset([ids] if isinstance(ids, int) else ids or [])


def shipped() -> tuple[str, ...]:
    """Names of the shipped models, as `load_pair` takes them: 'target', drafts and heads."""
    names = {folder: name for name, folder in HEADS.items()}
    folders = [file.parent.name for file in PRETRAINED.glob("*/model.safetensors")]
    return tuple(sorted(names.get(folder, folder) for folder in folders))


def held_out_prompts() -> dict[str, str]:
    """Beginnings of functions that no shipped model was trained on, by name. Raises SpecdecError if
    their file is missing."""
    if not (PRETRAINED / "prompts.json").is_file():
        raise SpecdecError(
            "held-out prompts: prompts.json is missing here; make it with `specdec train`"
        )
    return dict(json.loads((PRETRAINED / "prompts.json").read_text(encoding="utf-8")))


def load_pair(
    target: str | os.PathLike[str] | None = None,
    draft: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    steps: str = "auto",
) -> Pair:
    """Load a target and its draft, ready to decode with.

    Only safetensors are read, and code in a model's folder is never run.

    Args:
        target, draft: a folder, a hub name, or one of `shipped()`. Without both, the shipped pair
            is loaded, which needs no network. A target of your own without a draft gives a pair for
            prompt lookup. The draft may be a head: 'head' and 'parallel-head' ship, and
            `specdec train --head` writes the folder of a head. A head becomes the pair's `drafter`.
        device: 'cpu', 'cuda', …; default the GPU where there is one.
        dtype: default float32 on a CPU, bfloat16 elsewhere.
        steps: 'auto' is 'recorded' on a CPU and 'graphs' on CUDA, where the model allows it.
            Others: 'plain', 'graphs' (CUDA graphs) and 'compiled' (torch.compile, then graphs).

    Raises:
        SpecdecError: a model cannot be loaded, its cached steps score differently from its own
            forward pass (see `consistency`), or the two models do not fit together.
    """
    where = usable_device(device)
    kind = usable_dtype(dtype, where)
    if steps not in STEPS:
        raise SpecdecError(f"steps={steps!r:.80}: takes one of {', '.join(STEPS)}")
    ours = target is None
    if ours and draft is None:
        draft = DEFAULT_DRAFT
    if ours and "target" not in shipped():
        raise SpecdecError(
            "target: the pair that ships is missing here; make it with `specdec train`"
        )
    target_model = load_model("target", "target" if ours else target, where, kind)
    tokenizer = load_tokenizer("target", "target" if ours else target)
    _check_vocabulary("target", target_model, tokenizer)
    choose_steps(target_model, steps)
    if draft is not None and is_head(draft):
        head = load_head(target_model, usable_source("draft", draft))
        return Pair(target_model, None, tokenizer, head)
    draft_model = None
    if draft is not None:
        draft_model = load_model("draft", draft, where, kind)
        check_compatible(target_model, tokenizer, draft_model, load_tokenizer("draft", draft))
        choose_steps(draft_model, steps)
    return Pair(target_model, draft_model, tokenizer)


def is_head(name: str | os.PathLike[str]) -> bool:
    """Whether a draft of that name is a head, as `save_head` writes it, and not a model.

    Raises SpecdecError if no draft can have that name.
    """
    file = Path(usable_source("draft", name)) / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "feature_layers" in content and "model_type" not in content


def check_compatible(
    target: "PreTrainedModel",
    target_tokenizer: "PreTrainedTokenizerBase",
    draft: "PreTrainedModel",
    draft_tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Check that a draft fits a target: both have the same id for each string, and can be rewound.

    Equal sizes of the vocabularies are not enough, so the maps from string to id are compared.
    Embedding rows beyond the vocabulary (padding) may differ in number.

    Args:
        target, draft: causal LMs.
        target_tokenizer, draft_tokenizer: their tokenizers.

    Raises:
        SpecdecError: they differ; the message has the first difference.
    """
    _check_vocabulary("draft", draft, draft_tokenizer)
    ours, theirs = target_tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    if ours != theirs:
        by_id = {i: s for s, i in ours.items()}, {i: s for s, i in theirs.items()}
        first = min(i for _, i in ours.items() ^ theirs.items())
        raise SpecdecError(
            f"draft: its vocabulary is not the target's: "
            f"id {first} is {by_id[0].get(first)!r} for the target and "
            f"{by_id[1].get(first)!r} for the draft ({len(ours)} and {len(theirs)} tokens)"
        )


def _check_vocabulary(
    role: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    check_rewindable(model, role)
    rows, largest = score_rows(model), max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise SpecdecError(
            f"{role}: its tokenizer has ids up to {largest}, "
            f"but the model scores only {rows} tokens"
        )


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, after a trial. None: the GPU if there is one, else the CPU. Raises
    SpecdecError for a device that does not work."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.zeros(
            1, dtype=torch.float64, device=where
        ).item()  # 'meta' has no numbers, 'mps' none of 64 bits
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu (PyTorch sees no CUDA GPU here)"
        raise SpecdecError(
            f"device={str(device)!r}: not usable; this machine has {here}"
        ) from error
    return where


def usable_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The number type of that name. None: float32 on a CPU, bfloat16 elsewhere. Raises SpecdecError
    for another type."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if kind not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise SpecdecError(f"dtype={dtype!r}: takes float32, float64, bfloat16 or float16")
    return kind


def usable_source(role: str, name: str | os.PathLike[str] | None) -> str:
    if isinstance(name, str) and name in shipped():
        return str(PRETRAINED / HEADS.get(name, name))
    if isinstance(name, str) and name in HEADS and not Path(name).is_dir():
        raise SpecdecError(
            f"{role}={name!r}: this head is missing here; make one with `specdec train --head` "
            "and name its folder"
        )
    takes = ", ".join(["takes a folder, a hub name", *shipped()])
    if not isinstance(name, (str, os.PathLike)):
        raise SpecdecError(f"{role}={name!r:.80}: {takes}")
    if not Path(name).is_dir() and (isinstance(name, os.PathLike) or not HUB_NAME.fullmatch(name)):
        raise SpecdecError(f"{role}={str(name)!r}: no such folder; {takes}")
    return str(name)


def load_model(
    role: str, name: str | os.PathLike[str] | None, device: torch.device, dtype: torch.dtype
) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    source = usable_source(role, name)
    local = Path(source).is_dir()
    if local and not (Path(source) / "config.json").is_file():
        raise SpecdecError(f"{role}={str(name)!r}: not a model folder, it has no config.json")
    bars = logging.is_progress_bar_enabled()
    if local:  # nothing to wait for
        logging.disable_progress_bar()
    try:
        result: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=local,
            output_loading_info=True,
        )
        loaded: PreTrainedModel = result[0].to(device).eval()
    except (
        Exception
    ) as error:  # every library below has its own errors for a bad file; the caller needs one line
        here = (
            ""
            if local
            else f"no such folder, nor one that ships ({', '.join(shipped())}); from the hub it "
        )
        raise SpecdecError(
            f"{role}={str(name)!r}: {here}cannot be loaded: {one_line(error)}"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if missing := sorted(
        result[1]["missing_keys"]
    ):  # transformers would fill them with random numbers
        raise SpecdecError(
            f"{role}={str(name)!r}: cannot be loaded: "
            f"its weights lack {missing[0]} ({len(missing)} missing)"
        )
    if device.type == "cpu":
        store_by_columns(loaded)
    check_consistent(loaded, role)
    return loaded


def load_tokenizer(role: str, name: str | os.PathLike[str] | None) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    source = usable_source(role, name)
    try:
        return AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=Path(source).is_dir()
        )
    except Exception as error:
        raise SpecdecError(
            f"{role}={str(name)!r}: its tokenizer cannot be loaded: {one_line(error)}"
        ) from error
