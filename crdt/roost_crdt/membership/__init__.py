"""What a node does as a member: reports, collection, joining again.

`Membership` is all of it, driven by ticks over a store that the shell brings; the daemon and the
simulator run the same.
"""

from .membership import Membership
from .storage import MemberStore

__all__ = ["MemberStore", "Membership"]
