"""Benchmarks: Storebus against named peers, interleaved in one run, every guarantee on. `python -m bench [name ...]`."""
