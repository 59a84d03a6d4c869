"""The policy file that `roost init` writes and that a daemon without one uses."""

from __future__ import annotations

__all__ = ["DEFAULT_POLICIES"]

DEFAULT_POLICIES = """\
# policies.toml: one table a policy. A key is `policy` or `policy:rest`; the first segment of a
# key finds its policy here, and a key that no policy claims is refused.
# After an edit: `roost policy check policies.toml`, then SIGHUP to roostd. A reload that would
# change the type or the consistency of keys that exist is refused as a whole.
#
# readers          "single-session": only the session whose id follows the colon reads the key.
#                  "cross-session": anybody, in any region.
# stale_read_cost  What happens if a reader sees an old value:
#                  "invisible" (nobody notices), "annoying" (a worse answer), "incorrect" (wrong).
# type             session-local:      conversation, ledger, map
#                  eventually-global:  register, counter, set, map, rate, doc
#                  linearizable:       register, counter, quota, meter
# consistency      Optional; it follows from the two fields above:
#                  "incorrect" -> "linearizable"; else "single-session" -> "session-local";
#                  else "eventually-global". A stronger one may be stated (a warning names what
#                  it costs), a weaker one is refused.
# ttl              Optional, "30m", "24h", "7d": a key, or a session, disappears this long after
#                  its last write. Not for rate, nor where linearizable.
# window           rate only, and required there: the length of the sliding window.
# limit, period    quota only, and required there: how much may be spent in each period.
#                  A period is "day" or "month" (calendar, UTC), or a duration such as "24h"
#                  (fixed windows counted from 1970-01-01).
# residency        session-local only: the regions that may hold a copy, e.g. ["eu", "us"].
# on_loss          session-local only: what a client gets when home and standby are both lost.
#                  "error" (default) or "recreate" (a new, empty session).
# durability       Not where linearizable: "disk" (default) or "standby" (acknowledged after a
#                  second disk too: the session's standby's, or that of the nearest neighbour in
#                  another region).
# float            counter only: true counts in steps of 1e-9 instead of 1.
# fields           map only, eventually-global: "counter" lets fields be incremented (HINCRBY).
# match            Globs that claim keys which do not begin with the policy's name, for programs
#                  that bring their own key names, e.g. ["*:tpm:*"]. Only * is special. An exact
#                  policy name wins, then the longest glob. Not where session-local.

# The messages of one session: one user, one region, read again within seconds.
[conversation_buffer]
readers = "single-session"
stale_read_cost = "invisible"
type = "conversation"
ttl = "24h"

# Which tool calls of a session have begun and how they ended, so that none is done twice.
[tool_call_ledger]
readers = "single-session"
stale_read_cost = "annoying"
type = "ledger"
ttl = "24h"

# Where a session's KV cache lies; a wrong guess costs one prefill.
[kv_cache_index]
readers = "single-session"
stale_read_cost = "invisible"
type = "map"
ttl = "24h"

# Requests and tokens per minute; each region counts at once and learns of the others soon.
[rate_limits]
readers = "cross-session"
stale_read_cost = "annoying"
type = "rate"
window = "60s"

# What a router knows about its models; the later write wins.
[model_router_weights]
readers = "cross-session"
stale_read_cost = "annoying"
type = "register"

# How much a customer may still use; spent locally out of grants, never beyond the limit.
[usage_quota]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "quota"
limit = 1_000_000
period = "day"

# What a customer will be charged for: each unit counted once.
[billing]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "meter"
"""
