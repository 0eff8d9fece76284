"""End with the exit code of a distributed run, of which torchrun itself says only 0 or 1.

Example: torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch --work-dir DIR
         python tools/exit_code.py DIR
"""

import sys
from pathlib import Path

from mmattn.cli.common import parser, run
from mmattn.errors import Exit, MmattnError
from mmattn.exit_status import how_it_ended


def main(argv: list[str] | None = None) -> int:
    args = parser(__doc__)
    args.add_argument('work_dir', type=Path, help='of the run')
    args = args.parse_args(argv)

    def task() -> None:
        code, message = how_it_ended(args.work_dir)
        if code != Exit.OK:
            error = MmattnError(message)
            error.code = Exit(code)
            raise error

    return run(task, args)


if __name__ == '__main__':
    sys.exit(main())
