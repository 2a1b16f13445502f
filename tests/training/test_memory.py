"""Freed memory is kept during a training, and given back after it."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from hbr_fast.training.memory import freed_memory_kept

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's allocator")
BYTES = 64 << 20


@pytest.fixture(autouse=True)
def _no_settings_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


def faults_of_a_block() -> int:
    """Pages mapped while a block is taken, written and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(BYTES, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_pages_of_a_freed_block_are_not_mapped_again() -> None:
    with freed_memory_kept():
        faults_of_a_block()
        assert min(faults_of_a_block() for _ in range(3)) < 100


def test_memory_is_given_back_at_the_end() -> None:
    with freed_memory_kept():
        faults_of_a_block()
        kept = resident_bytes()
    assert resident_bytes() < kept - BYTES // 2


def test_memory_is_given_back_after_an_error() -> None:
    kept = []

    def fails() -> None:
        with freed_memory_kept():
            faults_of_a_block()
            kept.append(resident_bytes())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert resident_bytes() < kept[0] - BYTES // 2


def test_settings_of_the_user_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    before = resident_bytes()
    with freed_memory_kept():
        faults_of_a_block()
        assert resident_bytes() < before + BYTES // 2
