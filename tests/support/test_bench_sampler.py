"""python -m bench sampler: rivals of Euler's method, and the table of what they give."""

import math

import pytest
import torch

import flow
from bench import sampler


@pytest.mark.parametrize("name, order", [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_a_method_has_its_order_and_counts_its_evaluations(name, order):
    """da/dtau = a leads from 1 to e. Twice the steps leave half of the error of a first-order method, a quarter of a
    second-order one's."""
    method, each = sampler.SAMPLERS[name]
    calls = []

    def v_theta(a, tau):
        calls.append(tau)
        return a
    errors = [float((method(v_theta, torch.ones(1, 1, 1, dtype=torch.float64), steps) - math.e).abs())
              for steps in (20, 40)]
    assert errors[0] / errors[1] == pytest.approx(2 ** order, rel=0.1)
    assert len(calls) == each * 60 and 0 <= min(calls) and max(calls) <= 1


def test_the_table_has_a_row_for_each_number_of_evaluations_and_a_figure_for_each_run():
    rows = [{"sampler": "euler", "evaluations": 2, "static": 0.5 + seed / 10, "dynamic": 0.25, "spread": 0.1}
            for seed in (0, 1)]
    assert list(sampler.table(rows))[2:] == ["| euler | 2 | 50.0, 60.0 | 25.0, 25.0 | 0.100, 0.100 |"]
    assert sampler.SAMPLERS["euler"][0] is flow.euler
