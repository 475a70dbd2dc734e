"""Files behind a URL (s3://…, https://…) are read through fsspec, which an extra installs."""

from __future__ import annotations

from typing import Any, BinaryIO, cast

from ssl_vit.errors import UserError


def is_url(path: str) -> bool:
    """Whether fsspec has to open it.

    >>> is_url("s3://mine/a.tar"), is_url("/data/a.tar")
    (True, False)
    """
    return "://" in path


def open_url(url: str) -> BinaryIO:
    """The file, which can be read anywhere. Raises UserError."""
    system, path = _system(url)
    try:
        return cast(BinaryIO, system.open(path, "rb"))
    except Exception as error:  # each file system has its own
        raise UserError(f"{url}: cannot be opened ({type(error).__name__}: {error}); check the address") from error


def read_part(url: str, start: int, end: int) -> bytes:
    """Read some bytes of the file; OSError where that fails."""
    system, path = _system(url)
    try:
        return cast(bytes, system.cat_file(path, start=start, end=end))
    except Exception as error:  # as above
        raise OSError(f"{type(error).__name__}: {error}") from error


def url_state(url: str) -> str:
    """What changes when the file does. Raises UserError."""
    system, path = _system(url)
    try:
        return str(system.ukey(path))
    except Exception as error:  # as above
        raise UserError(f"{url}: cannot be read ({type(error).__name__}: {error}); check the address") from error


def _system(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise UserError(f"{url}: reading it needs fsspec; pip install 'ssl_vit[remote]'") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: cannot be opened ({error}); install what it needs") from error
    return system, path
