"""Which code made a run: its commit, and how the code in this clone differs from it."""

import os
import subprocess
from pathlib import Path

from config import ROOT

CODE = ("*.py", ":!results", ":!tests")  # the files that decide what a run does


def git(*arguments):
    """The output of a git command in the clone, or None if there is no git or no clone."""
    command = ["git", "-C", str(ROOT), "-c", "core.fileMode=false", *arguments]
    # Inside a hook, variables such as GIT_DIR lead to another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, env=env)
    except OSError:
        return None
    # `git diff --no-index` ends with 1 if it finds a difference.
    if done.returncode not in (0, 1):
        return None
    return done.stdout.decode(errors="replace")


def commit(config_file=None):
    """The short hash of the code's commit, or "unknown"; "-dirty" follows if somebody edited code.

    A new config file is no edit: one in config/, or the one that the command names.
    """
    # A copy without .git may lie inside another repository.
    top = (git("rev-parse", "--show-toplevel") or "").strip()
    head = (git("rev-parse", "--short", "HEAD") or "").strip()
    if not head or Path(top).resolve() != ROOT.resolve():
        return "unknown"
    for path in new_files():
        if not path.is_relative_to(ROOT / "config") and not is_file(path, config_file):
            return f"{head}-dirty"
    edited = git("diff", "--name-only", "HEAD", "--", *CODE)
    return f"{head}-dirty" if edited else head


def new_files():
    """The .py files of the clone, outside results/ and tests/, that git does not know."""
    listed = git("ls-files", "-z", "--others", "--exclude-standard", "--", *CODE) or ""
    return [ROOT / name for name in listed.split("\0") if name]


def is_file(path, other):
    return other is not None and Path(other).resolve() == path.resolve()


def code_changes(config_file=None):
    """How the code differs from HEAD, as a diff. It also holds new files, such as a new config."""
    changes = git("diff", "--no-ext-diff", "HEAD", "--", *CODE)
    if changes is None:
        return ""
    added = new_files()
    # a config file may lie outside the clone
    if config_file and not Path(config_file).resolve().is_relative_to(ROOT):
        added.append(Path(config_file).resolve())
    for path in added:
        changes += git("diff", "--no-ext-diff", "--no-index", "--", os.devnull, str(path)) or ""
    return changes
