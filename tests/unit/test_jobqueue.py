import sys
from pathlib import Path

import pytest

from chunkcal.cluster.backends.jobqueue import Place, job_script, walltime
from chunkcal.cluster.state import ClusterError
from chunkcal.config import load_schema, validate

SCHEMA = load_schema(Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml")
JOB = {
    "n_cores": 16,
    "n_processes": 2,
    "memory_gb": 64,
    "walltime_min": 90,
    "queue": "long",
    "account": "radio",
    "interface": "ib0",
    "prologue": ["module load python", "export A=b"],
    "python": "/opt/my python",
    "local_dir": "$TMPDIR",
}


def script(tmp_path, backend, **job):
    settings = validate({"cluster": {"backend": backend, "job": job}}, SCHEMA)["cluster"]
    return job_script(settings, Place("ccal-x", tmp_path / "shared", tmp_path / "logs"))


def worker(tmp_path, python, *, nthreads, extra=""):
    shared = tmp_path / "shared"
    return (
        f"{python} -m distributed.cli.dask_worker tcp://<insert-scheduler-address-here>:8786 --name dummy-name "
        f"--nthreads 1 --memory-limit {extra} --nanny --death-timeout 60 --local-directory $TMPDIR "
        f"--resources subprocess_slots=1,dp3_threads={nthreads} --memory-limit 0 --dashboard-address 127.0.0.1:0 "
        f"--interface ib0 --protocol tls:// --tls-ca-file {shared}/tls-cert.pem --tls-cert {shared}/tls-cert.pem "
        f"--tls-key {shared}/tls-key.pem"
    )


QUIET = (
    "export DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL=2s DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL=5s "
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False MALLOC_TRIM_THRESHOLD_=67108864 MALLOC_MMAP_THRESHOLD_=67108864"
)


def test_slurm_script(tmp_path):
    directives = {"qos": "fast", "reservation": "mine", "constraint": "avx2", "extra_directives": ["--nice=5"]}
    assert script(tmp_path, "slurm", **JOB, **directives).split("\n") == [
        "#!/usr/bin/env bash",
        "",
        "#SBATCH -J ccal-x",
        f"#SBATCH -e {tmp_path}/logs/ccal-x-%J.err",
        f"#SBATCH -o {tmp_path}/logs/ccal-x-%J.out",
        "#SBATCH -p long",
        "#SBATCH -A radio",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --mem=61036M",
        "#SBATCH -t 01:30:00",
        "#SBATCH --no-requeue",
        "#SBATCH --qos=fast",
        "#SBATCH --reservation=mine",
        "#SBATCH --constraint=avx2",
        "#SBATCH --nice=5",
        QUIET,
        "module load python",
        "export A=b",
        worker(tmp_path, "'/opt/my python'", nthreads=8, extra="29.80GiB --nworkers 2"),
        "",
    ]


def test_pbs_script(tmp_path):
    assert script(tmp_path, "pbs", **JOB, extra_directives=["-m n"]).split("\n") == [
        "#!/usr/bin/env bash",
        "",
        "#PBS -N ccal-x",
        "#PBS -q long",
        "#PBS -A radio",
        "#PBS -l select=1:ncpus=16:mem=60GB",
        "#PBS -l walltime=01:30:00",
        f"#PBS -e {tmp_path}/logs/",
        f"#PBS -o {tmp_path}/logs/",
        "#PBS -r n",
        "#PBS -m n",
        QUIET,
        "module load python",
        "export A=b",
        worker(tmp_path, "'/opt/my python'", nthreads=8, extra="29.80GiB --nworkers 2"),
        "",
    ]


def test_sites_that_want_less_or_other_directives(tmp_path):
    text = script(tmp_path, "slurm", skip_directives=["--mem="])
    assert "--mem=" not in text
    assert f"{sys.executable} -m distributed.cli.dask_worker" in text
    assert "#PBS -l nodes=1:ppn=4" in script(tmp_path, "pbs", resource_spec="nodes=1:ppn=4")


def test_what_pbs_has_not_is_refused(tmp_path):
    with pytest.raises(ClusterError, match=r"cluster\.job\.qos: PBS has none"):
        script(tmp_path, "pbs", qos="fast")


def test_folder_that_a_job_script_cannot_name_is_refused(tmp_path):
    with pytest.raises(ClusterError, match="a job script cannot name"):
        script(tmp_path / "a b", "slurm")


def test_walltime():
    assert [walltime(minutes) for minutes in (0.5, 90, 60 * 48)] == ["00:00:30", "01:30:00", "48:00:00"]
