"""Files that may hold images and are not read as they are: what they are, and what to do with them."""

from __future__ import annotations

import os
import shlex

_UNPACK = "compressed, so that no image in it can be read by itself; unpack it into a folder ({}) and pass that"
_LIST = "not read as a list of images; write one path a line to a text file (.txt or .lst) and pass that"
_DATASET = "read by the library datasets; pass the folder as {}"
_FRAMES = "a video; write its frames to a folder (ffmpeg -i FILE FOLDER/%06d.png) and pass that"
_CONVERT = "not read; write its images to a folder, as PNG, JPEG, WebP, BMP, TIFF or GIF, and pass that"
_TAR = "an archive in a folder of folders; name all of them by a pattern: {}"

_COMPRESSED = ("tgz", "tbz", "tbz2", "txz", "tzst", "tar.gz", "tar.bz2", "tar.xz", "tar.zst", "tar.lz4")
_UNPACKED_BY = {
    **dict.fromkeys(_COMPRESSED, "tar -xf FILE -C FOLDER"),
    "zip": "unzip FILE -d FOLDER",
    "7z": "7z x FILE -oFOLDER",
    "rar": "unrar x FILE FOLDER/",
}
_SAID = {
    **dict.fromkeys(("csv", "tsv", "json", "jsonl", "list"), _LIST),
    **dict.fromkeys(("mp4", "avi", "mov", "mkv", "webm", "mpg", "mpeg"), _FRAMES),
    **dict.fromkeys(("h5", "hdf5", "npz", "npy", "mat", "pkl", "pt", "mdb", "tfrecord", "rec", "beton"), _CONVERT),
    **dict.fromkeys(
        ("dcm", "nii", "nii.gz", "avif", "heic", "heif", "jp2", "jxl", "ppm", "pgm", "svg", "dng", "exr"), _CONVERT
    ),
}


def what_to_do(kind: str, folder: str) -> str | None:
    """Say what files with an extension are, and what to do, where that is known; they lie in or below a folder.

    >>> what_to_do("parquet", "set")
    'read by the library datasets; pass the folder as hf:set'
    """
    if kind in _UNPACKED_BY:
        return _UNPACK.format(_UNPACKED_BY[kind])
    if kind in ("parquet", "arrow"):
        return _DATASET.format(shlex.quote(f"hf:{folder}"))
    if kind == "tar":
        return _TAR.format(shlex.quote(os.path.join(folder, "**", "*.tar")))
    return _SAID.get(kind)
