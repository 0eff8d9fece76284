"""The command `mmattn probe` as a script."""

import sys

from mmattn.cli.probe import main

if __name__ == '__main__':
    sys.exit(main())
