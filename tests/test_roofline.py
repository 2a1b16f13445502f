"""The bounds in docs/roofline.md are what the command prints."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_document_holds_what_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "roofline.py"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.count("float32") == 7
    assert f"<!-- tables: benchmarks/roofline.py -->\n{done.stdout}<!-- end of tables -->" in (
        ROOT / "docs" / "roofline.md"
    ).read_text(encoding="utf-8")
