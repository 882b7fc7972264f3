"""The table and the JSON rows of a benchmark: size, accuracy, latency and throughput of each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdtrain.deploy.benchmark import BenchmarkResult
from kdtrain.report.table import Column, Table


def benchmark_table(results: Sequence[BenchmarkResult]) -> Table:
    """Returns a row per model."""
    batch = results[0].timing.batch_size
    table = Table(
        Column("model", words=True),
        Column("runtime", words=True, drop=3),
        Column("parameters", drop=4),
        Column("KB", drop=5),
        Column("right\n%"),
        Column("p50\nms", note="p50, p95: latency of one image, from pixels to logits."),
        Column("±", drop=1, note="±: relative median absolute deviation of the rounds."),
        Column("p95\nms", drop=2),
        Column(f"images/s\n({batch})", drop=6, note=f"images/s: in batches of {batch} images."),
        Column("±", drop=1),
    )
    for result in results:
        model, timing = result.model, result.timing
        table.row(
            model.path.name,
            model.runtime,
            f"{model.parameters:,}",
            f"{result.size / 1000:,.0f}",
            f"{100 * result.test.accuracy:.2f}",
            _three_digits(timing.latency(50)),
            f"{timing.latency_spread:.0%}",
            _three_digits(timing.latency(95)),
            f"{timing.throughput:,.0f}",
            f"{timing.throughput_spread:.0%}",
        )
    return table


def to_json(result: BenchmarkResult) -> dict[str, Any]:
    """Returns plain values for ``json.dumps``, in full precision, with units in the key names."""
    model, timing = result.model, result.timing
    return {
        "model": str(model.path),
        "arch": model.card.arch,
        "runtime": model.runtime,
        "parameters": model.parameters,
        "size_bytes": result.size,
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


def _three_digits(value: float) -> str:
    """Returns three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")
