"""The command `mmattn train` as a script."""

import sys

from mmattn.cli.train import main

if __name__ == '__main__':
    sys.exit(main())
