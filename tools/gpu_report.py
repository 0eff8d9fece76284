"""The command `mmattn gpu-report` as a script."""

import sys

from mmattn.cli.gpu_report import main

if __name__ == '__main__':
    sys.exit(main())
