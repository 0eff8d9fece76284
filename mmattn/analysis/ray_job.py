"""Run a shell command as a task of a Ray cluster whose machines share a file system.

python -m mmattn.analysis.ray_job '{"num_gpus": "1"}' 'COMMAND'
"""

import json
import subprocess
import sys


def main(resources: dict[str, str], command: str) -> int:
    """Run the command, print its output when it has ended, and return its exit code."""
    import ray

    ray.init(address='auto')
    resources = {name: float(number) for name, number in resources.items()}

    @ray.remote(**resources)
    def task() -> tuple[int, str]:
        process = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
        return process.returncode, process.stdout + process.stderr

    code, text = ray.get(task.remote())
    print(text)
    return code


if __name__ == '__main__':
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2]))
