"""A table that LanceDB wrote: read, upgraded, and its new rows a column of it by one commit."""

from __future__ import annotations

import numpy as np
import pytest
from support.programs import paper_h

from fct_infer import Transformation, upgrade_gallery
from fct_infer.connectors import open_destination, open_source
from fct_infer.connectors.lance_column import add_column
from fct_infer.connectors.table_versions import rollback, versions
from fct_infer.errors import GalleryError, UsageError
from fct_infer.upgrade.settings import Settings

ROWS, OLD, SIDE, NEW = 61, 12, 6, 10
H = Transformation(paper_h(old_dim=OLD, side_dim=SIDE, new_dim=NEW, inner=16, seed=1), threads=1)


@pytest.mark.filterwarnings("ignore")
def test_a_table_gets_a_column_by_one_commit_and_loses_it_again(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    rng = np.random.default_rng(0)
    old, side = rng.standard_normal((ROWS, OLD), np.float32), rng.standard_normal((ROWS, SIDE), np.float32)
    database = lancedb.connect(tmp_path / "shop")
    table = database.create_table(
        "items", [{"id": row, "vector": old[row], "side": side[row], "title": f"t{row}"} for row in range(40)]
    )
    table.add([{"id": row, "vector": old[row], "side": side[row], "title": f"t{row}"} for row in range(40, ROWS)])
    reader, before = database.open_table("items"), table.version
    url = f"lancedb://{tmp_path}/shop?table=items"
    report = upgrade_gallery(open_source(url), H, tmp_path / "out", settings=Settings(index="none"))
    added = add_column(report.dest, tmp_path / "shop" / "items.lance", "vector_v2")
    assert (added.version_before, added.rows) == (before, ROWS)
    table = database.open_table("items")
    found = table.to_arrow().sort_by("id")
    new = np.stack(found.column("vector_v2").to_pylist()).astype(np.float32)
    np.testing.assert_array_equal(new, H(old, side))
    hits = table.search(new[7], vector_column_name="vector_v2").limit(1).to_list()
    assert hits[0]["id"] == 7 and hits[0]["title"] == "t7"
    assert reader.search(old[5], vector_column_name="vector").limit(1).to_list()[0]["id"] == 5
    table.restore(before)
    assert "vector_v2" not in database.open_table("items").schema.names


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(GalleryError, match="there is no table 'items'"):
        open_source(f"lancedb://{tmp_path}?table=items")
    with pytest.raises(UsageError, match="is no name of a table"):
        open_source(f"lancedb://{tmp_path}?table=..%2Fitems")
    with pytest.raises(UsageError, match="add-column makes its rows a new column"):
        open_destination(f"lancedb://{tmp_path}?table=items&column=v2")


def test_versions_are_lancedbs_own(tmp_path):
    for call in (versions, rollback):
        with pytest.raises(UsageError, match="LanceDB itself keeps versions"):
            call(f"lancedb://{tmp_path}?table=items")
