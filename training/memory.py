"""Memory that a training process keeps between its steps."""

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of malloc.h
PAD = 256 << 20


def keep_memory() -> bool:
    """Have malloc keep freed memory for the rest of this process; returns whether it can.

    Every step frees what its activations took, GNU's malloc returns that to the system, and the next step gets it back
    page by page, each cleared anew: a tenth of a step's time (benchmarks/keeping.py). The most that is held at a time
    stays the same. Only GNU's C library can be asked.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, value) for name, value in ((TRIM_THRESHOLD, -1), (MMAP_MAX, 0), (TOP_PAD, PAD)))
