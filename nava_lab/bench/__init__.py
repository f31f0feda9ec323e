"""Benchmarks by name. Each is a module with ``main(arguments)``; it is imported when it is asked for."""

from __future__ import annotations

BENCHES = {
    "attention": "nava_lab.bench.attention",
    "data": "nava_lab.bench.data",
    "devices": "nava_lab.bench.devices",
    "seeds": "nava_lab.bench.seeds",
    "sampler": "nava_lab.bench.sampler",
    "start": "nava_lab.bench.start",
    "step": "nava_lab.bench.step",
}
