"""What the demo prints: steps with a label and an outcome, for a person; live only where there is a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipelines.demo.follow import Seen

__all__ = ["Screen"]

_INDENT = 4
_LABEL = 16


class Screen:
    """Prints to standard output; without colours and motion when that is not a terminal."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)

    def title(self, text: str) -> None:
        """The first line."""
        self._line(Text(text, "bold"))

    def step(self, what: str) -> None:
        """A headline of what comes next."""
        self.console.print()
        self._line(Text.assemble(("▌ ", "cyan"), (what, "bold cyan")))

    def say(self, text: str | Text, style: str = "") -> None:
        """Lines below a headline."""
        self._indented(Text(text, style) if isinstance(text, str) else text)

    def command(self, words: Sequence[str]) -> None:
        """A command as one would type it, a line an option."""
        lines: list[str] = []
        for word in words:
            if word.startswith("--") or not lines:
                lines.append(shlex.quote(word))
            else:
                lines[-1] += f" {shlex.quote(word)}"
        self._indented(Text("$ " + " \\\n      ".join(lines), "dim"))

    def table(self, rows: Sequence[tuple[str, ...]], *, head: tuple[str, ...] = ()) -> None:
        """Rows of what, how much (once or more), remark."""
        lines = [head, *rows] if head else rows
        widths = [max(len(row[column]) for row in lines) for column in range(len(rows[0]))]
        widths[0] = max(widths[0], _LABEL)
        for row in lines:
            what, *figures, remark = row
            cells = "  ".join(figure.rjust(width) for figure, width in zip(figures, widths[1:-1], strict=True))
            style = "dim" if row is head else ""
            line = f"{what:<{widths[0]}}  {cells}"
            self._indented(Text.assemble((line, style), (f"   {remark}".rstrip(), "dim")))

    def error(self, text: str) -> None:
        """What a program printed on its standard error: the first line is the error."""
        first, _, rest = text.strip().partition("\n")
        self._indented(Text(first, "bold red"))
        if rest:
            self._indented(Text(rest))

    def good(self, text: str) -> None:
        """Something holds."""
        self._indented(Text.assemble(("✔ ", "bold green"), text))

    def bad(self, text: str) -> None:
        """Something does not."""
        self._indented(Text.assemble(("✘ ", "bold red"), text))

    @contextmanager
    def progress(self, total_bytes: int, look: Callable[[], Seen]) -> Iterator[Callable[[], None]]:
        """A bar while a job runs. Gives what is to be called now and then.

        Args:
            total_bytes: That the job is going to read.
            look: What it has done by now.
        """
        if not self.console.is_terminal:
            yield lambda: None
            return
        columns = (
            TextColumn(" " * (_INDENT - 1)),
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task("starting", total=total_bytes + 1, figures="")  # never full while it runs

            def tick() -> None:
                seen = look()
                figures = (  # with the rest of the line no wider than 80 columns
                    f"{seen.read_bytes / 1e6:.1f} MB read, {seen.staged_bytes / 1e6:.1f} MB staged, "
                    f"{seen.kinds.total()} records"
                )
                read_bytes = min(seen.read_bytes, total_bytes)
                progress.update(task, description=seen.phase, completed=read_bytes, figures=figures)

            yield tick

    def _line(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)

    def _indented(self, text: Text) -> None:
        for line in text.split("\n"):
            self._line(Text.assemble(" " * _INDENT, line))
