"""The command `mmattn data browse` as a script."""

import sys

from mmattn.cli.browse_data import main

if __name__ == '__main__':
    sys.exit(main())
