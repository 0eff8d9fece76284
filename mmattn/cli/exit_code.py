"""Exit with the code of a distributed run, for which torchrun has only 0 and 1.

Example: torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch --work-dir DIR
         python tools/exit_code.py DIR
"""

from pathlib import Path

from mmattn.errors import Exit, MmattnError
from mmattn.exit_status import exit_code_and_message

from .common import make_parser, run


def main(argv: list[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(__doc__, prog)
    parser.add_argument('work_dir', type=Path, help='work dir of the run')
    args = parser.parse_args(argv)

    def task() -> None:
        code, message = exit_code_and_message(args.work_dir)
        if code != Exit.OK:
            error = MmattnError(message)
            error.code = Exit(code)
            raise error

    return run(task, args)
