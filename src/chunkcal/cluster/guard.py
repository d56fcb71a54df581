"""Run one program in its own session and kill that whole session when whoever holds our standard input is gone.

Started by a worker as ``python -I -S guard.py USAGE_FILE PROGRAM ARG...``. The worker holds the other end of the pipe,
so any death of the worker, also by SIGKILL, closes it. PDEATHSIG alone is not enough: it reaches the child but not what
the child has started.

Each DP3 run starts one, so it imports little: json, and enum behind signal, would double what it uses.

When the program has ended, its own resource use is in USAGE_FILE (JSON), and the guard's exit status is the
program's, or 128 + the number of the signal that killed it.
"""

import _signal as signal
import ctypes
import os
import select
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOPPED_BY_US = 143


def _start(argv: list[str]) -> int:
    libc = ctypes.CDLL(None)
    # What the program starts and forgets comes to us as a child when its parent has gone, and dies with us.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != guard:  # the guard died before the line above took effect
        os._exit(STOPPED_BY_US)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(127)


def _kill_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def _kill_adopted() -> None:
    """Kill what left the session (a daemon of its own) and was re-parented to us; then what that has left, and so on.

    Once is not enough: what another guard below us was looking after comes to us only when that guard has died.
    """
    while children := _children():
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def main(usage_file: str, argv: list[str]) -> int:
    """Run `argv`; return the exit status for the guard itself."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # only the pipe decides
    pid = _start(argv)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([0, ended], [], [])
    _kill_session(pid)
    _, status, usage = os.wait4(pid, 0)
    _kill_adopted()
    if ended not in ready:
        return STOPPED_BY_US
    with open(usage_file, "w") as file:
        file.write(f'{{"cpu_s": {usage.ru_utime + usage.ru_stime}, "max_rss_kb": {usage.ru_maxrss}}}')
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
