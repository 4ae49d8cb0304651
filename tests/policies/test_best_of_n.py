"""The bound of its KL, against exact enumeration."""

from __future__ import annotations

import math

import pytest

from modpo.policies.best_of_n import BestOfN


def test_the_bound_of_kl_against_exact_enumeration() -> None:
    """Best of n of m equally likely answers with rewards 1..m: P(i) = (i/m)^n - ((i-1)/m)^n. It is met as m grows."""
    for n in (1, 2, 4, 8):
        kls = []
        for m in (2, 5, 1000):
            best = [(i / m) ** n - ((i - 1) / m) ** n for i in range(1, m + 1)]
            kls.append(sum(p * math.log(p * m) for p in best if p > 0))
        bound = BestOfN(n, {"kind": 1.0}).kl_bound
        assert all(kl <= bound + 1e-12 for kl in kls)
        assert kls[-1] == pytest.approx(bound, abs=0.01)
