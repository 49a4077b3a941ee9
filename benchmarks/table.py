"""Tables out of results/*.json: for the terminal, and as Markdown into README.md (``python -m benchmarks.table``)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.measure import RESULTS
from fct_infer.storage import write_bytes

README = Path(__file__).parent / "README.md"
WIDTH = 140  # where stdout is no terminal


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]

    def print(self) -> None:
        console = Console()
        if not console.is_terminal:
            console.width = WIDTH
        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE)
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        def line(cells: list[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        rule = "|---|" + "---:|" * (len(self.columns) - 1)
        return "\n".join([f"**{self.title}**", "", line(self.columns), rule, *map(line, self.rows)])


def transformation_tables(result: dict[str, Any]) -> list[Table]:
    """One table for each program and precision; a row for each number of rows per call."""
    tables = []
    groups = dict.fromkeys((case["program"], case["precision"]) for case in result["cases"])
    for program, precision in groups:
        cases = [case for case in result["cases"] if (case["program"], case["precision"]) == (program, precision)]
        names = list(dict.fromkeys(name for case in cases for name in case["runtimes"]))
        rows = [[f"{case['rows']:,}", *(_runtime_cell(case, name) for name in names)] for case in cases]
        flops = cases[0]["flops_per_row"] / 1e6
        title = (
            f"{program} h, {precision}, {flops:.3g} MFLOP a row: thousand rows/s (% of a large matmul); "
            "x = speed of fct_infer over it; * = fastest"
        )
        tables.append(Table(title, ["rows per call", *names], rows))
    return tables


def _runtime_cell(case: dict[str, Any], name: str) -> str:
    runtime = case["runtimes"].get(name)
    if runtime is None:
        return "-"
    speed = f"{runtime['rows_per_second'] / 1e3:.1f} ({runtime['percent_of_peak']:.0f} %)"
    ratio = f" {runtime['ratio']:.2f}x" if "ratio" in runtime else ""
    return speed + ratio + (" *" if name == case["fastest"] else "")


def precisions_tables(result: dict[str, Any]) -> list[Table]:
    """One table for each program; a row for each number of rows per call and precision."""
    tables = []
    for program in dict.fromkeys(case["program"] for case in result["cases"]):
        cases = [case for case in result["cases"] if case["program"] == program]
        rows = [
            [
                f"{case['rows']:,}",
                precision,
                f"{1e-3 * figures['rows_per_second']:,.1f}",
                f"{figures['ratio']:.2f}x",
                f"{figures['cpu_seconds_per_million_rows']:.2f}",
                f"{figures['lowest_cosine']:.5f}",
            ]
            for case in cases
            for precision, figures in case["precisions"].items()
        ]
        title = f"{program} h, {cases[0]['flops_per_row'] / 1e6:.3g} MFLOP a row"
        columns = [
            "rows per call",
            "precision",
            "thousand rows/s",
            "of fp32's speed",
            "CPU s, a million rows",
            "cosine >=",
        ]
        tables.append(Table(title, columns, rows))
    return tables


STAGES = {  # as in UpgradeReport.timings
    "load_model": "load model",
    "plan": "plan",
    "train_index": "train index",
    "replay": "replay",
    "read": "read",
    "transform": "transform",
    "write": "write",
    "index": "add to index",
    "stream": "the last four together",
    "verify": "verify",
    "finish": "save index",
}
OVERLAPPING = ("read", "transform", "write", "index")


def upgrade_tables(result: dict[str, Any]) -> list[Table]:
    """Seconds by stage and totals; a column for each contestant."""
    contestants = result["contestants"]
    parameters = result["parameters"]
    rows = []
    for stage, label in STAGES.items():
        seconds = [run["seconds"].get(stage) for run in contestants.values()]
        if any(value is not None for value in seconds):
            rows.append([label, *("-" if value is None else f"{value:.2f}" for value in seconds)])
    runs = contestants.values()
    rows += [
        ["whole", *(f"{run['wall']:.2f}" for run in runs)],
        ["speed of fct_infer over it", *(f"{run['ratio']:.2f}x" if "ratio" in run else "" for run in runs)],
        ["rows/s", *(f"{parameters['rows'] / run['wall']:,.0f}" for run in runs)],
        ["work hidden behind other work", *(f"{overlap(run['seconds']):.0%}" for run in runs)],
        ["peak memory, MiB", *(f"{run['peak_memory'] / 2**20:,.0f}" for run in runs)],
        ["recall@10 of the index", *(f"{run['recall_at_10']:.3f}" for run in runs)],
    ]
    title = (
        f"{parameters['rows']:,} rows, {parameters['program']} h, {parameters['index']}: seconds. For scale: ResNet50 "
        f"embeds {result['resnet50_images_per_second']:.1f} images/s on this machine"
    )
    return [Table(title, ["stage", *contestants], rows)]


def overlap(seconds: dict[str, float]) -> float:
    """Share of the four streamed stages' work that ran while another of them did; 0: one after the other."""
    busy = sum(seconds[stage] for stage in OVERLAPPING)
    return max(0.0, 1 - seconds.get("stream", busy) / busy)


def memory_tables(result: dict[str, Any]) -> list[Table]:
    """Peak memory by size of the gallery."""
    rows = [
        [f"{run['rows']:,}", run["index"], *(f"{run[key] / 2**20:,.0f}" for key in ("peak_memory", "index_bytes"))]
        for run in result["runs"]
    ]
    return [Table("Memory of an upgrade, MiB", ["rows", "index", "peak", "of which index"], rows)]


def formats_tables(result: dict[str, Any]) -> list[Table]:
    """An upgrade from each format."""
    parameters = result["parameters"]
    rows = [
        [
            name,
            f"{run['wall']:.2f}",
            f"{run['ratio']:.2f}x",
            f"{parameters['rows'] / run['wall']:,.0f}",
            f"{run['cpu']:.2f}",
            f"{run['read']:.2f}",
            f"{run['peak_memory'] / 2**20:,.0f}",
        ]
        for name, run in result["contestants"].items()
    ]
    title = f"{parameters['rows']:,} rows, {parameters['program']} h, no index"
    columns = ["from", "seconds", "of shards'", "rows/s", "CPU seconds", "of which read", "peak memory, MiB"]
    return [Table(title, columns, rows)]


def index_tables(result: dict[str, Any]) -> list[Table]:
    """Stages of building an index; seconds of wall time and of CPU time by contestant, and their ratios."""
    parameters, rows = result["parameters"], []
    for stage, by_name in result["stages"].items():
        cells = [f"{run['wall']:.2f} ({run['cpu']:.2f})" for run in by_name.values()]
        ratio = next(run["ratio"] for run in by_name.values() if "ratio" in run)
        rows.append([stage, *cells, f"{ratio['wall']:.2f}x", f"{ratio['cpu']:.2f}x"])
    rows.append(["recall@10", *(f"{value:.4f}" for value in result["recall_at_10"].values()), "", ""])
    rows.append(["rows read a query", *(f"{value:,.0f}" for value in result["rows_read_a_query"].values()), "", ""])
    title = (
        f"{parameters['rows']:,} rows x {parameters['dim']}, {parameters['index']} "
        f"({parameters.get('metric', 'l2')}), rounds: {parameters['rounds']}: "
        "seconds (CPU seconds); x = FAISS over fct_infer"
    )
    return [Table(title, ["stage", *result["recall_at_10"], "wall", "CPU"], rows)]


ROOFS = {"read": ("read",), "transform": ("transform",), "write": ("hash", "disk")}  # of stages, one after the other
OUTER = ("plan", "train_index", "stream", "replay", "verify", "probe", "finish")  # what follows each other
INNER = ("read", "transform", "write", "index")  # at once, within the stream


def stages_tables(result: dict[str, Any]) -> list[Table]:
    """Seconds of each stage, and beside them what the machine alone would need."""
    rows, roofs = result["parameters"]["rows"], result["roofs"]
    tables = []
    for index, seconds in result["indexes"].items():
        lines = []
        for stage in (*OUTER[:3], *INNER, *OUTER[3:]):
            if not seconds.get(stage):
                continue
            roof = sum(roofs[name] for name in ROOFS.get(stage, ()))
            name = f" {stage}" if stage in INNER else stage.replace("_", " ")
            lines.append(
                [
                    name,
                    f"{seconds[stage]:.3f}",
                    f"{seconds[stage] / seconds['wall']:.0%}",
                    f"{roof:.3f} ({' + '.join(ROOFS[stage])})" if roof else "–",
                    f"{roof / seconds[stage]:.0%}" if roof else "–",
                ]
            )
        lines.append(["whole", f"{seconds['wall']:.3f}", "100%", "–", "–"])
        title = f"{rows:,} rows, index {index}: seconds; CPU {seconds['cpu']:.2f} s"
        tables.append(Table(title, ["stage", "seconds", "of the whole", "roof, alone", "roof / stage"], lines))
    rates = {
        "h, by a large matrix product": rows / roofs["transform"],
        "SHA-256, one thread": rows / roofs["hash"],
        "disk, written and synced": rows / roofs["disk"],
        "both, as an upgrade writes": rows / roofs["write"],
        "page cache, read": rows / roofs["read"],
    }
    cells = [[name, f"{rate:,.0f}"] for name, rate in rates.items()]
    tables.append(Table("what the machine allows alone, rows/s", ["work", "rows/s"], cells))
    return tables


def databases_tables(result: dict[str, Any]) -> list[Table]:
    """Reading a table, and upgrading it."""
    parameters = result["parameters"]
    rows = parameters["rows"]

    def lines(part: str) -> list[list[str]]:
        return [
            [
                name,
                f"{run['wall']:.2f}",
                f"{run['ratio']:.2f}x",
                f"{rows / run['wall']:,.0f}",
                *([f"{run['wal'] / 1e6:,.0f}"] if "wal" in run else []),
            ]
            for name, run in result[part].items()
        ]

    title = f"{rows:,} rows, {parameters['program']} h, PostgreSQL {parameters['server']}"
    columns = ["seconds", "of ours", "rows/s"]
    held = f"; writers were held up {1000 * result['lock_seconds']:.0f} ms for publishing"
    return [
        Table(f"Reading {title}", ["by", *columns], lines("readers")),
        Table(f"Upgrading {title}, no index{held}", ["by", *columns, "WAL, MB"], lines("contestants")),
    ]


def engines_tables(result: dict[str, Any]) -> list[Table]:
    """Upgrading a table in each of the engines that are files."""
    parameters = result["parameters"]
    rows = parameters["rows"]
    lines = [
        [engine, name, f"{run['wall']:.2f}", f"{run['ratio']:.2f}x", f"{rows / run['wall']:,.0f}"]
        for engine, found in result["engines"].items()
        for name, run in found.items()
    ]
    title = f"Upgrading {rows:,} rows, {parameters['program']} h, no index"
    return [Table(title, ["in", "by", "seconds", "of ours", "rows/s"], lines)]


def serving_tables(result: dict[str, Any]) -> list[Table]:
    """Quality by share re-embedded, for each order; latency by rows changed."""
    quality, latency = result["quality"], result["latency"]
    shares = ["0 %", "25 %", "50 %", "75 %", "100 %"]
    tables = [
        Table(
            f"mAP %, {quality['rows']:,} rows of the demo's gallery, by the share that the new model embedded; {order}",
            ["way", *shares],
            [[name, *(f"{merit:.1f}" for merit in merits)] for name, merits in by_way.items()],
        )
        for order, by_way in quality["mAP"].items()
    ]
    forecasts = [
        [f"{order}, {what}", *(f"{100 * value:.1f}" for value in values)]
        for order, of_order in quality["forecast"].items()
        for what, values in of_order.items()
    ]
    tables.append(Table("overlap@10 % of h on read: forecast by 1,000 rows, and in all", ["order", *shares], forecasts))
    losses = [f"{100 * loss:.1f}" for loss in quality["expected_loss"].values()]
    names = [f"{100 * float(share):.0f} %" for share in quality["expected_loss"]]
    tables.append(
        Table(
            "Expected loss of the merge by quantiles, % of the ten nearest rows", ["share", *names], [["lost", *losses]]
        )
    )
    figures = ("p50", "p99", "cpu p50", "cpu p99", "upsert_ms")
    cases = [
        [name, *(f"{case[each]:.2f}" if case.get(each) is not None else "-" for each in figures)]
        for name, case in latency["cases"].items()
    ]
    opened = latency["open"]
    title = (
        f"{latency['rows']:,} rows of 128, {latency['index']}, one thread, one query at a time, 10 neighbours: "
        f"milliseconds. Opened with h on read in {opened['seconds']:.0f} s, of which reading and h "
        f"{opened['h_cpu']:.1f} CPU seconds; folded in in {latency['compact']:.1f} s"
    )
    tables.append(Table(title, ["rows beside the index", "p50", "p99", "CPU p50", "CPU p99", "upsert of 256"], cases))
    return tables


def gate(what: str, value: float, wanted: float, at_least: bool = True) -> dict[str, Any]:
    """A figure the project set out to reach, as it stands in a results file."""
    reached = value >= wanted if at_least else value <= wanted
    return {"what": what, "value": value, "wanted": f"{'>=' if at_least else '<='} {wanted}", "reached": reached}


def gate_lines(result: dict[str, Any]) -> list[str]:
    """One line for each gate."""
    return [
        f"{gate['what']} = {gate['value']:.2f} (wanted {gate['wanted']}): {'reached' if gate['reached'] else 'MISSED'}"
        for gate in result["gates"]
    ]


def caption(result: dict[str, Any]) -> str:
    """One line on where and when."""
    machine, versions = result["machine"], result["versions"]
    software = ", ".join(f"{name} {number}" for name, number in versions.items() if number != "absent")
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['flags'])}), {machine['memory_gib']} GiB; "
        f"load before {machine['load_before']:.1f}; {result['date'][:10]}; {software}."
    )


def show(result: dict[str, Any], tables: list[Table]) -> None:
    """Print tables, reasons for what is missing, and gates on stdout."""
    for table in tables:
        table.print()
    for line in (*result["not_measured"], *gate_lines(result)):
        print(line)


TABLES = {
    "transformation": transformation_tables,
    "precisions": precisions_tables,
    "upgrade": upgrade_tables,
    "upgrade_paper-size": upgrade_tables,
    "upgrade_wide": upgrade_tables,
    "upgrade_memory": memory_tables,
    "formats": formats_tables,
    "index": index_tables,
    "stages": stages_tables,
    "databases": databases_tables,
    "engines": engines_tables,
    "serving": serving_tables,
}


def main() -> None:
    """Put the tables of all results there are between their markers in README.md."""
    text = README.read_text()
    for name, make_tables in TABLES.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        notes = [f"- {line}" for line in (*result["not_measured"], *gate_lines(result))]
        parts = [caption(result), *(table.markdown() for table in make_tables(result)), "\n".join(notes)]
        marked = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
        text = marked.sub(lambda match: match[1] + "\n\n".join(parts) + "\n" + match[2], text)  # noqa: B023
    write_bytes(README, text.encode())


if __name__ == "__main__":
    main()
