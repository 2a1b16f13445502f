"""Commands killed at their steps and run again end in the same bits, leave nothing and touch nothing of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from . import killing
from .attempts import ROOT, WATCHDOG_S


def test_commands_killed_and_run_again(tmp_path: Path) -> None:
    """Four kills of each command, two of those that draw a report, and ten in a row. Over 5 s: each takes two runs."""
    program = [sys.executable, str(ROOT / "scripts" / "kill.py"), "--kills", "4", "--directory", str(tmp_path)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=6 * WATCHDOG_S, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    possible = [command for command in killing.COMMANDS.values() if command.is_possible()]
    lines = ended.stdout.splitlines()
    assert sum(", 4 kills" in line or ", 2 kills" in line for line in lines) == len(possible) >= 9
    assert lines[-1].endswith(f" kills of {len(possible)} commands: all ended as undisturbed runs"), ended.stdout
