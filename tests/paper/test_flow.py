"""Flow matching, Sec. 3.3 (2): Eq. (2), Eq. (3) and the density of tau."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import flow

K, D_A, REAL = 5, 32, 26


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- Eq. (2) -----------------------------------------------------------------------------------------------

def test_tau_0_is_noise_tau_1_is_the_action_and_between_lies_eq_2():
    """Sec. 3.3: "interpolated action chunks a^tau = (1 - tau) eps + tau a"; the target is a - eps, the path's slope."""
    a, eps = normal(3, 1, K, D_A), normal(3, 2, K, D_A, seed=1)
    tau = torch.tensor([[0.0, 1.0], [0.25, 0.5], [0.9, 0.1]])
    a_tau, target = flow.interpolate(a, eps, tau), flow.velocity_target(a, eps)
    assert torch.equal(a_tau[0, 0], eps[0, 0]) and torch.equal(a_tau[0, 1], a[0, 0])
    for b in range(3):
        for r in range(2):
            t = tau[b, r].item()
            torch.testing.assert_close(a_tau[b, r], (1 - t) * eps[b, r] + t * a[b, 0])
            torch.testing.assert_close(a_tau[b, r] - eps[b, r], t * target[b, r])


# ---- Eq. (3) -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("steps", [1, 10])
def test_euler_steps_of_the_exact_velocity_recover_the_action(steps):
    """Eq. (3): "starting from Gaussian noise [...] we iteratively apply the Euler update"."""
    a, eps = normal(2, K, D_A), normal(2, K, D_A, seed=1)
    constant = flow.euler(lambda a_tau, tau: flow.velocity_target(a, eps), eps, steps)
    torch.testing.assert_close(constant, a, rtol=0, atol=1e-5)
    towards = flow.euler(lambda a_tau, tau: (a - a_tau) / (1 - tau), eps, steps)   # from where one is
    torch.testing.assert_close(towards, a, rtol=0, atol=1e-5)


def test_tau_progresses_from_0_to_1_over_k_steps():
    """Sec. 3.3: "tau progresses from 0 to 1 over K steps with step size 1 / K", one update each."""
    eps, seen = normal(2, K, D_A), []

    def v_theta(a_tau, tau):
        seen.append((tau, a_tau))
        return 3 * a_tau + tau

    out = flow.euler(v_theta, eps, 10)
    assert [tau for tau, _ in seen] == pytest.approx([n / 10 for n in range(10)])
    assert torch.equal(seen[0][1], eps)
    for (tau, a), after in zip(seen, [a for _, a in seen[1:]] + [out]):
        torch.testing.assert_close(after, a + 0.1 * (3 * a + tau))


@pytest.mark.parametrize("padded", [False, True])
def test_padded_dimensions_stay_exactly_0_in_every_euler_step(padded, tiny, build, random_batch, monkeypatch):
    """Sec. 3.4: actions of all robots are padded to one width, here from 26 to 32; [release] denoises them too."""
    model, eps = build(replace(tiny, noise_on_padding=padded)), normal(2, tiny.chunk, D_A)
    seen, v_theta = [], model.v_theta

    def spy(prefix, batch, a_tau, tau):
        seen.extend([a_tau, v_theta(prefix, batch, a_tau, tau)])
        return seen[-1]

    monkeypatch.setattr(model, "v_theta", spy)
    seen.append(model.sample_actions(random_batch(tiny, 2, real=REAL), eps))
    assert len(seen) == 2 * tiny.euler_steps + 1
    for x in seen:
        assert (x[..., :REAL] != 0).all() and ((x[..., REAL:] != 0).all() if padded else (x[..., REAL:] == 0).all())


# ---- tau ---------------------------------------------------------------------------------------------------

def assert_distributed(density, mean, cdf):
    tau = torch.from_numpy(flow.sample_tau(np.random.default_rng(0), 100_000, density))
    assert tau.min() >= 0 and tau.max() <= 1 and abs(tau.mean().item() - mean) < 0.01
    for x in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert abs((tau <= x).double().mean().item() - cdf(x)) < 0.005


def test_tau_is_beta_distributed():
    """Sec. 3.3: "tau ~ Beta(1.5, 1.0)": mean 0.6, distribution function tau^1.5, data-heavy."""
    assert_distributed("paper", 0.6, lambda x: x ** 1.5)


def test_the_release_draws_the_noise_level_from_that_density():
    """[release] 1 - tau = 0.001 + 0.999 Beta(1.5, 1): mean of tau 0.4, more weight near the noise."""
    assert_distributed("release", 0.4, lambda x: 1 - ((1 - x - 0.001) / 0.999) ** 1.5)


def test_the_embedding_of_tau_is_sines_and_cosines_of_the_noise_level():
    """Sec. 3.2: action tokens know tau. [release] periods of 1 - tau from 0.004 to 4, in plain python."""
    width, tau = 12, [[0.0, 0.3], [0.777, 1.0]]
    found = flow.tau_embedding(torch.tensor(tau, dtype=torch.float64), width)
    assert found.shape == (2, 2, width) and found.dtype == torch.float32
    for b in range(2):
        for r in range(2):
            for i in range(width // 2):
                period = math.exp(math.log(0.004) + i / (width // 2 - 1) * (math.log(4) - math.log(0.004)))
                angle = 2 * math.pi * (1 - tau[b][r]) / period
                assert found[b, r, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
                assert found[b, r, width // 2 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)
