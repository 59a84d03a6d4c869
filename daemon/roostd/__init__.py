"""roostd: one daemon a region, a sidecar next to inference servers and gateways."""
