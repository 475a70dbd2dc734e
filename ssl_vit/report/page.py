"""A run's folder becomes one page: report.html, which needs no network and nothing beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import ssl_vit
from ssl_vit.data.bad import printable
from ssl_vit.errors import UserError
from ssl_vit.files import write_atomically
from ssl_vit.report import kept
from ssl_vit.report.charts import number
from ssl_vit.report.curves import Metrics
from ssl_vit.report.parts import Part, Room, Section, table, words
from ssl_vit.report.sections import BUILDERS, Builder, tile_rows
from ssl_vit.report.story import Story


def write_page(run: Path | str, metrics: Metrics | None = None) -> Path:
    """Write RUN/report.html from what lies in the folder, and return its path.

    metrics: those of the page before, of which only what is new is read again.

    Raises:
        UserError: the folder is no run's.
    """
    path = Path(run) / kept.PAGE
    put(path, page_of(story_of(run, metrics)))
    return path


def put(path: Path, text: str) -> None:
    """Write a page whole or not at all."""
    write_atomically(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def story_of(run: Path | str, metrics: Metrics | None = None) -> Story:
    """Read a run's folder; UserError where it is none."""
    run = Path(run)
    if not any((run / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        raise UserError(f"{printable(str(run))}: no run: expected a folder with config.yaml and metrics.jsonl")
    return Story.of(run, metrics)


def page_of(story: Story) -> str:
    """The page of a run. A section that can't be made says so, and the others are there."""
    room = Room()
    tiles = room.picture(story.file(kept.TILES))
    sections = [found for build in BUILDERS if (found := _built(build, story, room)) is not None]
    kind, sentence = story.verdict
    return rendered(
        "run.html.j2",
        title=printable(story.run.absolute().name),
        subtitle=subtitle(story),
        tiles=tiles,
        tile_rows=tile_rows(story) if story.sample else 1,
        sections=sections,
        tone=story.tone,
        verdict=kind[:1].upper() + kind[1:],
        sentence=sentence,
        helped=_helped(story),
        table_of_help=_table_of_help(story),
        facts=_facts(story),
    )


def card_of(story: Story) -> str:
    """A small piece of HTML for notebooks: the verdict, the numbers, and how the weights are loaded."""
    kind, sentence = story.verdict
    values = {"title": printable(str(story.run)), "subtitle": subtitle(story), "verdict": kind, "sentence": sentence}
    snippet = next((text for folder, text in story.snippets if folder == "export"), "")
    page = story.run / kept.PAGE
    values |= {"page": printable(str(page.absolute())) if page.is_file() else ""}
    card = environment().get_template("card.html.j2")
    return card.render(values | {"helped": _helped(story), "facts": _facts(story), "snippet": snippet})


def rendered(template: str, **values: Any) -> str:
    """A page from its template; everything but charts is escaped."""
    written = time.strftime("%Y-%m-%d %H:%M")
    footer = (
        f"Written {written} by ssl_vit {ssl_vit.__version__} from the run's folder; ssl-vit report writes it again."
    )
    defaults: dict[str, Any] = {"tiles": None, "tile_rows": 1, "footer": footer}
    assets = {"style": asset("style.css"), "script": asset("page.js")}
    return environment().get_template(template).render(defaults | assets | values)


@cache
def environment() -> Environment:
    """The templates, which escape what is put into them."""
    return Environment(
        loader=PackageLoader("ssl_vit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


@cache
def asset(name: str) -> Any:
    """A file of the page's own, which needs no escaping."""
    from markupsafe import Markup

    return Markup((files("ssl_vit.report") / "templates" / name).read_text(encoding="utf-8"))


def _built(build: Builder, story: Story, room: Room) -> Section | None:
    try:
        return build(story, room)
    except Exception as error:
        name = build.__name__
        parts: list[Part] = [words(f"can't be shown: {type(error).__name__}: {error}"[:300], kind="soft")]
        return Section(name, name, name.capitalize(), "", parts)


def subtitle(story: Story) -> str:
    """What was run, in one line."""
    method, part = story.setting("method.name"), story.config.get("backbone") or {}
    what = f"{method} on {part.get('name')}, {part.get('image_size')} pixels"
    done, total = story.done, story.total
    of = f" of {total:,}" if total else ""
    state = "complete" if story.complete is not None else "as it was when this was written"
    return f"{what} · {done:,}{of} steps, {number(done * story.batch)} images seen · {state}"


def _helped(story: Story) -> Sequence[dict[str, str]]:
    """What was found out about the weights against what they began with."""
    found = story.helped
    return [{"title": "Did it help?", "text": str(found["sentence"])}] if found.get("sentence") else []


def _table_of_help(story: Story) -> Part | None:
    """The numbers that the answer stands on."""
    found = [row for row in story.helped.get("rows", []) if isinstance(row.get("values"), dict)]
    if not found:
        return None
    names, interval = list(found[0]["values"]), found[0].get("low") is not None
    rows = [
        [row["name"], *(number(row["values"][name]) if row["values"].get(name) is not None else "" for name in names)]
        + ([f"{row['low']:.1f} to {row['high']:.1f}"] if interval and row.get("low") is not None else [])
        for row in found
    ]
    head = [str(story.helped.get("what", "")), *names, *(["95 % interval"] if interval else [])]
    return table(rows, head, numbers=range(1, len(head)))


def _facts(story: Story) -> list[dict[str, str]]:
    """The numbers that a person looks for first."""
    found = []
    if (loss := story.metrics.steps.get("loss")) is not None:
        found.append(("Loss", number(loss.curve().last), ""))
    if (rank := story.check("rank")) is not None:
        found.append(("Dimensions in use", f"{rank:.1f}", "RankMe"))
    if (own := story.check("own_view")) is not None:
        start, views = story.check("own_view_start"), story.check("views")
        at = f"at the start {start:.0%}, " if start is not None else ""
        chance = f"by chance {1 / (views - 1):.0%}" if views else ""
        found.append(("Views that find their own", f"{own:.0%}", at + chance))
    if (score := story.score) is not None:
        interval = f"{score.low:.1f} to {score.high:.1f}, {score.images:,} images" if score.images else ""
        found.append((f"k-NN top-1, k = {score.k}", f"{score.top1:.1f} %", interval))
    if story.complete is not None:
        bad = story.complete.get("bad_files")
        found.append(("Files that could not be read", str(bad), "")) if bad else None
    return [{"name": name, "value": value, "small": small} for name, value, small in found]
