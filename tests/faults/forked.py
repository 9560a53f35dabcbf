"""Runs the command line in forks of one process that has loaded everything: a run then takes its own time only.

Each line of standard input is a job, as JSON: `arguments` of the command line, the file `log` for what it prints, and
at will `points`, a file for the names of the crash points that it passes, `die_at`, the number of the one at which it
is killed, `in_place`, to write without temporary files, `file_bytes`, the largest file that it may write, and
`environment`, variables to set. The answer to a job is the process's id, and to the
next line, which is a number of seconds, its exit status; null if it had to be killed because it took longer.
The first line of the output is "ready".
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path


def replace_everywhere(name, new):
    """Put a function in place of one of `tamis.manifests.atomic`, wherever it was imported."""
    from tamis.manifests import atomic

    old = getattr(atomic, name)
    for module in list(sys.modules.values()):
        if getattr(module, name, None) is old:
            setattr(module, name, new)


def child(arguments, log, points=None, die_at=None, in_place=False, file_bytes=None, environment=None):
    from tamis.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.update(environment or {})
    passed = []

    def crash_point(name):
        passed.append(name)
        if points is not None:
            Path(points).write_text("\n".join(passed))
        if len(passed) - 1 == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_in_place(path, data):
        data = bytes(data)
        with path.open("wb", buffering=0) as stream:
            stream.write(data[: len(data) // 2])
            crash_point("half")
            stream.write(data[len(data) // 2 :])

    replace_everywhere("crash_point", crash_point)
    if in_place:
        replace_everywhere("write_atomic", write_in_place)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    main(arguments, prog_name="tamis")


def ended(pid, seconds):
    deadline = time.monotonic() + seconds
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main():
    recipe, out = sys.argv[1:]
    import distributed  # noqa: F401

    import tamis.cli  # noqa: F401
    from tamis.pipelines.run import run

    run(recipe, out, executor="sync")
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child(**json.loads(line))
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        print(json.dumps(ended(pid, float(sys.stdin.readline()))), flush=True)


if __name__ == "__main__":
    main()
