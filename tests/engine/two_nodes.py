"""Train on two machines: two network namespaces with a cable between, in a namespace of their own.

    two_nodes.py TRACE ARGUMENTS   run by `unshare` (see OUTER), whose end ends all that is here

When the file `TRACE/cut_1_N` appears, the cable is pulled, and `TRACE/is_cut` says so. Ends with the
exit code of the first machine's torchrun.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

OUTER = ['unshare', '--user', '--map-root-user', '--net', '--uts', '--pid', '--fork']
OUTER += ['--kill-child', '--mount-proc']
ADDRESSES = '10.77.0.1', '10.77.0.2'
PORT = 29517  # of namespaces that nobody else is in


def machine(number: int) -> subprocess.Popen:
    """Something that holds the namespaces of a machine."""
    setup = f'hostname mmattn-{number} && ip link set lo up && exec sleep 600'
    held = subprocess.Popen(['unshare', '--net', '--uts', 'sh', '-c', setup])
    own = os.readlink('/proc/self/ns/net')
    while os.readlink(f'/proc/{held.pid}/ns/net') == own:
        time.sleep(0.01)
    return held


def inside(held: subprocess.Popen) -> list[str]:
    return ['nsenter', '--target', str(held.pid), '--net', '--uts']


def connect(machines: list[subprocess.Popen]) -> None:
    first, second = (str(held.pid) for held in machines)
    cable = ['type', 'veth', 'peer', 'name', 'cable2', 'netns', second]
    subprocess.run(['ip', 'link', 'add', 'cable1', 'netns', first, *cable], check=True)
    for number, (held, address) in enumerate(zip(machines, ADDRESSES), 1):
        ip = [*inside(held), 'ip']
        subprocess.run(
            [*ip, 'address', 'add', f'{address}/24', 'dev', f'cable{number}'], check=True
        )
        subprocess.run([*ip, 'link', 'set', f'cable{number}', 'up'], check=True)


def start(held: subprocess.Popen, number: int, arguments: list[str]) -> subprocess.Popen:
    command = [
        *inside(held), sys.executable, '-m', 'torch.distributed.run', '--nnodes', '2',
        '--nproc-per-node', '1', '--rdzv-backend', 'c10d', '--rdzv-id', 'two',
        '--rdzv-endpoint', f'{ADDRESSES[0]}:{PORT}', '--rdzv-conf', f'is_host={2 - number}',
        '--local-addr', ADDRESSES[number - 1], 'tests/engine/faulty.py', *arguments,
    ]  # fmt: skip
    return subprocess.Popen(command, env={**os.environ, 'GLOO_SOCKET_IFNAME': f'cable{number}'})


def main(trace: Path, arguments: list[str]) -> int:
    machines = [machine(1), machine(2)]
    connect(machines)
    first, second = (start(m, n, arguments) for n, m in enumerate(machines, 1))
    while first.poll() is None:
        if list(trace.glob('cut_*')) and not (trace / 'is_cut').exists():
            subprocess.run(
                [*inside(machines[0]), 'ip', 'link', 'set', 'cable1', 'down'], check=True
            )
            (trace / 'is_cut').touch()
        time.sleep(0.1)
    print(f'machines ended with {first.returncode} and {second.poll()}', flush=True)
    if first.returncode == 0:
        second.wait()
    return first.returncode


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
