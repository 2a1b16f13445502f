"""Run Python code against hostile input in a separate process, with bounded memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import hbr_fast

ROOT = Path(hbr_fast.__file__).parent.parent
MEMORY = 1 << 30
WATCHDOG_S = 240  # only against hangs: no test measures time

_FRAME = """
import resource, sys
import hbr_fast
{imports}
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
try:
{body}
except BaseException as error:
    lines = str(error).splitlines() or [""]
    print(f"{{type(error).__name__}}\\x1f{{len(lines)}}\\x1f{{lines[0]}}")
else:
    print("accepted\\x1f1\\x1f")
"""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: "accepted", the name of an exception's class, "hang" or "crash"."""

    kind: str
    message: str
    lines: int = 1


def attempt(body: str, *, imports: str = "", memory: int = MEMORY, cwd: Path | None = None) -> Outcome:
    """Run `body`, after `imports`, in a new process that may use `memory` bytes of addresses."""
    program = _FRAME.format(imports=imports, memory=memory, body=textwrap.indent(textwrap.dedent(body), "    "))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=WATCHDOG_S,
            env=environment,
            cwd=cwd,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome("hang", "")
    found = [line for line in ended.stdout.splitlines() if "\x1f" in line]
    if ended.returncode != 0 or not found:
        return Outcome("crash", f"exit code {ended.returncode}: {ended.stderr[-500:]}")
    kind, lines, message = found[-1].split("\x1f")
    return Outcome(kind, message, int(lines))
