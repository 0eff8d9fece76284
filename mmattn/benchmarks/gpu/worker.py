"""The process that runs parts of the report: `python -m mmattn.benchmarks.gpu.worker`.

For each line of JSON on stdin it runs one part and writes a line to stdout, 'ok' or 'failed'. A
line has `function`, 'module:function'; `device`, a torch device; `rows` and `log`, files that are
written; `seconds`, the time that the part has. What a part prints goes into its log.
"""

import gc
import json
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from .bench import Bench


def run_part(options: dict[str, Any]) -> bool:
    """Whether the part ended without an error; if not, its last row has the error."""
    module, _, function = options['function'].partition(':')
    with Bench(options['device'], Path(options['rows']), options['seconds']) as bench:
        try:
            measure = getattr(import_module(module), function)
            gc.freeze()  # a capture of a graph collects garbage: among few objects
            measure(bench)
            bench.synchronize()
        except Exception as error:
            traceback.print_exc()
            bench.row('failure', error=f'{type(error).__name__}: {error}'.partition('\n')[0])
            return False
    gc.collect()
    bench.release()
    return True


def main() -> None:
    control = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
    for line in sys.stdin:
        options = json.loads(line)
        with open(options['log'], 'w', encoding='utf-8') as log:
            for stream in sys.stdout, sys.stderr:
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
            flags = torch.backends.cuda.matmul, torch.backends.cudnn
            before = [flag.allow_tf32 for flag in flags]
            ok = run_part(options)
            for flag, value in zip(flags, before, strict=True):
                flag.allow_tf32 = value
            sys.stdout.flush()
        print('ok' if ok else 'failed', file=control, flush=True)


if __name__ == '__main__':
    main()
