"""The command `mmattn tune` as a script."""

import sys

from mmattn.cli.tune import main

if __name__ == '__main__':
    sys.exit(main())
