"""Linearizable registers and counters without I/O: cells, compare-and-swap, and their endpoint."""
