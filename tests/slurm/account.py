"""The account that submits jobs in tests: this one, or ``nobody`` when the tests run as root.

root may do what a user may not, so a run as root would prove little. ``nobody`` has a folder of its own, with a copy of
the workflow. It must be able to read Python and the installed packages: where it cannot (root's home is closed), they
are put into that folder as hard links.
"""

from __future__ import annotations

import compileall
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKFLOW = ("Snakefile", "workflow", "profiles", "slurm", "config")
USER = "nobody"


class Account:
    """An unprivileged account, with a home of its own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = pwd.getpwnam(USER) if os.getuid() == 0 else pwd.getpwuid(os.getuid())
        self.home = folder / "home"
        self.source = folder / "source"
        self.home.mkdir()
        shutil.copytree(ROOT / "src", self.source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        compileall.compile_dir(self.source, quiet=1)  # the account cannot write there, so each process would do it
        self.environment = {
            "HOME": str(self.home),
            "USER": self.user.pw_name,
            "LOGNAME": self.user.pw_name,
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "PYTHONPATH": str(self.source),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.own(self.home)
        self.python = Path(sys.executable)
        if not self._can_run(self.python):
            self.python = self._link_python()

    def own(self, path: Path) -> None:
        """Give a folder and all in it to the account."""
        if os.getuid() != 0:
            return
        for one in [path, *path.rglob("*")]:
            os.chown(one, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)

    def arguments(self) -> dict:
        """Give the arguments of subprocess that run a program as the account."""
        if os.getuid() != 0:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def make_workflow(self, folder: Path) -> Path:
        """Copy the workflow, as if the account had it checked out there."""
        for name in WORKFLOW:
            source, target = ROOT / name, folder / name
            if source.is_symlink():
                target.symlink_to(os.readlink(source))
            elif source.is_dir():
                shutil.copytree(source, target)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        return folder

    def _can_run(self, python: Path) -> bool:
        try:
            done = subprocess.run(
                [python, "-c", "import snakemake, dask_jobqueue, casacore"],
                cwd=self.home,
                env={"PATH": "/usr/bin:/bin", **self.environment},
                capture_output=True,
                check=False,
                **self.arguments(),
            )
        except PermissionError:
            return False
        return done.returncode == 0

    def _link_python(self) -> Path:
        """Make a virtual environment like this one, of hard links, where the account can read it."""
        base, venv = self.folder / "python", self.folder / "venv"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        # A virtual environment uses none of the packages that are installed beside the interpreter.
        _link_tree(Path(sys.base_prefix), base, "site-packages", "test")
        site = venv / "lib" / version
        site.mkdir(parents=True)
        _link_tree(Path(sys.prefix) / "lib" / version / "site-packages", site / "site-packages")
        (venv / "bin").mkdir()
        for script in (Path(sys.prefix) / "bin").iterdir():
            if not script.name.startswith("python"):
                os.symlink(os.path.realpath(script), venv / "bin" / script.name)
        (venv / "bin/python").symlink_to(base / "bin" / version)
        # DP3's own script is a program for the interpreter beside it.
        dp3 = venv / "bin/DP3.py"
        dp3.unlink(missing_ok=True)
        shutil.copy(Path(sys.prefix) / "bin/DP3.py", dp3)
        (venv / "pyvenv.cfg").write_text(f"home = {base / 'bin'}\ninclude-system-site-packages = false\n")
        # Its shared library may be looked for where the account cannot read.
        self.environment["LD_LIBRARY_PATH"] = str(base / "lib")
        python = venv / "bin/python"
        if not self._can_run(python):
            raise RuntimeError(f"{self.user.pw_name} cannot run {python}")
        return python


def _link_tree(source: Path, target: Path, *without: str) -> None:
    """Copy a tree as hard links, or really where the two lie on different file systems."""
    shutil.copytree(source, target, symlinks=True, copy_function=_link, ignore=shutil.ignore_patterns(*without))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
