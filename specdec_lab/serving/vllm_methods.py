"""What vLLM can draft with, how it can accept, and where each setting takes effect.

The facts are those of vLLM 0.32, tried on a CPU, and of the 0.33.0 wheel, read but not run. Nothing imports vLLM.
`warnings_for` names every setting of a configuration that vLLM accepts and then does not follow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """A value of `method` in vLLM's `speculative_config`.

    Attributes:
        drafts: what proposes the tokens.
        needs_model: the configuration has to name a draft model or a head.
        has_q: the drafter has a distribution to sample from, so `draft_sample_method` applies.
        parallel: 'no', 'optional' (by `parallel_drafting`, with weights that were trained for it) or 'always'.
    """

    drafts: str
    needs_model: bool
    has_q: bool
    parallel: str = "no"


METHODS = {
    "draft_model": Method("a smaller model with the target's vocabulary", True, True, "optional"),
    "ngram": Method("the continuation of an earlier n-gram of the same request", False, False),
    "suffix": Method("a tree of this request and of finished requests, weighted by frequency", False, False),
    "eagle3": Method("a head that predicts tokens from features of three target layers", True, True, "optional"),
    "mtp": Method("next-token modules that were trained as part of the target", False, True),
    "dflash": Method("a draft model that predicts all k tokens in one pass", True, True, "always"),
}
REMOVED_METHODS = ("medusa", "mlp_speculator")
"""Methods that vLLM 0.33 removed."""


@dataclass(frozen=True)
class AcceptanceRule:
    """A value of `rejection_sample_method`.

    Attributes:
        decides: how drafted tokens are accepted.
        exact: the output keeps the target's distribution.
        where: where the rule takes effect.
    """

    decides: str
    exact: bool
    where: str


RULES = {
    "standard": AcceptanceRule("token by token, with min(1, p/q)", True, "everywhere"),
    "block": AcceptanceRule("the longest prefix that passes, decided over the block", True, "model runner V2 only"),
    "synthetic": AcceptanceRule("at given rates, whatever the models say", False, "everywhere; for benchmarks"),
    "fly": AcceptanceRule("also what standard rejects, where the target is unsure", False, "not on a CPU"),
}


@dataclass(frozen=True)
class _Deployment:
    """What the warnings depend on."""

    config: Mapping[str, Any]
    cpu: bool
    data_parallel: int

    @property
    def method(self) -> str:
        return str(self.config.get("method", "draft_model"))

    @property
    def rule(self) -> str:
        return str(self.config.get("rejection_sample_method", "standard"))

    @property
    def samples(self) -> bool:
        return self.config.get("draft_sample_method") == "probabilistic"

    @property
    def scheduled(self) -> bool:
        return "num_speculative_tokens_per_batch_size" in self.config

    @property
    def runner_v1_because(self) -> str | None:
        """Why vLLM falls back to model runner V1, or None where nothing forces it to."""
        reasons = {
            "a CPU": self.cpu,
            "suffix decoding": self.method == "suffix",
            "a parallel draft model": self.method == "draft_model" and bool(self.config.get("parallel_drafting")),
            "a heterogeneous vocabulary": bool(self.config.get("use_heterogeneous_vocab")),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)


def warnings_for(config: Mapping[str, Any], *, cpu: bool = False, data_parallel: int = 1) -> list[str]:
    """Settings of a configuration that vLLM 0.33 accepts and does not follow, and rules that change the output.

    Args:
        config: a `speculative_config`.
        cpu: the server runs on a CPU.
        data_parallel: size of data parallelism.

    Returns:
        One sentence for each; an empty list where everything takes effect.
    """
    deployment = _Deployment(config, cpu, data_parallel)
    return [warning for look in _LOOKS for warning in look(deployment)]


def _of_the_rule(deployment: _Deployment) -> list[str]:
    rule, reason = deployment.rule, deployment.runner_v1_because
    if rule == "synthetic":
        return ["synthetic: ignores the target's probabilities; for benchmarks only, never for users"]
    if rule == "fly":
        refused = ", and vLLM refuses it on a CPU" if deployment.cpu else ""
        return [f"fly: lossy by design; the output does not follow the target's distribution{refused}"]
    if rule != "block":
        return []
    if reason is not None:
        then = "; but its draft becomes greedy instead of 'probabilistic'" if deployment.samples else ""
        return [f"block: {reason} runs on model runner V1, which still decides token by token{then}"]
    if not deployment.samples:
        return ["block: gains nothing here; with a one-hot q it accepts exactly as 'standard' does"]
    return []


def _of_sampling(deployment: _Deployment) -> list[str]:
    if not deployment.samples:
        return []
    warnings = ["probabilistic: before vLLM 0.33, draft and residual tokens could share random numbers (#54282)"]
    if deployment.config.get("use_heterogeneous_vocab"):
        warnings.append("use_heterogeneous_vocab: vLLM refuses it together with 'probabilistic'")
    return warnings


def _of_the_cpu(deployment: _Deployment) -> list[str]:
    if not deployment.cpu:
        return []
    return [
        "CPU: in versions up to 0.33, the output above temperature 0 does not follow the target's distribution (#55005)"
    ]


def _of_the_schedule(deployment: _Deployment) -> list[str]:
    if not deployment.scheduled:
        return []
    if deployment.data_parallel > 1:
        return [f"schedule: dropped with data parallelism ({deployment.data_parallel}); the largest k always applies"]
    if deployment.method == "suffix":
        return ["schedule: dropped with suffix decoding, which chooses its own draft length"]
    warnings = []
    if deployment.runner_v1_because is None and deployment.method == "draft_model":
        warnings.append(
            "schedule: in model runner V2, a draft model runs all its steps; tokens beyond k are thrown away"
        )
    if deployment.cpu:
        warnings.append("schedule: a change of k is reported to end the server on a CPU (#47014); try it first")
    return warnings


def _of_the_drafter(deployment: _Deployment) -> list[str]:
    warnings = []
    if deployment.method == "suffix":
        warnings.append("suffix: needs `pip install arctic-inference==0.1.1`; keeps up to 10,000 finished requests")
    if deployment.config.get("parallel_drafting"):
        warnings.append("parallel_drafting: needs a draft that was trained to predict k tokens in one pass")
    return warnings


_LOOKS: tuple[Callable[[_Deployment], list[str]], ...] = (
    _of_the_rule,
    _of_sampling,
    _of_the_cpu,
    _of_the_schedule,
    _of_the_drafter,
)
