"""The command `mmattn evaluate` as a script."""

import sys

from mmattn.cli.evaluate import main

if __name__ == '__main__':
    sys.exit(main())
