"""The example notebook runs from top to bottom in a kernel of its own, and is committed without outputs."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parent.parent / "scripts/examples/hardness.ipynb"


def test_notebook_runs_and_resampling_favours_the_hardest_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.outputs == [] for cell in notebook.cells if cell.cell_type == "code")
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))
    *_, last = (cell for cell in notebook.cells if cell.cell_type == "code")
    lines = "".join(output.text for output in last.outputs if output.output_type == "stream").splitlines()
    counts = [int(line.split("-> ")[1].split()[0]) for line in lines[:4]]
    assert counts == sorted(counts, reverse=True), "the hardest class comes first"
    assert counts[0] > 200 > counts[-1]
    assert sum(counts) == 800
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert any("image/png" in output.data for output in pictures)
