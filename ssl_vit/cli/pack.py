"""``ssl-vit pack``: many small files become few large ones."""

from __future__ import annotations

import argparse

from ssl_vit.cli.parser import Parser, add_outside_links, images, new, say


def pack(argv: list[str]) -> None:
    """Pack a folder of images into tar archives, which are read quicker from slow storage."""
    parser = Parser("pack", str(pack.__doc__))
    parser.add_argument("data", metavar="DATA", nargs="+", type=images, help="images, as for pretrain")
    add_outside_links(parser)
    parser.add_argument("--to", type=new, metavar="DIR", required=True, help="folder to make")
    words = "shorten short sides above N pixels to N (JPEG, quality 95); others are kept as they are"
    parser.add_argument("--size", type=_pixels, metavar="N", help=words)
    words = "share of the images that may be unreadable, 0 to 1; default 0.05"
    parser.add_argument("--max-bad", type=_share, metavar="X", default=0.05, help=words)
    args = parser.parse(argv)
    from ssl_vit.data.left_out import note_left_out
    from ssl_vit.data.pack import pack as script
    from ssl_vit.data.sources import open_source

    note_left_out(source := open_source(args.data, "outside_links" in args))
    made = script(source, args.to, args.size, args.max_bad)
    left_out = f"; {len(made['left_out'])} unreadable ones left out" if made["left_out"] else ""
    what = f"{made['images']} images in {len(made['shards'])} archives, {made['bytes'] / 1e9:.2f} GB{left_out}"
    say(f"{args.to}: {what}. Use it as a folder of images: ssl-vit pretrain {args.to} --out RUN")


def _pixels(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected pixels, a whole number")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share from 0 to 1")
    return share
