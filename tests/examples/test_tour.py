"""The notebook runs from its first cell to its last, on small images and for a few steps."""

import nbclient
import nbformat

from runs.directory import ROOT
from tests.conftest import HANG

NOTEBOOK = ROOT / "examples" / "tour.ipynb"


def test_the_tour(small_not_mnist, font_cache):
    notebook = nbformat.read(NOTEBOOK, 4)
    (cell,) = (cell for cell in notebook.cells if 'DATA, STEPS, SHOWN_DIGIT = "mnist", 300, 6' in cell.source)
    cell.source = cell.source.replace('"mnist", 300, 6', '"not-mnist", 3, 6')
    deadlines = dict.fromkeys(("timeout", "startup_timeout", "iopub_timeout"), int(HANG))
    client = nbclient.NotebookClient(notebook, **deadlines, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    warned = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stderr")
    assert not warned
    assert "real kernels: " in printed and "step 3: data term " in printed and "'brier': " in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
