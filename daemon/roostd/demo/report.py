"""What the demo says: scenes as they happen, and one table of everything that was observed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table


@dataclass(frozen=True)
class Claim:
    """One thing that the demo claims, and whether it was observed."""

    what: str
    observed: str
    held: bool


def percentile(samples_ms: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all samples do not exceed."""
    ordered = sorted(samples_ms)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def shown_ms(value_ms: float) -> str:
    """Milliseconds with as many digits as a reader needs."""
    return f"{value_ms:.3f} ms" if value_ms < 1 else f"{value_ms:.1f} ms"


class Report:
    """Prints scenes and collects claims."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.claims: list[Claim] = []
        self._status: Status | None = None

    def scene(self, title: str) -> None:
        self.end_progress()
        self.console.print(f"\n[bold cyan]{escape(title)}[/]")

    def say(self, text: str) -> None:
        self.console.print(f"  {escape(text)}")

    def progress(self, text: str) -> None:
        """What is going on right now; a line that the next one replaces on a terminal."""
        if self._status is None:
            self._status = self.console.status(escape(text))
            self._status.start()
        else:
            self._status.update(escape(text))

    def end_progress(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def claim(self, what: str, observed: str, held: bool) -> None:
        """Note a claim; every one is in the final table, held or not."""
        self.claims.append(Claim(what, observed, held))
        mark = "[green]ok[/]" if held else "[bold red]NOT OBSERVED[/]"
        self.console.print(f"  {mark} {escape(what)}: {escape(observed)}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", header_style="bold", expand=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

    def final(self) -> bool:
        """The table of all claims; True if each was observed."""
        self.end_progress()
        self.console.print()
        self.table(
            "What was observed",
            ("", "claim", "observed"),
            [("ok" if c.held else "NO", c.what, c.observed) for c in self.claims],
        )
        return bool(self.claims) and all(claim.held for claim in self.claims)
