"""Marks of tests."""

from typing import Any

import pytest


def slow(value: Any) -> Any:
    """A case of a test that runs only where slow tests are asked for."""
    return pytest.param(value, marks=pytest.mark.slow)
