"""Losses and their schedules, as functions of tensors and of the global step.

Losses are sums; `step_loss` is the one place where they are divided by the step's global counts and
where what DeepSpeed does to gradients is undone.

The contrastive loss is in `contrastive`, next-token prediction in `cross_entropy`. Shapes: N
targets, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def kl_divergence(base_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """Sum over rows of KL(base || other) between the softmaxes of logits, in nats, in fp32.

    The gradient is that of `logits_NV` alone.
    """
    expected_NV = base_NV.detach().float().log_softmax(-1)
    return F.kl_div(
        logits_NV.float().log_softmax(-1), expected_NV, reduction="sum", log_target=True
    )


def step_loss(
    ntp_sum: Tensor,
    contrastive_sum: Tensor,
    kl_sum: Tensor,
    alpha: float,
    kl_weight: float,
    n_targets: int,
    n_anchors: int,
    n_reference: int,
    world_size: int,
) -> Tensor:
    """A micro-batch's share of a step's loss, to call backward on:
    ``L = (1 - alpha) L_ntp + alpha L_cl + kl_weight L_kl``.

    The counts are those of the whole step, over all ranks and accumulated micro-batches, so that a
    token weighs the same wherever it lies. DeepSpeed averages gradients over ranks: multiplying by
    their number undoes it. (It divides by the accumulation steps only if asked to: call
    ``engine.backward(loss, scale_wrt_gas=False)``.) A loss that is not finite gets gradients that
    are not, so that its step is not taken: those of an infinite one could be.
    """
    ntp = ntp_sum / max(n_targets, 1)
    contrastive = contrastive_sum / max(n_anchors, 1)
    kl = kl_sum / max(n_reference, 1)
    loss = ((1 - alpha) * ntp + alpha * contrastive + kl_weight * kl) * world_size
    return loss * (1 + 0 * loss.detach())


@dataclass(frozen=True)
class Schedule:
    """Alpha and the learning rate of a step: pure functions of its number (0-based).

    Alpha is 0 before `alpha_start`, `alpha` from `alpha_start + alpha_ramp` on, and between them
    rises linearly or as half a cosine (the paper's is a step: ramp 0, start 100, alpha 1). The rate
    is the mean of the two rates weighted by alpha, times a linear warm-up and a cosine decay to
    `final_rate` of itself.
    """

    steps: int
    warmup: int
    ntp_rate: float
    contrastive_rate: float
    final_rate: float = 0.1
    alpha: float = 1.0
    alpha_start: int = 100
    alpha_ramp: int = 0
    alpha_shape: Literal["linear", "cosine"] = "linear"

    def alpha_at(self, step: int) -> float:
        if step < self.alpha_start:
            return 0.0
        done = min((step - self.alpha_start + 1) / (self.alpha_ramp + 1), 1.0)
        if self.alpha_shape == "cosine":
            done = 0.5 * (1 - math.cos(math.pi * done))
        return self.alpha * done

    def rate_at(self, step: int) -> float:
        alpha = self.alpha_at(step)
        peak = (1 - alpha) * self.ntp_rate + alpha * self.contrastive_rate
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return peak * (self.final_rate + (1 - self.final_rate) * cosine)
