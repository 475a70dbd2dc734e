"""``ssl-vit bench``: how fast a run would be here, and why not faster."""

from __future__ import annotations

from typing import Any

from ssl_vit.cli.parser import Parser, add_outside_links, bring_in_plugins, new_file, one_or_several, say
from ssl_vit.config import check_data, load_config


def bench(argv: list[str]) -> None:
    """Measure where the time of a run goes on this machine, and say what to change."""
    parser = Parser("bench", str(bench.__doc__))
    parser.add_argument("data", metavar="DATA", nargs="+", help="images, as for pretrain")
    add_outside_links(parser)
    parser.add_argument("--backbone", metavar="NAME", help="as for pretrain")
    parser.add_argument("--method", metavar="NAME", help="as for pretrain")
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    parser.add_argument("--set", action="append", default=[], metavar="key.path=value", help="any setting of pretrain")
    parser.add_argument("--chart", type=new_file, metavar="FILE.png", help="draw the parts as bars")
    args = parser.parse(argv)
    flags: dict[str, Any] = {
        "data.path": one_or_several(args.data),
        "backbone.name": args.backbone,
        "method.name": args.method,
    }
    flags["data.outside_links"] = True if "outside_links" in args else None
    config = load_config(args.config, args.set, {key: value for key, value in flags.items() if value is not None})
    check_data(config)
    bring_in_plugins()
    from ssl_vit import bench as script
    from ssl_vit.report.speed import draw
    from ssl_vit.training.step import PARTS

    result = script.bench(config)
    say(str(result))
    if args.chart is not None:
        reading, step = ({part: result.parts[part] for part in parts} for parts in (script.READING, PARTS))
        draw(reading, step, f"{result.together:.1f} images/s, data wait {result.wait:.0%}", args.chart)
