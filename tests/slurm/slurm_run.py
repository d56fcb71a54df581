"""A pipeline run on the emulated SLURM, as the account that submits there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from account import Account
from bed import Bed

from background import DP3_AT_WORK, Run, wait_until

# Two CPUs a node: one job of one slot with two threads, or of two slots with one.
JOB = {"n_jobs": 2, "n_cores": 2, "memory_gb": 1, "walltime_min": 30, "interface": "lo"}
CLUSTER = {"start_timeout_s": 180, "worker_failures": 20, "job": JOB}


def with_job(**changes: Any) -> dict[str, Any]:
    """Give the cluster section with changes of its jobs."""
    return CLUSTER | {"job": JOB | changes}


def preempt(bed: Bed, job: str, node: str) -> None:
    """Have a node taken by a job of more importance, for some seconds."""
    bed.call("sbatch", "-p", "urgent", "-w", node, "-c", "2", "-o", "/dev/null", "--wrap", "sleep 3")


class SlurmRun(Run):
    """``snakemake --profile slurm`` in a checkout of its own.

    Parameters
    ----------
    bed, account
        Where, and as whom.
    heavy_rules_here
        Spare the executor's slow looks after its jobs, and the report, where a test is about the workers only.
    folder, ms, slow_s, sections
        As of `Run`; with `slow_s` None DP3 runs as it comes.
    """

    def __init__(
        self,
        bed: Bed,
        account: Account,
        folder: Path,
        ms: Path,
        slow_s: float | None = 1.0,
        heavy_rules_here: bool = True,
        **sections: Any,
    ) -> None:
        super().__init__(folder, ms, slow_s or 0, **({"cluster": CLUSTER} | sections))
        self.bed, self.account = bed, account
        self.heavy_rules_here = heavy_rules_here
        account.make_workflow(folder)
        self.python = str(account.python)
        if slow_s is None:
            self.config.pop("dp3")
        else:
            packages = account.python.parent.parent / "lib"
            measures = next(packages.glob("python*/site-packages/casacore"))
            self.write_slow_dp3(folder / "DP3", slow_s, f"{self.python} {account.python.parent / 'DP3.py'}", measures)
        account.own(folder)

    def environment(self) -> Mapping[str, str]:
        """Give the environment of the account's shell."""
        kept = {key: os.environ[key] for key in ("LANG", "TMPDIR") if key in os.environ}
        return {
            **kept,
            **self.bed.environment,
            **self.account.environment,
            "OPENBLAS_NUM_THREADS": "1",
            "CHUNKCAL_TEST_RUN": str(self.folder),
        }

    def start(self, *words: str) -> SlurmRun:
        """Start snakemake by the documented line, from the root of the checkout; do not wait."""
        config = {key: value for key, value in self.config.items() if key != "cluster"}
        (self.folder / "config/config.yaml").write_text(yaml.safe_dump(config))
        # The profile's own cluster section lies on top of that file; the command line, key by key, on top of both.
        if self.heavy_rules_here:
            words = ("--executor", "local", *words, "--", f"results/{self.ms.stem}/{self.ms.stem}.ms")
            self.config["cluster"] = {"backend": "slurm"} | self.config["cluster"]
        cluster = f"cluster={json.dumps(self.config['cluster'])}"
        command = [self.python, "-m", "snakemake", "--profile", "slurm", "--config", cluster, *words]
        with open(self.folder / "output", "wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                **self.account.arguments(),
            )
        return self

    def call(self, *argv: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a command as the account in the checkout."""
        return subprocess.run(
            argv,
            cwd=self.folder,
            env={**self.environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
            **self.account.arguments(),
        )

    def log(self) -> str:
        """Return the cluster's log."""
        path = self.folder / "logs/cluster.log"
        return path.read_text() if path.exists() else ""

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Poll until `condition` is true; fail with all that the run has said until then."""
        try:
            return wait_until(condition, seconds, what)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.jobs()}\n{self.text()[-4000:]}\n{self.log()[-4000:]}") from None

    def jobs(self) -> list[list[str]]:
        """List the jobs of this bed's queue: the tests run one after another."""
        return self.bed.queue()

    def wait_for_chunk_on(self, other_than: Collection[str] = ()) -> list[str]:
        """Wait until a DP3 is at work; give the worker job that it belongs to, which is none of `other_than`."""

        def busy() -> list[str] | None:
            for dp3 in self.find(DP3_AT_WORK):
                try:
                    words = Path(f"/proc/{dp3}/environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                job = next((word[13:].decode() for word in words if word.startswith(b"SLURM_JOB_ID=")), None)
                for row in self.jobs():
                    if row[0] == job and row[3] and job not in other_than:
                        return row
            return None

        return self.wait(busy, 180, "no chunk is at work")

    def queue_must_be_empty(self, seconds: float = 20) -> None:
        """No job may be left for longer than `seconds`, by default those that docs/clusters.md promises."""
        self.wait(lambda: not self.jobs(), seconds, "jobs are left")

    def must_finish(self, seconds: float = 300) -> None:
        """As of `Run`, with the cluster's log if it fails."""
        assert self.process.wait(seconds) == 0, self.text()[-6000:] + self.log()[-4000:]

    def must_have_cleaned_up(self) -> None:
        """Neither a job nor a process nor a certificate is left."""
        self.queue_must_be_empty()
        self.must_be_gone(20)
        assert not list(self.folder.rglob("*.pem"))
        assert not (self.results / ".chunkcal").exists()
