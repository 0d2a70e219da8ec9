"""Errors that a user can act on: one clear sentence, no traceback needed.

Everything that is the *user's* to mend (a missing file, an unknown name, a
budget that cannot be met) raises `UserError`; the command line prints its text
and exits with `exit_code`. A bug in batchgauge itself stays an ordinary
exception.
"""

from batchgauge.text import one_line


class UserError(Exception):
    """Bad input, said in one sentence: what was wrong, and what was expected.

    `exit_code` is what the command line exits with: 2 by default; 1 is kept for
    a command that worked and whose answer is "no" (a regression was found). What the
    sentence quotes may be anybody's: it is kept to one line, control characters visible,
    passwords and keys redacted.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(one_line(message))
        self.exit_code = exit_code
