"""What a user is told while SLURM grants nothing, and when it never will."""

import time

import pytest
from slurm_run import with_job


def test_pending_jobs_are_named_with_slurms_reason(make_run):
    section = with_job(extra_directives=["--begin=now+2hours"]) | {"start_timeout_s": 10}
    run = make_run(cluster=section).start()
    assert run.process.wait(180) != 0
    lines = run.text().splitlines()
    waiting = "SLURM: 2 job(s) pending (BeginTime)"
    assert any(line.startswith(f"chunkcal: {waiting}") for line in lines), run.text()
    assert waiting in run.log()
    assert waiting in (run.folder / "logs/start_cluster.log").read_text()
    end = next(line for line in lines if "no worker came up within cluster.start_timeout_s = 10 s" in line)
    assert waiting in end
    run.must_have_cleaned_up()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queue": "nosuch"}, "invalid partition"),
        ({"memory_gb": 4000}, "Requested node configuration is not available"),
        ({"n_cores": 64}, "Requested node configuration is not available"),
        ({"constraint": "gold"}, "Invalid feature"),
    ],
)
def test_request_that_slurm_would_refuse_is_refused_before_anything_runs(make_run, changes, words):
    run = make_run(cluster=with_job(**changes)).start()
    assert run.process.wait(180) != 0
    line = next(line for line in run.text().splitlines() if line.startswith("chunkcal: SLURM would refuse"))
    assert words in line
    assert "Traceback" not in run.text()
    assert not run.results.exists()
    run.must_have_cleaned_up()


def test_network_interface_that_is_not_there_is_refused_before_anything_runs(make_run):
    run = make_run(cluster=with_job(interface="ib9")).start()
    assert run.process.wait(180) != 0
    (line,) = [line for line in run.text().splitlines() if line.startswith("chunkcal: cluster.job.interface: ")]
    assert "'ib9' is not a valid network interface. Valid network interfaces are: [" in line
    assert "Traceback" not in run.text()
    assert not run.results.exists()


@pytest.mark.parametrize(
    ("python", "words"),
    [("/nowhere/python", "/nowhere/python: No such file"), ("/usr/bin/python3", "No module named")],
)
def test_workers_that_die_at_start_are_reported_with_their_own_words(make_run, python, words):
    run = make_run(cluster=with_job(python=python)).start()
    began = time.monotonic()
    assert run.process.wait(75) != 0
    assert time.monotonic() - began < 70  # the minute, and snakemake's own start and end
    assert "ended before its worker came up; log: " in run.text()
    assert words in run.text()
    run.must_have_cleaned_up()


def test_profile_can_be_tried_where_there_is_no_slurm(make_run):
    run = make_run()
    tools = run.folder / "bin"
    tools.mkdir()
    for tool in ("bash", "env", "id", "sh", "uname", "which"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    done = run.call(run.python, "-m", "snakemake", "--profile", "slurm", "--dry-run", PATH=str(tools))
    assert done.returncode == 0, done.stdout
    assert "preprocess_chunk" in done.stdout or "plan_chunks" in done.stdout
    assert not (run.folder / "results").exists()
    words = ("--executor", "local", "--config", "cluster={backend: slurm}")
    done = run.call(run.python, "-m", "snakemake", "--profile", "slurm", *words, PATH=str(tools))
    assert done.returncode != 0
    assert "chunkcal: cluster.backend slurm: there is no sbatch on PATH" in done.stdout


def test_job_script_is_the_one_that_is_submitted(make_run):
    run = make_run()
    section = "cluster={job: {queue: urgent, n_cores: 2, n_processes: 2, memory_gb: 1}}"
    words = ("--profile", "slurm", "--config", section)
    done = run.call(run.python, "-m", "chunkcal.cli", "cluster", "job-script", *words)
    assert done.returncode == 0, done.stdout
    assert "#SBATCH -p urgent" in done.stdout
    (run.folder / "job.sh").write_text(done.stdout)
    asked = run.call("sbatch", "--test-only", "job.sh")
    assert asked.returncode == 0, asked.stdout
