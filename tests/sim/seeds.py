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
    2: "homes that are no neighbours of each other tell each other of their epochs",
    22: "who hears of an erasure passes it on until it is answered",
    70: "a standby whose link comes up is offered the session, whatever it had acknowledged",
    156: "home and standby that lost a session take what a former home still holds",
    262: "and so does a home without a standby",
    185: "a home that went back in time unnoticed leaves the epochs in which it wrote what it lost",
    243: "a former home keeps its turns until the new home's standby has them",
    111: "a summary that another one has replaced is an entry all the same",
    78: "whose link comes up is told which epochs are in force",
    689: "what is large finds room beside a sweep, and a lost copy is sent again to a busy session",
}
