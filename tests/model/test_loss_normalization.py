"""Losses against slow references, and the schedules at their corners."""

import pytest
import torch

from gem_ds.model.loss_normalization import Schedule, kl_divergence, step_loss


def test_step_loss_divides_by_global_counts_and_undoes_the_average_over_ranks():
    ntp, contrastive, kl = torch.tensor(12.0), torch.tensor(6.0), torch.tensor(10.0)
    expected = 2 * (0.75 * 3 + 0.25 * 2 + 4 * 5)
    assert step_loss(ntp, contrastive, kl, 0.25, 4.0, 4, 3, 2, world_size=2).item() == expected
    zero = torch.tensor(0.0)
    assert step_loss(zero, zero, zero, 0.5, 4.0, 0, 0, 0, world_size=2).item() == 0


@pytest.mark.parametrize("loss", [float("inf"), float("nan"), 3.0])
def test_a_loss_that_is_not_finite_has_gradients_that_are_not(loss):
    weight = torch.tensor(2.0, requires_grad=True)
    zero = torch.tensor(0.0)
    step_loss(weight + (loss - 2), zero, zero, 0.0, 0.0, 1, 1, 1, world_size=1).backward()
    assert (weight.grad.item() == 1) if loss == 3 else weight.grad.isnan()


def test_kl_divergence_is_its_definition_and_moves_the_other_alone():
    base, other = (torch.randn(3, 7, requires_grad=True) for _ in range(2))
    p, q = base.softmax(1), other.softmax(1)
    got = kl_divergence(base, other)
    assert got.item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)
    got.backward()
    assert torch.allclose(other.grad, (q - p).detach(), atol=1e-6)
    assert base.grad is None
    assert kl_divergence(base, base).item() == pytest.approx(0, abs=1e-6)


def test_the_papers_schedule_steps_alpha_and_switches_the_rate():
    schedule = Schedule(
        steps=1000, warmup=10, ntp_rate=1e-4, contrastive_rate=1e-5, final_rate=0.0, alpha=1.0
    )
    assert [schedule.alpha_at(s) for s in (0, 99, 100, 999)] == [0, 0, 1, 1]
    assert schedule.rate_at(0) == pytest.approx(1e-5)  # a tenth of the way up to 1e-4
    assert schedule.rate_at(9) == pytest.approx(1e-4)
    assert schedule.rate_at(99) / schedule.rate_at(100) == pytest.approx(10, rel=1e-2)
    assert schedule.rate_at(1000) == pytest.approx(0)
    rates = [schedule.rate_at(s) for s in range(100, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_alpha_ramps_linearly_to_its_final_value():
    schedule = Schedule(
        steps=100, warmup=0, ntp_rate=1, contrastive_rate=1, alpha=0.5, alpha_start=10, alpha_ramp=4
    )
    got = [schedule.alpha_at(s) for s in range(9, 16)]
    assert got == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_alpha_rises_as_half_a_cosine():
    schedule = Schedule(
        steps=100,
        warmup=0,
        ntp_rate=1,
        contrastive_rate=1,
        alpha=0.8,
        alpha_start=10,
        alpha_ramp=3,
        alpha_shape="cosine",
    )
    got = [schedule.alpha_at(s) for s in range(9, 15)]
    quarter = 0.5 * (1 - 0.5**0.5)
    assert got == pytest.approx([0, 0.8 * quarter, 0.4, 0.8 * (1 - quarter), 0.8, 0.8])
