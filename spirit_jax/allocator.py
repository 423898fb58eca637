"""A setting of the C library's allocator for commands that run for days."""

import ctypes

M_MMAP_THRESHOLD = -3  # in malloc.h of glibc
LARGE = 256 << 10  # bytes


def return_large_blocks() -> None:
    """Makes glibc return large arrays to the system as soon as they are freed.

    By default it keeps blocks of up to 32 MiB after it has freed one of that size, and arrays of
    many lengths then leave gaps: the memory of `spirit-jax prepare` grew for 15 hours of audio.
    Nothing happens with other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGE)
