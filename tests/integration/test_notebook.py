"""A notebook that is executed by a real kernel."""

from __future__ import annotations

import numpy as np
import pytest

from fct_infer import notebook

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

CELLS = (
    "import numpy as np, fct_infer; from fct_infer.fitting.fit import Settings; rows = np.load('old.npy')",
    "found = fct_infer.fit(rows, rows[:, ::-1].copy(), settings=Settings(network=False)); found",
    "h = fct_infer.Transformation(found.program); fct_infer.upgrade_gallery('old.npy', h, 'shown')",
    "fct_infer.upgrade_gallery('old.npy', h, 'silent', progress=lambda *_: None)",
)


@pytest.mark.filterwarnings("ignore")  # of what runs the kernel
def test_a_bar_is_shown_where_no_progress_is_asked_for_and_the_report_below_it(tmp_path, monkeypatch):
    from nbformat import v4

    np.save(tmp_path / "old.npy", np.random.default_rng(0).standard_normal((200, 8), np.float32))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in CELLS])
    kernel = {"kernel_name": "python3", "resources": {"metadata": {"path": str(tmp_path)}}}
    nbclient.NotebookClient(book, timeout=100, **kernel).execute()
    outputs = [[output["data"] for output in cell["outputs"] if "data" in output] for cell in book["cells"]]
    _, fitted, shown, silent = outputs
    bar, report = shown  # one place, written over stage by stage
    assert bar["text/html"].startswith('<progress max="1" value="1"></progress> done in ')
    assert "UpgradeReport" in report["text/html"]
    assert ["UpgradeReport" in each["text/plain"] for each in silent] == [True]
    assert len(fitted) == 2 and "done in" in fitted[0]["text/plain"]


def test_a_bar_says_what_is_new_and_not_too_often(monkeypatch):
    said, now = [], [0.0]
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now[0])
    bar = notebook.Bar()
    monkeypatch.setattr(bar, "_show", lambda text, *_: said.append(text))
    for moment, done in ((0, 0), (0.1, 10), (0.3, 20), (0.35, 30), (0.36, 40)):
        now[0] = moment
        bar("<read>", done, 40)
    bar("write", 0, 40)
    assert said == ["<read>: 0 of 40, 0 s", "<read>: 20 of 40, 0 s", "<read>: 40 of 40, 0 s", "write: 0 of 40, 0 s"]
