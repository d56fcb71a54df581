"""A real SLURM on this machine, for tests: controller, several nodes and munge on loopback, as root or not.

The daemons come from Debian's packages slurm-wlm and munge. Nothing outside of the bed's folder is written to, there is
no systemd and no accounting, and several beds can stand side by side.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scancel", "squeue", "sinfo", "scontrol", "qsub", "qstat", "qdel")
SBIN = "/usr/sbin:/sbin"


def free_ports(n: int) -> list[int]:
    """Find ports of loopback that nobody listens on."""
    sockets = [socket.socket() for _ in range(n)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(condition, seconds: float, what: str):
    """Poll until `condition` gives something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.1)
    return found


class Bed:
    """One SLURM.

    Parameters
    ----------
    folder
        For configuration, state and logs; readable for whoever submits.
    n_nodes, n_cpus, memory_mb
        Emulated nodes, and what each pretends to have.
    """

    def __init__(self, folder: Path, n_nodes: int = 4, n_cpus: int = 2, memory_mb: int = 4000) -> None:
        self.folder = folder
        self.n_nodes, self.n_cpus, self.memory_mb = n_nodes, n_cpus, memory_mb
        self.config = folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.config), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}:{SBIN}"}

    def start(self) -> None:
        """Bring it up, and return when all nodes are idle."""
        for name in ("run", "log", "state", "spool", "bin"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write_wrappers()
        self._write_config()
        self._start_munge()
        self._run("slurmctld", "-c", "-f", str(self.config))
        for node in self.nodes():
            self._run("slurmd", "-f", str(self.config), "-N", node)
        try:
            wait_for(lambda: self.states().count("idle") == self.n_nodes, 30, "nodes are not idle")
        except TimeoutError as error:
            logs = "".join(path.read_text()[-2000:] for path in (self.folder / "log").iterdir())
            self.stop()
            raise RuntimeError(f"SLURM did not come up: {error}\n{logs}") from error

    def nodes(self) -> list[str]:
        """Name the nodes."""
        return [f"node{number}" for number in range(1, self.n_nodes + 1)]

    def states(self) -> list[str]:
        """Give the state of every node."""
        return self.call("sinfo", "-h", "-N", "-p", "debug", "-o", "%T").split()

    def call(self, *argv: str) -> str:
        """Run a SLURM command as the owner of the bed; give what it prints."""
        done = subprocess.run(
            argv, env=os.environ | self.environment, capture_output=True, text=True, timeout=30, check=False
        )
        return done.stdout

    def queue(self) -> list[list[str]]:
        """List all jobs in the queue: id, name, state, node."""
        return [line.split("|") for line in self.call("squeue", "-h", "-a", "-o", "%i|%j|%T|%N").splitlines()]

    def _run(self, *argv: str) -> None:
        with open(self.folder / "log/start", "ab") as log:
            subprocess.run(argv, env=os.environ | self.environment, stdout=log, stderr=log, timeout=30, check=True)

    def _write_wrappers(self) -> None:
        # A job step, and a snakemake inside a job, drop SLURM_CONF from the environment of the commands they run.
        for name in COMMANDS:
            found = shutil.which(name)
            if found:
                wrapper = self.folder / "bin" / name
                wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.config} exec {found} "$@"\n')
                wrapper.chmod(0o755)

    def _write_config(self) -> None:
        ports = free_ports(self.n_nodes + 1)
        user, run, log = getpass.getuser(), self.folder / "run", self.folder / "log"
        lines = [
            "ClusterName=bed",
            "SlurmctldHost=localhost(127.0.0.1)",
            f"SlurmctldPort={ports[0]}",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            # A job that goes back into the queue begins when its old credentials have expired, by default after 120 s.
            f"AuthInfo=socket={run}/munge.socket,cred_expire=15",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={run}/slurmctld.pid",
            f"SlurmdPidFile={run}/%n.pid",
            f"SlurmctldLogFile={log}/slurmctld.log",
            f"SlurmdLogFile={log}/%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            "SlurmdParameters=config_overrides",  # nodes may have more CPUs than this machine
            "ReturnToService=2",
            "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",  # loopback only
            "SchedulerParameters=sched_min_interval=10000,bf_interval=1",
            "AccountingStorageType=accounting_storage/none",
            "JobAcctGatherType=jobacct_gather/none",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "KillWait=5",
            "CompleteWait=0",
            "InactiveLimit=0",
        ]
        for node, port in zip(self.nodes(), ports[1:], strict=True):
            lines.append(
                f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
                f"CPUs={self.n_cpus} RealMemory={self.memory_mb}"
            )
        share = self.memory_mb // self.n_cpus // 2
        lines.append(f"PartitionName=debug Nodes=ALL Default=YES DefMemPerCPU={share} PriorityTier=1")
        lines.append(f"PartitionName=urgent Nodes=ALL DefMemPerCPU={share} PriorityTier=9")
        self.config.write_text("\n".join(lines) + "\n")
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
            # Without any cgroup file system slurmd would end while it looks for version 2.
            (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        run = self.folder / "run"
        self._run(
            *("munged", "--force", f"--key-file={key}", f"--socket={run}/munge.socket"),
            *(f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed"),
            f"--log-file={self.folder}/log/munged.log",
        )

    def stop(self) -> None:
        """Cancel all jobs and end all daemons."""
        self.call("scancel", *(job[0] for job in self.queue()))
        try:
            wait_for(lambda: not self.queue(), 20, "jobs are left")
        except TimeoutError:
            pass  # the daemons end all the same
        # All at once, because a slurmd that has had jobs lingers for seconds; the controller is asked by none of them.
        processes = [self.folder / f"run/{name}.pid" for name in (*self.nodes(), "slurmctld", "munged")]
        pids = [int(file.read_text()) for file in processes if file.exists()]
        pids = [pid for pid in pids if _is_ours(pid)]
        for number, seconds in ((signal.SIGTERM, 3), (signal.SIGKILL, 3)):
            for pid in filter(_is_ours, pids):
                os.kill(pid, number)
            try:
                wait_for(lambda: not any(map(_is_ours, pids)), seconds, "daemons are left")
                break
            except TimeoutError:
                continue


def _is_ours(pid: int) -> bool:
    """Tell whether a process lives and is one of the daemons, which are known by pids in files."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(("slurm", "munged")) and _alive(pid)
    except OSError:
        return False


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
