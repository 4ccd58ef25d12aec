"""specdec_ref: a reference implementation of speculative decoding that a course is built on.

`import specdec_ref as sd` is light: PyTorch, models and plots load when a name that needs them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "errors": "SpecdecError",
    "sampling": "GREEDY Randomness Sampling SeededRandomness",
    "acceptance": "Verdict acceptance_probability acceptance_rate residual verify",
    "theory": "best_k break_even_alpha expected_tokens predicted_speedup",
    "cache": "RewindableCache",
    "models": "LanguageModel Pair TransformersModel held_out_prompts load_pair shipped",
    "drafting": "Draft Drafter ModelDrafter PromptLookupDrafter",
    "control": "AdaptiveSpeculation Controller CostModelSpeculation FixedK Round get_optimal_speculation_config",
    "monitoring": "SpeculativeDecodingMonitor",
    "measurement.diagnostics": "diagnose",
    "decoding": "Chunk Generation generate_autoregressive generate_speculative stream_speculative",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}

if TYPE_CHECKING:
    from specdec_ref.acceptance import Verdict, acceptance_probability, acceptance_rate, residual, verify
    from specdec_ref.cache import RewindableCache
    from specdec_ref.control import (
        AdaptiveSpeculation,
        Controller,
        CostModelSpeculation,
        FixedK,
        Round,
        get_optimal_speculation_config,
    )
    from specdec_ref.decoding import (
        Chunk,
        Generation,
        generate_autoregressive,
        generate_speculative,
        stream_speculative,
    )
    from specdec_ref.drafting import Draft, Drafter, ModelDrafter, PromptLookupDrafter
    from specdec_ref.errors import SpecdecError
    from specdec_ref.measurement.diagnostics import diagnose
    from specdec_ref.models import LanguageModel, Pair, TransformersModel, held_out_prompts, load_pair, shipped
    from specdec_ref.monitoring import SpeculativeDecodingMonitor
    from specdec_ref.sampling import GREEDY, Randomness, Sampling, SeededRandomness
    from specdec_ref.theory import best_k, break_even_alpha, expected_tokens, predicted_speedup


__all__ = [
    "GREEDY",
    "AdaptiveSpeculation",
    "Chunk",
    "Controller",
    "CostModelSpeculation",
    "Draft",
    "Drafter",
    "FixedK",
    "Generation",
    "LanguageModel",
    "ModelDrafter",
    "Pair",
    "PromptLookupDrafter",
    "Randomness",
    "RewindableCache",
    "Round",
    "Sampling",
    "SeededRandomness",
    "SpecdecError",
    "SpeculativeDecodingMonitor",
    "TransformersModel",
    "Verdict",
    "acceptance_probability",
    "acceptance_rate",
    "best_k",
    "break_even_alpha",
    "diagnose",
    "expected_tokens",
    "generate_autoregressive",
    "generate_speculative",
    "get_optimal_speculation_config",
    "held_out_prompts",
    "load_pair",
    "predicted_speedup",
    "residual",
    "shipped",
    "stream_speculative",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"specdec_ref.{_MODULES[name]}"), name)
    if name in _HOMES or name == "equivalence":
        return import_module(f"specdec_ref.{name}")
    raise AttributeError(f"module 'specdec_ref' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
