"""What a file is by its first bytes, whatever its name: what is no file of weights is called by its name."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")  # the second of an empty one
_OTHERS = (  # how formats begin that may end up where weights are expected, and what to do
    (b"\x1f\x8b", "a gzip archive; unpack it and give the file of weights in it"),
    (b"BZh", "a bzip2 archive; unpack it and give the file of weights in it"),
    (b"\xfd7zXZ", "an xz archive; unpack it and give the file of weights in it"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive; unpack it and give the file of weights in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and give the file of weights in it"),
    (b"Rar!", "a RAR archive; unpack it and give the file of weights in it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes; convert it to a state_dict of PyTorch"),
    (b"\x93NUMPY", "one NumPy array; give a state_dict of PyTorch"),
    (b"GGUF", "a GGUF file of a language model; give a vision backbone's state_dict"),
    (b"\x89PNG", "a picture (PNG); give a file of weights"),
    (b"\xff\xd8\xff", "a picture (JPEG); give a file of weights"),
    (b"%PDF", "a PDF document; give a file of weights"),
)


def begins_like_safetensors(file: Path) -> bool:
    """Tell a safetensors by its header: eight bytes of length, and JSON."""
    with file.open("rb") as opened:
        head = opened.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= file.stat().st_size - 8


def no_weights(file: Path) -> str | None:
    """Say what a file is that holds no weights, and what to do; None for what may hold them."""
    with file.open("rb") as opened:
        head = opened.read(2048)
    if not head:
        return "an empty file; copy or download it again"
    for begins, says in _OTHERS:
        if head.startswith(begins):
            return says
    if head.startswith(_ZIP):
        return _zip(file)
    if head[257:262] == b"ustar":
        return _tar(file)
    return _text(file, head)


def _zip(file: Path) -> str | None:
    """None for the zip archives that torch.save writes."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "a zip archive, as torch writes them, that is cut short or damaged; copy or download it again"
    except (OSError, ValueError, NotImplementedError):
        return None  # torch says what it makes of it
    if any(name.startswith("code/") or "/code/" in name for name in names):
        return "a TorchScript program, not weights; save the state_dict of the module"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"NumPy's .npz ({_some(names)}); convert it to a state_dict of PyTorch"
    return f"a zip archive of other things ({_some(names)}); unpack it and give the file of weights in it"


def _tar(file: Path) -> str:
    names = list[str]()
    try:
        with tarfile.open(file, "r:") as archive:
            while len(names) < 4 and (member := archive.next()) is not None:
                names.append(member.name)
    except (tarfile.TarError, OSError, ValueError):
        pass  # cut: what it is called is enough
    return f"a tar archive ({_some(names)}); unpack it and give the file of weights in it"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", …" * (len(names) > 3) if names else "empty"


def _text(file: Path, head: bytes) -> str | None:
    """What people or programs can read is no file of weights; only in part of a character may the head end."""
    codec = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = head.decode(codec, errors="replace")
    if any(not (char.isprintable() or char in "\t\n\r\f\ufffd") for char in text) or text.count("\ufffd") > 1:
        return None
    begin = text.lstrip()
    if begin.startswith("version https://git-lfs"):
        size = re.search(r"(?m)^size (\d+)", text)
        about = f" to {int(size[1]):,} bytes" if size else ""
        return f"a git-LFS pointer{about}, not the weights themselves; run `git lfs pull` where it was cloned"
    if re.match(r"(?i)<!doctype html|<html|<head|<\?xml|<!--|<body", begin):
        title = re.search(r"(?is)<title>\s*(.*?)\s*</title>", text)
        about = f" ({' '.join(title[1].split())[:60]!r})" if title else ""
        return f"a web page{about} saved in place of the weights; download the file itself, not the page that shows it"
    if begin[:1] in ("{", "["):
        return f"JSON, not weights (it begins {_begin(begin)}); give the file of weights that belongs to it"
    return f"text, not weights (it begins {_begin(begin)}); copy or download the file of weights again"


def _begin(text: str) -> str:
    return repr(" ".join(text.split())[:60])
