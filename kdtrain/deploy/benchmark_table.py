"""Shows models side by side: size, accuracy, latency and throughput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from kdtrain.deploy.benchmark import Result


def benchmark_table(results: Sequence[Result]) -> Table:
    """Returns a row per model; ± is the median absolute deviation of the rounds."""
    batch = results[0].timing.batch_size
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("runtime", no_wrap=True)
    for heading in ("parameters", "KB", "right %", "p50 ms", "±", "p95 ms", f"images/s ({batch})", "±"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        timing, contender = result.timing, result.contender
        table.add_row(
            Text(contender.path.name),
            contender.runtime,
            f"{contender.parameters:,}",
            f"{contender.size / 1000:,.0f}",
            f"{100 * result.test.accuracy:.2f}",
            _figure(timing.latency(50)),
            f"{timing.latency_spread:.0%}",
            _figure(timing.latency(95)),
            f"{timing.throughput:,.0f}",
            f"{timing.throughput_spread:.0%}",
        )
    return table


def to_json(result: Result) -> dict[str, Any]:
    """Returns plain values for ``json.dumps``, in full precision, units in the key names."""
    timing, contender = result.timing, result.contender
    return {
        "model": str(contender.path),
        "arch": contender.card.arch,
        "runtime": contender.runtime,
        "parameters": contender.parameters,
        "size_bytes": contender.size,
        "accuracy_fraction": result.test.accuracy,
        "errors": result.test.errors,
        "images": result.test.images,
        "latency_p50_ms": timing.latency(50),
        "latency_p95_ms": timing.latency(95),
        "latency_spread_fraction": timing.latency_spread,
        "batch_size": timing.batch_size,
        "throughput_images_per_second": timing.throughput,
        "throughput_spread_fraction": timing.throughput_spread,
        "rounds": len(timing.images_per_second),
    }


def _figure(value: float) -> str:
    """Returns three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
