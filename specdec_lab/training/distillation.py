"""Losses for training drafts: on the target's whole distribution at every position, not only on the next token.

The acceptance rate is Σ min(p, q) = 1 − TV(p, q). It is differentiable, but its gradient is of little use while q is
far from p. So training starts with KL(p‖q), and changes to the total variation after half of the steps. Zhou et al.
2023 ('DistillSpec', arXiv 2310.08461) compare such divergences.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Losses = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(tokens [B, T + 1], share of the training done, 0-d) → one scalar loss per model, by name."""

KEPT_KL = 0.1
"""The final weight of KL(p‖q). The total variation alone hardly depends on rare tokens."""


def text_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the text, nats per token. logits: [B, T, V], labels: [B, T]. Returns a scalar."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def distillation_loss(log_p: Tensor, log_q: Tensor, progress: Tensor) -> Tensor:
    """KL(p‖q), turning into TV(p, q) between 50 % and 70 % of the training.

    Args:
        log_p, log_q: log-probabilities, [B, T, V].
        progress: share of the training that is done, 0-d.

    Returns:
        A scalar.
    """
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum(-1).mean()
    tv = 0.5 * (p - log_q.exp()).abs().sum(-1).mean()
    share = ((progress - 0.5) / 0.2).clamp(0, 1)
    return (1 - share * (1 - KEPT_KL)) * kl + share * tv


def losses_from_text(models: Mapping[str, nn.Module], half: bool) -> Losses:
    """Losses for training on the text alone. half: compute in bfloat16 where autocast allows it."""

    def losses(tokens: Tensor, progress: Tensor) -> dict[str, Tensor]:
        return {name: text_loss(_logits(model, tokens[:, :-1], half), tokens[:, 1:]) for name, model in models.items()}

    return losses


def losses_from_target(
    target: nn.Module, distilled: Mapping[str, nn.Module], plain: Mapping[str, nn.Module], half: bool
) -> Losses:
    """Losses for training `distilled` on the target's distributions, in one target pass, and `plain` on the text."""
    from_text = losses_from_text(plain, half)

    def losses(tokens: Tensor, progress: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            log_p = _logits(target, tokens[:, :-1], half).float().log_softmax(-1)
        result = from_text(tokens, progress)
        for name, model in distilled.items():
            log_q = _logits(model, tokens[:, :-1], half).float().log_softmax(-1)
            result[name] = distillation_loss(log_p, log_q, progress)
        return result

    return losses


def _logits(model: nn.Module, tokens: Tensor, half: bool) -> Tensor:
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits
