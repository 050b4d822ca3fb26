"""Which code made a package."""

import subprocess
from pathlib import Path


def git_commit() -> str:
    """The commit of the working tree, with `+changes` when it differs; `unknown` outside a repository."""
    try:
        here = Path(__file__).parent
        run = [
            subprocess.run(command, cwd=here, capture_output=True, encoding="utf-8", check=True).stdout.strip()
            for command in (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run[0] + ("+changes" if run[1] else "")
