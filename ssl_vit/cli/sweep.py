"""``ssl-vit sweep``: many runs of one file."""

from __future__ import annotations

from pathlib import Path

from ssl_vit.cli.parser import Parser, bring_in_plugins, existing, heard, images, say


def sweep(argv: list[str]) -> None:
    """Try methods, backbones and any settings against each other, as a grid or a search."""
    epilog = "The same command once more, with CUDA_VISIBLE_DEVICES=1 or on another machine, helps with the same sweep."
    parser = Parser("sweep", str(sweep.__doc__), epilog)
    parser.add_argument("file", metavar="SWEEP.yaml", type=existing, help="what to try; see docs/sweeps.md")
    parser.add_argument("data", metavar="DATA", nargs="*", type=images, help="images, where the file names none")
    words = "folder of the sweep; the same command goes on, and several share it"
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help=words)
    parser.add_argument("--dry-run", action="store_true", help="print the cells and stop")
    args = parser.parse(argv)
    bring_in_plugins()
    from ssl_vit.sweep.plan import read_plan

    plan = read_plan(args.file, args.data or None)
    if args.dry_run:
        say(plan.told())
        return
    from ssl_vit.sweep.figure import draw
    from ssl_vit.sweep.run import sweep as run

    with heard():
        result = run(plan, args.out)
    draw(plan, result, args.out)
    say(f"{result}\n{args.out}: sweep.json has every cell, sweep.png the curves")
