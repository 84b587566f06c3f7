"""How a command says no."""

from __future__ import annotations

import click


class RefusalError(click.ClickException):
    """Something the user can mend: one sentence, exit code 2, no traceback."""

    exit_code = 2
