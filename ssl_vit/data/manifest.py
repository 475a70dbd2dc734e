"""The manifest says which archives belong to a packed set, and how large they are."""

from __future__ import annotations

import json
from pathlib import Path

from ssl_vit.errors import UserError

MANIFEST = "manifest.json"
FORMAT = "ssl_vit shards 1"


def packed_archives(folder: str) -> list[str] | None:
    """List the archives that a packed folder's manifest names; None without one. UserError where one is missing."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); pack the images again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return None  # another program's
    files = []
    for shard in manifest["shards"]:
        file = path.parent / shard["name"]
        if not file.is_file():
            raise UserError(f"{file}: no such file, and {path} lists it; copy it there, or pack the images again")
        files.append(str(file))
    return files
