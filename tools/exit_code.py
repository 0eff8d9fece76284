"""The command `mmattn exit-code` as a script."""

import sys

from mmattn.cli.exit_code import main

if __name__ == '__main__':
    sys.exit(main())
