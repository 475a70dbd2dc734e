"""``ssl-vit compare``: several runs on the same images."""

from __future__ import annotations

import json
from dataclasses import asdict

from ssl_vit.cli.parser import Parser, add_outside_links, bring_in_plugins, existing, images, new_file, say


def compare(argv: list[str]) -> None:
    """Score several runs on the same images and say which differences are more than chance."""
    parser = Parser("compare", str(compare.__doc__))
    words = "two or more folders of runs, or files of weights; each is tested against the first"
    parser.add_argument("runs", metavar="RUN", nargs="+", type=existing, help=words)
    parser.add_argument("--train", type=images, metavar="DIR", required=True, help="labelled images to learn from")
    parser.add_argument("--val", type=images, metavar="DIR", required=True, help="labelled images to score on")
    add_outside_links(parser)
    parser.add_argument("--kind", default="knn", metavar="KIND", help="knn, linear, logistic or grid (knn, k = 20)")
    words = "measure parameters, multiply-adds, time and size of the file of each, too"
    parser.add_argument("--costs", action="store_true", help=words)
    parser.add_argument("--figure", type=new_file, metavar="FILE", help="draw the result there, a .png")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the result there too")
    args = parser.parse(argv)
    bring_in_plugins()
    from ssl_vit.eval.compare import compare as run
    from ssl_vit.files import write_whole

    links = "outside_links" in args
    found = run(args.runs, args.train, args.val, kind=args.kind, costs=args.costs, outside_links=links)
    if args.json is not None:
        text = json.dumps(asdict(found), indent=2) + "\n"
        write_whole(args.json, lambda file: file.write(text.encode()))
    if args.figure is not None:
        from ssl_vit.report.compare import figure
        from ssl_vit.report.figures import save_figure

        save_figure(figure(found), args.figure)
    say(found.table())
