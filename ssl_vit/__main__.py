"""``python -m ssl_vit`` is ``ssl-vit``."""

import sys


def run() -> int:
    """The command line, which Ctrl-C ends in one line even while it is being imported; its exit code."""
    try:
        from ssl_vit.cli import main
        from ssl_vit.terminal import open_closed_streams

        open_closed_streams()
        return main()
    except KeyboardInterrupt:
        print("ssl-vit: error: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
