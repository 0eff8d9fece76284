"""Run a shell command as a task of a Ray cluster, whose machines share the file system.

python -m mmattn.analysis.ray_job '{"num_gpus": "1"}' 'COMMAND'
"""

import json
import subprocess
import sys


def main(resources: dict[str, str], command: str) -> int:
    """Returns the command's exit code; prints what it prints when it has ended."""
    import ray

    ray.init(address='auto')
    needed = {name: float(number) for name, number in resources.items()}

    @ray.remote(**needed)
    def task() -> tuple[int, str]:
        done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, text = ray.get(task.remote())
    print(text)
    return code


if __name__ == '__main__':
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2]))
