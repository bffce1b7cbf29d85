"""Checks of users' values: what passes, and how the rest is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simclr_tf.core import checks
from simclr_tf.core.errors import UserError


def test_good_values_pass():
    checks.whole("a", 1)
    checks.whole("a", np.int64(7), most=7)
    checks.whole("a", -5, least=None)
    checks.whole("a", None, optional=True)
    checks.number("b", 0, least=0)
    checks.number("b", np.float32(0.5), above=0, most=1)
    checks.number("b", None, optional=True)
    checks.choice("c", 50, {18: "x", 50: "y"})
    checks.switch("d", False)


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (lambda: checks.whole("a", 0), "a is 0; use a whole number of at least 1"),
        (lambda: checks.whole("a", True), "a is True; use a whole number of at least 1"),
        (lambda: checks.whole("a", 2.0, hint=", such as 8"), "a is 2.0; use a whole number of at least 1, such as 8"),
        (lambda: checks.whole("a", "3", least=None), "a is '3'; use a whole number"),
        (lambda: checks.whole("a", 9, most=8), "a is 9; use a whole number from 1 to 8"),
        (lambda: checks.whole("a", None), "a is None; use a whole number of at least 1"),
        (lambda: checks.whole("a", -1, optional=True), "a is -1; use a whole number of at least 1, or None"),
        (lambda: checks.number("b", math.nan, least=0), "b is nan; use a number of at least 0"),
        (lambda: checks.number("b", math.inf), "b is inf; use a finite number"),
        (lambda: checks.number("b", True, least=0), "b is True; use a number of at least 0"),
        (lambda: checks.number("b", 0, above=0, most=1), "b is 0; use a number above 0 and at most 1"),
        (lambda: checks.number("b", 1, least=0, below=1), "b is 1; use a number of at least 0 and below 1"),
        (lambda: checks.number("b", [1], least=0, most=1), "b is [1]; use a number from 0 to 1"),
        (lambda: checks.choice("c", "z", ("x", "y")), "c is 'z'; choose one of x, y"),
        (lambda: checks.switch("d", 1), "d is 1; use True or False"),
    ],
)
def test_bad_values_are_refused_in_one_line(check, told):
    with pytest.raises(UserError) as refused:
        check()
    assert str(refused.value) == told
