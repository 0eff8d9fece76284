"""The command `mmattn cost` as a script."""

import sys

from mmattn.cli.cost import main

if __name__ == '__main__':
    sys.exit(main())
