"""The one exception that a user's mistake becomes: a line that says what to do next."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend; shown as one line, never as a traceback.

    Say what was found, what was expected and the next command to type, and name the file or the key.

    >>> raise UserError("data/: no images found; expected .jpg, .png …; pass a folder of images")
    Traceback (most recent call last):
    ...
    ssl_vit.errors.UserError: data/: no images found; expected .jpg, .png …; pass a folder of images
    """

    exit_code = 2


class ConfigError(UserError):
    """Everything that is wrong with a configuration, one line a mistake."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class StoppedError(UserError):
    """Ctrl-C or a signal ended the work; nothing is lost."""

    exit_code = 143


class RunFailed(UserError):
    """A run that started and could not go on (too many bad files, loss not finite, …)."""

    exit_code = 1
