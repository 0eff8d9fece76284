"""The command `mmattn plot-classes` as a script."""

import sys

from mmattn.cli.plot_classes import main

if __name__ == '__main__':
    sys.exit(main())
