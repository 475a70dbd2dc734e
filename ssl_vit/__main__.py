"""``python -m ssl_vit`` is ``ssl-vit``."""

import sys

from ssl_vit.cli import main

sys.exit(main())
