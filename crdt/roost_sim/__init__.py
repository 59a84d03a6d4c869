"""Deterministic simulator of roost clusters: virtual time, network, disk and faults."""
