"""Run programs, each in a session of its own, and kill it with all it has started when our standard input ends.

Whoever starts a guard holds the other end of that pipe, so any death of theirs, also by SIGKILL, closes it. PDEATHSIG
alone is not enough: it reaches the child but not what the child has started.

``python -I -S guard.py PROGRAM ARG...`` runs one program; the guard's exit status is the program's, or 128 + the number
of the signal that killed it. Without arguments it runs what it is asked to, one after the other, because to start a
Python for each DP3 would take 0.015 s of its slot: requests come on standard input, answers go to standard output, both
marshalled, so that nothing must be imported for them.

Request: ``argv``, ``cwd``, ``env``, ``log`` (a path; what the program prints is added to it). Answer: exit status as
above, CPU seconds, largest resident set (kB).
"""

import _signal as signal
import ctypes
import marshal
import os
import select
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOPPED_BY_US = 143


def _start(libc: ctypes.CDLL, argv: list[str], request: dict | None) -> int:
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
        if request:
            log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(request["cwd"])
        os.execvpe(argv[0], argv, request["env"] if request else os.environ)
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


def _run(libc: ctypes.CDLL, argv: list[str], request: dict | None = None) -> tuple[int, float, int] | None:
    """Run a program to its end; None if it was killed because our standard input has ended."""
    pid = _start(libc, argv, request)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([0, ended], [], [])
    os.close(ended)
    _kill_session(pid)
    _, status, usage = os.wait4(pid, 0)
    _kill_adopted()
    if ended not in ready:
        return None
    status = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def _serve(libc: ctypes.CDLL) -> int:
    while True:
        try:
            request = marshal.load(sys.stdin.buffer)
            answer = _run(libc, request["argv"], request)
            if answer is None:
                return STOPPED_BY_US
            os.write(1, marshal.dumps(answer))
        except (EOFError, BrokenPipeError):  # nobody asks, or waits for an answer, any more
            return 0


def main(argv: list[str]) -> int:
    """Run `argv`, or what is asked for; return the exit status for the guard itself."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # only the pipe decides
    libc = ctypes.CDLL(None)
    # What a program starts and forgets comes to us as a child when its parent has gone, and dies with us.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if not argv:
        return _serve(libc)
    answer = _run(libc, argv)
    return STOPPED_BY_US if answer is None else answer[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
