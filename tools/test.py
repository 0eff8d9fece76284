"""The command `mmattn test` as a script."""

import sys

from mmattn.cli.test import main

if __name__ == '__main__':
    sys.exit(main())
