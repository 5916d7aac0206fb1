"""Entry point of the command `sdekit`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without typer and rich, say how to get them and exit with status 1."""
    try:
        from sdekit.cli.app import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        print(
            f"the command line needs the package {error.name}, which is not installed. Next: pip install "
            f"'sdekit[demo]'.",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    app()
