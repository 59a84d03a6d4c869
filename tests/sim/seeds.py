"""Seeds that once failed, and what each of them found. They must stay clean.

The core and the simulator change, and a seed then plays another run: what a finding needs in
order to come back is in the small test that is named with it.
"""

FOUND: dict[int, str] = {
    302: "a group written but not synced before a kill is read back from the page cache and must "
    "be synced at start, or a power cut takes it away under an index that has applied it",
    315: "the same after a failed sync",
}
