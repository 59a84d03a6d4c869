"""Linearizable keys: one interface, and a backend for each place that can hold them."""
