"""The command `mmattn infer` as a script."""

import sys

from mmattn.cli.infer import main

if __name__ == '__main__':
    sys.exit(main())
