"""Freed arrays are returned to the system, whatever their sizes."""

import platform
import subprocess
import sys

import pytest

LEAVE_GAPS = """
import resource
import sys
from pathlib import Path

import numpy as np

from spirit_jax import allocator

if sys.argv[1] == "returned":
    allocator.return_large_blocks()


def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


before = memory()
np.ones(3 << 20)  # glibc keeps blocks of this size from now on
arrays, small = [], []
for _ in range(100):
    arrays.append(np.ones(1 << 18))
    small.append(np.ones(1 << 12))  # in between, and not freed
del arrays
print((memory() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")
def test_gaps_are_returned_to_the_system():
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", LEAVE_GAPS, name]))
        for name in ("kept", "returned")
    )
    assert kept > 150 and returned < 20  # MiB, of 200
