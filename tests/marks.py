"""Marks of tests."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """A case of a test that runs only where slow tests are asked for; a value an argument."""
    return pytest.param(*values, marks=pytest.mark.slow)
