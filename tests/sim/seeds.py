"""Seeds that once failed, and what each of them found. They must stay clean.

The core and the simulator change, and a seed then plays another run: what a finding needs in
order to come back is in the small test that is named with it.
"""

FOUND: dict[int, str] = {
    302: "a group written but not synced before a kill is read back from the page cache and must "
    "be synced at start, or a power cut takes it away under an index that has applied it",
    315: "the same after a failed sync",
    5: "home again, a node has nothing to merge into another",
    12: "the same at both ends of a cut",
    29: "a document larger than what is left of a window finds room beside heartbeats",
    34: "a turn looks for its home again after each wait",
    43: "a handover does not overwrite turns that are still to be merged",
    55: "a deposed home reaches a new one that is no neighbour",
    85: "a new actor enters its epoch before an entry is built",
    33: "an actor that lost a tail leaps over the epochs that it may have used",
    11: "and so does a standby that lost one",
    154: "a standby merges what its home has lost",
    109: "a former standby does as well",
    162: "a request for a document is not held back after a merge; acknowledgements name a chain",
    163: "a home that is told of a lost epoch of its own does not wait for itself",
    935: "an entry of a call names its epoch: what a lost tail held is another entry",
    78: "whose link comes up is told which epochs are in force",
}
