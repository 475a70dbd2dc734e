"""Headers alone tell where the files of a tar archive lie: nothing is unpacked, no link followed, no code run."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512  # bytes; headers and files begin at multiples of it
_LONGEST = 2**20  # bytes of a name that is too long for its header
_GLOBAL = (tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGLINK)  # headers about others
_LARGEST = 2**60  # bytes of a member; more is a header that is broken
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarMember(NamedTuple):
    """A member is a regular file in an archive."""

    name: bytes
    offset: int  # of its first byte
    size: int


class DamagedTar(Exception):
    """What follows `offset` in an archive can't be read."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset, self.reason = offset, reason


def packed_by(file: BinaryIO) -> str | None:
    """Name the program that has compressed a file as a whole; None for one that can be read as it is."""
    file.seek(0)
    beginning = file.read(BLOCK)
    found = next((program for mark, program in _COMPRESSED.items() if beginning.startswith(mark)), None)
    return None if beginning[257:262] == b"ustar" else found


def entries(file: BinaryIO, length: int, skipped: Counter[str] | None = None) -> Iterator[TarMember]:
    """Yield the regular files of an archive of `length` bytes (ustar, GNU or pax, not compressed).

    Links and devices are counted in `skipped`.
    Raises DamagedTar where a header is no header or the archive ends too early; what came before has been yielded. A
    last file may reach beyond the end.
    """
    offset, name, real_size = 0, None, None
    while offset < length:
        file.seek(offset)
        try:
            header = tarfile.TarInfo.frombuf(file.read(BLOCK), "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # documented, and missing in the stubs
            return
        except (tarfile.HeaderError, ValueError) as error:
            raise DamagedTar(offset, f"no header at byte {offset} ({error})") from error
        size = header.size if real_size is None else real_size
        data = offset + BLOCK
        if not 0 <= size <= _LARGEST:
            raise DamagedTar(offset, f"a file of {size} bytes at byte {offset}")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            if size > _LONGEST:
                raise DamagedTar(offset, f"a name of {size} bytes at byte {offset}")
            payload = file.read(size)
            if header.type == tarfile.XHDTYPE:
                said = _pax(payload, offset)
                name, real_size = said.get(b"path", name), _number(said, offset)
            else:
                name = payload.rstrip(b"\0")
        else:
            if header.isreg():
                yield TarMember(header.name.encode("utf-8", "surrogateescape") if name is None else name, data, size)
            elif skipped is not None and not header.isdir() and header.type not in _GLOBAL:
                skipped["links in archives" if header.islnk() or header.issym() else "entries that are no files"] += 1
            name, real_size = None, None
        offset = data + -(-size // BLOCK) * BLOCK
    raise DamagedTar(min(offset, length), "it ends without an end mark: it was cut off")


def _pax(payload: bytes, offset: int) -> dict[bytes, bytes]:
    """Records "LENGTH KEY=VALUE\\n" one after the other."""
    said = {}
    while payload:
        digits = payload.partition(b" ")[0]
        end = int(digits) if digits.isdigit() and len(digits) < 10 else 0
        key, mark, value = payload[len(digits) + 1 : end].partition(b"=")
        if not (mark and value.endswith(b"\n") and end <= len(payload)):
            raise DamagedTar(offset, f"broken attributes at byte {offset}")
        said[key], payload = value[:-1], payload[end:]
    return said


def _number(said: dict[bytes, bytes], offset: int) -> int | None:
    """The size that attributes give."""
    if b"size" not in said:
        return None
    if not said[b"size"].isdigit() or len(said[b"size"]) > 18:
        raise DamagedTar(offset, f"a broken size at byte {offset}")
    return int(said[b"size"])
