"""The bounds in docs/roofline.md match the command's output."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_roofline_document_matches_command_output() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "roofline.py"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.count("float32") == 7
    assert f"<!-- tables: benchmarks/roofline.py -->\n{done.stdout}<!-- end of tables -->" in (
        ROOT / "docs" / "roofline.md"
    ).read_text(encoding="utf-8")
