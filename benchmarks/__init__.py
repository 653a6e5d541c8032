"""Benchmarks and studies; run from a checkout."""
