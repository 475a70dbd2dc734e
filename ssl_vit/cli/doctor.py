"""``ssl-vit doctor``: what would hurt a run here, a line each."""

from __future__ import annotations

import json
from pathlib import Path

from ssl_vit.cli.parser import Parser, add_outside_links, images, new_file, say
from ssl_vit.errors import RunFailed
from ssl_vit.files import write_atomically


def doctor(argv: list[str]) -> None:
    """Look at the installation, the machine, the disk and the images, and say what would hurt a run."""
    epilog = "Exit code 1 where something would stop a run, else 0. A file of 64 MB is written to DIR and deleted."
    parser = Parser("doctor", str(doctor.__doc__), epilog)
    parser.add_argument("data", metavar="DATA", type=images, nargs="?", help="images, as for pretrain")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path(), help="where runs will be kept (here)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the findings there too")
    add_outside_links(parser)
    args = parser.parse(argv)
    from ssl_vit import doctor as script

    found = script.doctor(args.data, args.out, outside_links="outside_links" in args)
    if args.json is not None:
        text = json.dumps([finding._asdict() for finding in found], indent=2) + "\n"
        write_atomically(args.json, lambda path: path.write_text(text, encoding="utf-8"))
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        say(f"{finding.level:11}  {finding.subject:{width}}  {finding.found}")
        if finding.mend:
            say(f"{'':11}  {'':{width}}  -> {finding.mend}")
    if stopping := [finding.subject for finding in found if finding.level == "stops a run"]:
        raise RunFailed(f"a run would be stopped by: {', '.join(stopping)}; the lines above say what mends it")
