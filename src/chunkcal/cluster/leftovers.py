"""Cancel the SLURM jobs of a run whose Snakemake process has died, however it died.

Standard library only. The supervisor cancels its workers' jobs itself; this little process is for the jobs that
Snakemake submits for heavy rules, which a ``kill -9`` of Snakemake would leave in the queue, and for the workers' jobs
when supervisor and Snakemake are killed together. Started as ``python -I -S leftovers.py PID JOB_NAME...``.
"""

import getpass
import os
import select
import subprocess
import sys
import time

# A job may be under way to SLURM while its submitter dies: look again, so many times, so far apart.
N_TRIES = 3
PAUSE_S = 2.0


def watch(names: list[str]) -> None:
    """Start a process that outlives the caller, and cancels the jobs of these names when the caller has ended."""
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(pid: int, names: list[str]) -> None:
    """Wait for the end of process `pid`, which must be the caller of `watch`, and cancel what it has left."""
    if os.getppid() == pid:  # else it has died already
        owner = os.pidfd_open(pid)
        select.select([owner], [], [])
    for attempt in range(N_TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        for name in names:
            command = ["scancel", "--quiet", "--name", name, "--user", getpass.getuser()]
            subprocess.run(command, timeout=30, check=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
