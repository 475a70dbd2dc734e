"""The pages of the site that no file in docs/ holds, and links that lead where they lead in the repository.

mkdocs calls ``on_files`` and ``on_page_markdown``: https://www.mkdocs.org/user-guide/configuration/#hooks.
"""

from __future__ import annotations

import csv
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ssl_vit
from ssl_vit.methods import config_class, list_methods

ROOT = Path(__file__).resolve().parent.parent
OWN = {  # files of the repository that are pages of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
PLACES = {**OWN, "configs": "recipes.md", "examples/one_screen.py": "one_screen.md"}
WIDE = "---\nhide: [navigation, toc]\n---\n\n"  # for tables
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def methods() -> str:
    """Every method, with what it says of itself."""
    rows = [(name, config_class(name)) for name in list_methods()]
    table = [f"| `{name}` | {c.idea} | {c.needs} | {c.choose_when} |" for name, c in rows]
    head = "| method | what it does | what it needs | choose it when |\n|---|---|---|---|\n"
    return (
        f"{WIDE}# Which method when\n\nWithout `--method` a run chooses one by your images and the network, and says "
        "why. `ssl-vit matrix` shows which method serves which backbone.\n\n" + head + "\n".join(table) + "\n"
    )


def recipes() -> str:
    """The published recipes: each file's head, then its settings."""
    pages = ["# Published recipes\n\nEach begins with its command, the score to expect and its source.\n"]
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        pages.append(f"## {file.stem}\n\n```yaml\n{file.read_text(encoding='utf-8').rstrip()}\n```\n")
    return "\n".join(pages)


def papers() -> str:
    """Every paper that something here comes from: what, where in the code, and the command that uses it."""
    lines = [
        f"{WIDE}# Papers, and where they live\n",
        "| paper | what of it is here | code | try |",
        "|---|---|---|---|",
    ]
    with (ROOT / "docs" / "papers.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            command = row["try"].replace("|", "\\|")
            link = f"[{row['paper']}](https://arxiv.org/abs/{row['arxiv']})"
            lines.append(f"| {link} | {row['what of it is here']} | `{row['code']}` | `{command}` |")
    return "\n".join(lines) + "\n"


def python() -> str:
    """The public names, from their docstrings."""
    parts = ["# Python\n\n`import ssl_vit` loads no torch; each of these names does when it is first used.\n"]
    for name in sorted(set(ssl_vit.__all__) - {"__version__"}):
        found = getattr(ssl_vit, name)
        title = f"ssl_vit.{name}"
        shown = f"    options: {{heading: {title}, toc_label: {title}}}\n"
        parts.append(f"::: {found.__module__}.{found.__qualname__}\n{shown}")
    return "\n".join(parts)


def one_screen() -> str:
    """The example, as it is."""
    code = (ROOT / "examples" / "one_screen.py").read_text(encoding="utf-8")
    return f"# Pretraining on one screen\n\n```python\n{code.rstrip()}\n```\n"


MADE: dict[str, Callable[[], str]] = {
    "methods.md": methods,
    "recipes.md": recipes,
    "papers.md": papers,
    "api.md": python,
    "one_screen.md": one_screen,
    **{page: (ROOT / file).read_text for file, page in OWN.items()},
}


def on_config(config: Any) -> Any:
    """Put every page of a folder where the menu names the folder."""
    for entry in config.nav:
        for title, place in entry.items():
            if isinstance(place, str) and (ROOT / "docs" / place).is_dir():
                pages = sorted(f"{place}/{file.name}" for file in (ROOT / "docs" / place).glob("*.md"))
                entry[title] = pages  # the README, in capitals, comes first
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    for page, make in MADE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the page's links lead to pages; what is none, a file of the code, is named instead."""
    sources = {made: file for file, made in OWN.items()}
    uri = page.file.src_uri
    where = posixpath.dirname(sources.get(uri, f"docs/{uri}"))
    return _LINK.sub(lambda match: _link(match, where, posixpath.dirname(uri)), markdown)


def _link(match: re.Match[str], where: str, folder: str) -> str:
    """A link of a file in the repository's folder `where`, for a page in the site's `folder`."""
    mark, text, target = match.groups()
    path, _, anchor = target.partition("#")
    if not path or "://" in target or target.startswith("mailto:"):
        return match.group()
    full = posixpath.normpath(posixpath.join(where, path))
    to = PLACES.get(full) or (full.removeprefix("docs/") if full.startswith("docs/") else None)
    if to is None:
        return f"{text} (`{full}`)"
    return f"{mark}[{text}]({os.path.relpath(to, folder or '.')}{'#' + anchor if anchor else ''})"
