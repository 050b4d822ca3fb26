"""Memory that stays with a training process."""

import ctypes
import subprocess
import sys

import pytest

TOUCH = """
import resource
from training.memory import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (48 << 20) for _ in range(8)]
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
    assert returned >= 8 * 24  # where pages are huge, of 2 MB; else 512 times as many
    assert kept < returned / 4


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from training import memory

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert not memory.keep_memory()
