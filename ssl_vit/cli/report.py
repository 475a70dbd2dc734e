"""``ssl-vit report``: the page of a run, or of several beside each other."""

from __future__ import annotations

from pathlib import Path

from ssl_vit.cli.parser import Parser, existing, new_file, say


def report(argv: list[str]) -> None:
    """Write the page of a run from its folder, or one page of several runs and results."""
    parser = Parser("report", str(report.__doc__))
    words = "folders of runs, and .json files that eval or compare wrote"
    parser.add_argument("paths", metavar="RUN|RESULT", nargs="+", type=existing, help=words)
    parser.add_argument("--out", type=new_file, metavar="FILE", help="the page to write, where there are several")
    args = parser.parse(argv)
    paths: list[Path] = args.paths
    from ssl_vit.report.page import write_page
    from ssl_vit.report.several import write_several

    if args.out is not None:
        say(str(write_several(paths, args.out)))
    elif len(paths) == 1 and paths[0].is_dir():
        say(str(write_page(paths[0])))
    else:
        parser.error("--out FILE is required for several runs, or for results")
