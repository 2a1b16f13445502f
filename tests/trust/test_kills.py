"""Commands killed at their steps and run again end in the same bits, leave nothing and touch nothing of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .attempts import ROOT, WATCHDOG_S

COMMANDS = ("convert", "convert again", "convert encoded", "train", "train with checkpoints", "relabel")


def test_commands_killed_and_run_again(tmp_path: Path) -> None:
    """Two kills of each of these; `scripts/kill.py` kills all commands. Over 5 s: every kill takes two runs."""
    chosen = [word for name in COMMANDS for word in ("--command", name)]
    program = [sys.executable, str(ROOT / "scripts" / "kill.py"), "--kills", "2", "--directory", str(tmp_path), *chosen]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=4 * WATCHDOG_S, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    assert ended.stdout.splitlines()[-1] == "12 kills of 6 commands: all ended as undisturbed runs", ended.stdout
