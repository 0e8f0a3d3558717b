"""Runs a command with Slurm's daemons: installs the packages when it may, else goes without the tests that need them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = ("slurm-wlm", "slurmdbd", "mariadb-server")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sbatch", "mariadbd")


def present() -> bool:
    """Whether every program is there (daemons are often outside a user's PATH)."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return all(shutil.which(program, path=path) for program in PROGRAMS)


def install() -> bool:
    """Install the packages when this is a machine where we may; whether that worked."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.stderr.write(done.stderr[-2000:])
            return False
    return present()


def main() -> int:
    """Install if needed, then run the rest of the command line."""
    environment = dict(os.environ)
    if environment.get("ORCH_SKIP_SLURM") != "1" and not present() and not install():
        sys.stderr.write(
            "Slurm is not installed and cannot be installed from here: the tests on a real cluster are skipped.\n"
            f"hint: as root, `apt-get install {' '.join(PACKAGES)}`\n"
        )
        environment["ORCH_SKIP_SLURM"] = "1"
    return subprocess.run(sys.argv[1:], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
