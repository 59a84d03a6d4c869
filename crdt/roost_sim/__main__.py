"""`python -m roost_sim SEED` replays one run; `--seeds N`, `--minutes M` explore."""

from __future__ import annotations

import sys

from .explore import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
