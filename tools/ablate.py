"""The command `mmattn ablate` as a script."""

import sys

from mmattn.cli.ablate import main

if __name__ == '__main__':
    sys.exit(main())
