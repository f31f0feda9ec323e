"""The notebooks run from top to bottom, and git keeps no output of theirs."""

import os
from pathlib import Path

import pytest

from nava_lab.registry import PACKAGE

nbformat = pytest.importorskip("nbformat", reason="nbformat is missing: pip install nbformat")
nbclient = pytest.importorskip("nbclient", reason="nbclient is missing: pip install nbclient ipykernel")

NOTEBOOKS = sorted((PACKAGE.parent / "notebooks").glob("*.ipynb"))


def test_there_is_one_for_each_thing_that_the_readme_promises():
    assert [path.stem for path in NOTEBOOKS] == ["attention", "compare_variants", "depth_ratio", "move_a_trait", "own_block"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_in_git(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    assert set(book.metadata) <= {"kernelspec", "language_info"}
    assert book.cells[0].source.startswith("# ")


def test_all_run_in_one_kernel(tmp_path, monkeypatch):
    """One after another with everything forgotten in between, so that torch is imported once; their runs share a folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a notebook shows figures by its own backend
    whole = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        whole.cells.append(nbformat.v4.new_code_cell(f"# {path.stem}\n%reset -f"))
        whole.cells += [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    client = nbclient.NotebookClient(whole, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # an error names the cell and shows its traceback
    shown = [output for cell in whole.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in shown)
    assert "Exploratory: 2 seeds per variant, and a verdict needs 8." in text
    assert "Exploratory: 1 seed per variant, and a verdict needs 8." in text
    assert "ovi (bridge.kind conditional)" in text
    assert "within 200 ms" in text
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 4
    assert any("video" in output.get("data", {}).get("text/html", "") for output in shown)
    assert len(list(Path(tmp_path, "runs", "notebooks").glob("*/record.json"))) == 10
