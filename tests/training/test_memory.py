"""Memory that stays with a training process."""

import ctypes
import subprocess
import sys

import pytest

TOUCH = """
import resource
import numpy as np
from training.memory import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(6 << 20) for _ in range(4)]  # 48 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if KEEP:
    assert keep_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than GNU's")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    returned, kept = (
        int(subprocess.run([sys.executable, "-c", f"KEEP = {keep}\n{TOUCH}"], check=True, capture_output=True).stdout)
        for keep in (False, True)
    )
    assert kept < 100
    assert returned > 1000 + kept


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from training import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert not memory.keep_memory()
