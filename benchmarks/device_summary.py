"""What the figures of a device come to: gates, and tables for the terminal."""

from __future__ import annotations

from typing import Any

from benchmarks.table import Table, gate

OURS, PRODUCT = "fct_infer", "product alone"
WANTED_OF_MATMUL, WANTED_FASTEST, WANTED_FP8, WANTED_HOST, WANTED_UPGRADE = 0.85, 1.0, 1.5, 0.9, 0.8


def best_case(cases: list[dict[str, Any]], precision: str) -> dict[str, Any] | None:
    """Return the case of a precision in which our speed is highest."""
    ours = [case for case in cases if case["precision"] == precision and OURS in case["runtimes"]]
    return max(ours, key=lambda case: case["runtimes"][OURS]["rows_per_second"], default=None)


def best_speed(cases: list[dict[str, Any]], precision: str) -> float | None:
    """Return our highest speed in a precision, in rows a second."""
    case = best_case(cases, precision)
    return None if case is None else float(case["runtimes"][OURS]["rows_per_second"])


def fastest_opponent(cases: list[dict[str, Any]], precision: str) -> tuple[str, float] | None:
    """Return the opponent with the highest speed at any number of rows, and that speed."""
    speeds = [
        (name, float(runtime["rows_per_second"]))
        for case in cases
        if case["precision"] == precision
        for name, runtime in case["runtimes"].items()
        if name != OURS
    ]
    return max(speeds, key=lambda pair: pair[1], default=None)


def host_limit(result: dict[str, Any], precision: str) -> tuple[str, float] | None:
    """Return what bounds rows from host to host, and its rows a second: compute, or the copies of both ways at once."""
    compute = best_speed(result["cases"], precision)
    if compute is None or not result["copies"]:
        return None
    both = result["copies"]["each_way_at_once"]
    copies = both / max(result["parameters"]["bytes_in_per_row"], result["parameters"]["bytes_out_per_row"])
    return min(("compute", compute), ("copies", copies), key=lambda pair: pair[1])


def gates(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of which both figures were measured."""
    found, cases = [], result["cases"]
    bf16, fp8 = best_speed(cases, "bf16"), best_speed(cases, "fp8")
    ceiling = result["matmul"].get("bf16")
    if bf16 and ceiling:
        what = "bf16 on device data: ours / matrix products of the same shapes"
        found.append(gate(what, bf16 / ceiling["rows_per_second"], WANTED_OF_MATMUL))
    fastest = fastest_opponent(cases, "bf16")
    if bf16 and fastest:
        found.append(gate(f"bf16 on device data: ours / fastest ({fastest[0]})", bf16 / fastest[1], WANTED_FASTEST))
    if bf16 and fp8:
        found.append(gate("device data: fp8 / bf16", fp8 / bf16, WANTED_FP8))
    host = result["host"].get("bf16")
    limit = host_limit(result, "bf16")
    if host and limit:
        what = f"bf16 host to host / min(compute, copies) ({limit[0]})"
        found.append(gate(what, host["rows_per_second"] / limit[1], WANTED_HOST))
    upgrade = result["upgrade"].get("none")
    if host and upgrade and upgrade["in_memory"]:
        what = "whole upgrade without index / host to host"
        found.append(gate(what, upgrade["rows_per_second"] / host["rows_per_second"], WANTED_UPGRADE))
    return found


def tables(result: dict[str, Any]) -> list[Table]:
    """Return ceilings, what we run, speeds on device data by precision, and what is left of them on the host."""
    found = [_ceiling_table(result), _own_table(result)]
    for precision in dict.fromkeys(case["precision"] for case in result["cases"]):
        found.append(_device_table(result, precision))
    if result.get("assignment"):
        found.append(_assignment_table(result))
    if result["host"] or result["upgrade"]:
        found.append(_host_table(result))
    return found


def _ceiling_table(result: dict[str, Any]) -> Table:
    rows = [
        [f"products, {name}", f"{case['rows_per_second'] / 1e6:.2f} M rows/s", f"{case['tflops']:.1f} TFLOP/s"]
        for name, case in result["matmul"].items()
    ]
    rows += [[name.replace("_", " "), f"{speed / 1e9:.1f} GB/s", ""] for name, speed in result["copies"].items()]
    return Table("What the device can do at most", ["", "", ""], rows)


def _own_table(result: dict[str, Any]) -> Table:
    rows = []
    for precision, ours in result["ours"].items():
        where, *layers = ours["description"].split("; step ")
        casts = f", {sum('+ cast' in layer for layer in layers)} of {len(layers)} layers cast apart" if layers else ""
        rows.append([precision, f"{ours['max_relative_error']:.1e}", f"{ours['min_cosine']:.6f}", where + casts])
    return Table("fct_infer", ["", "largest error of a row", "lowest cosine", "runs"], rows)


def _device_table(result: dict[str, Any], precision: str) -> Table:
    speeds = by_rows(result["cases"], precision)
    names = list(dict.fromkeys(name for runtimes in speeds.values() for name in runtimes))
    ceiling = result["matmul"].get(precision)
    rows = [
        [f"{count:,}", *(_speed(runtimes[name], ceiling) if name in runtimes else "-" for name in names)]
        for count, runtimes in speeds.items()
    ]
    title = f"{precision}, rows on the device: M rows/s (% of the products alone) ± spread"
    return Table(title, ["rows per call", *names], rows)


def _assignment_table(result: dict[str, Any]) -> Table:
    cases = result["assignment"]
    names = list(dict.fromkeys(name for case in cases for name in case["runtimes"]))
    rows = [
        [
            f"{case['rows']:,} x {case['dim']}, IVF{case['lists']},PQ{case['parts']}",
            *(
                _speed(case["runtimes"][name], case["runtimes"][PRODUCT]) if name in case["runtimes"] else "-"
                for name in names
            ),
        ]
        for case in cases
    ]
    return Table("Lists and codes: M rows/s (% of the product with the centroids alone) ± spread", ["", *names], rows)


def by_rows(cases: list[dict[str, Any]], precision: str) -> dict[int, dict[str, dict[str, float]]]:
    """Return the runtimes of a precision by number of rows; of one measured twice, its first figures."""
    found: dict[int, dict[str, dict[str, float]]] = {}
    for case in cases:
        if case["precision"] == precision:
            found[case["rows"]] = {**case["runtimes"], **found.get(case["rows"], {})}
    return found


def _speed(figures: dict[str, float], ceiling: dict[str, Any] | None) -> str:
    share = f" ({100 * figures['rows_per_second'] / ceiling['rows_per_second']:.0f} %)" if ceiling else ""
    return f"{figures['rows_per_second'] / 1e6:.3g}{share} ±{100 * figures['spread']:.0f} %"


def _host_table(result: dict[str, Any]) -> Table:
    rows = [
        [f"host to host, {name}", f"{case['rows']:,}", f"{case['rows_per_second'] / 1e6:.3g}", f"{case['seconds']:.3f}"]
        for name, case in result["host"].items()
    ]
    rows += [
        [
            f"upgrade, index {name}",
            f"{case['rows']:,}",
            f"{case['rows_per_second'] / 1e6:.3g}",
            f"{case['seconds']:.3f}",
        ]
        for name, case in result["upgrade"].items()
    ]
    return Table("From the host", ["", "rows", "M rows/s", "seconds"], rows)
