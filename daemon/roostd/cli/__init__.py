"""The commands `roostd` and `roost`."""
