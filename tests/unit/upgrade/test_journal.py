"""The journal keeps its records on the disk, in the format of every version before, and reads them back."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from zlib import crc32

import pytest

from fct_infer.errors import OutputError
from fct_infer.gallery.fingerprint import packed_fingerprints
from fct_infer.upgrade.journal import Journal, first_record, read_records

FILES = {f"embeddings/{number:06d}.npy": {"size": 640, "sha256": f"{number:064x}"} for number in range(3)}


def line_of(record):
    text = json.dumps(record)
    return f"{crc32(text.encode()):08x} {text}\n"


def shard(number):
    name = f"{number:06d}"
    return {"name": name, "rows": 10, "files": {f"embeddings/{name}.npy": FILES["embeddings/000000.npy"]}}


def test_lines_are_those_of_every_version_before(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    facts = [(f"f{number}", {"size": 1, "mtime_ns": number, "sha256": f"{number:064x}"}) for number in range(2000)]
    journal.append("begin", identity={"gallery": packed_fingerprints(facts)})
    journal.append("shard", **shard(1))
    begin = {"kind": "begin", "identity": {"gallery": dict(facts)}}
    assert path.read_text() == line_of(begin) + line_of({"kind": "shard", **shard(1)})
    assert first_record(path) == begin and journal.all("begin") == [begin]
    assert read_records(path) == ([begin, {"kind": "shard", **shard(1)}], path.stat().st_size)


def test_what_an_earlier_run_wrote_is_read_back(tmp_path):
    path = tmp_path / "journal.jsonl"
    records = [{"kind": "shard", **shard(number)} for number in range(3)] + [{"kind": "damaged", "name": "000001"}]
    path.write_text("".join(map(line_of, records)) + "torn")
    journal = Journal(path)
    assert path.read_text().endswith("}\n")  # the torn tail is gone
    done = journal.finished()
    assert isinstance(done, Mapping) and list(done) == ["000000", "000002"] and "000001" not in done
    assert done["000002"] == records[2] and dict(done) == {"000000": records[0], "000002": records[2]}
    journal.append("shard", **shard(1))
    assert list(journal.finished()) == ["000000", "000002", "000001"]
    assert journal.has("damaged") and not journal.has("publishing")


def test_a_line_that_is_damaged_while_it_is_in_use(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("shard", **shard(0))
    path.write_bytes(path.read_bytes().replace(b"640", b"641"))
    with pytest.raises(OutputError, match=r"journal.jsonl: was damaged while it was in use"):
        journal.finished()["000000"]
    path.unlink()
    with pytest.raises(OutputError, match="cannot be read back"):
        journal.all("shard")


@pytest.mark.parametrize(("lines", "kept"), [(["a", "BAD", "c"], None), (["a", "BAD"], 1), (["a", "b"], 2)])
def test_only_the_last_line_may_be_damaged(tmp_path, lines, kept):
    path = tmp_path / "journal.jsonl"
    path.write_text("".join("BAD\n" if each == "BAD" else line_of({"kind": each}) for each in lines))
    if kept is None:
        with pytest.raises(OutputError, match="line 2 is damaged"):
            Journal(path)
    else:
        assert len(Journal(path).entries) == kept


def test_records_and_fingerprints_take_little_memory(tmp_path):
    path, count = tmp_path / "journal.jsonl", 2000
    path.write_text("".join(line_of({"kind": "shard", **shard(number)}) for number in range(count)))
    facts = ((f"f{number}", {"size": 1, "mtime_ns": number, "sha256": f"{number:064x}"}) for number in range(count))
    tracemalloc.start()
    journal = Journal(path)
    for_records, _ = tracemalloc.get_traced_memory()
    found = packed_fingerprints(facts)
    for_all, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(journal.entries) == len(found) == count
    assert for_records / count < 300 and (for_all - for_records) / count < 400  # as dicts they took some 1,000 each
    assert found["f7"] == {"size": 1, "mtime_ns": 7, "sha256": f"{7:064x}"}


def test_other_facts_than_those_of_a_file_are_kept_as_they_are():
    others = {"x": {"size": 1, "etag": "a", "modified": None, "sha256": "0" * 64}, "read as": {"parts": 3}}
    assert packed_fingerprints(others.items()) == others
