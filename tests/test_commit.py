"""The commit that a run records is that of its code, or says that somebody edited the code."""

import subprocess

import pytest

from lib import commit


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with a committed file in each place."""
    root = tmp_path / "clone"
    for name in ("train.py", "lib/data.py", "config/demo.py", "tests/t.py", "results/r.py", "a.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    (root / ".gitignore").write_text("out/\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "first")
    monkeypatch.setattr(commit, "ROOT", root)
    return root


def git(root, *arguments):
    command = ["git", "-C", root, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def append(path):
    with open(path, "a") as file:
        file.write("an_edit = 1\n")


def test_code_as_committed(clone):
    assert commit.commit() == git(clone, "rev-parse", "--short", "HEAD")
    assert commit.code_changes() == ""


@pytest.mark.parametrize("name", ["train.py", "lib/data.py", "config/demo.py", "lib/new.py"])
def test_an_edit_is_recorded_and_kept(clone, name):
    head = commit.commit()
    append(clone / name)
    assert commit.commit() == f"{head}-dirty"
    assert "+an_edit = 1" in commit.code_changes()
    git(clone, "add", "-A")
    assert commit.commit() == f"{head}-dirty"
    assert "+an_edit = 1" in commit.code_changes()


@pytest.mark.parametrize("name", ["train.py", "lib/data.py"])
def test_a_file_that_is_gone_is_an_edit(clone, name):
    (clone / name).unlink()
    assert commit.commit().endswith("-dirty")
    assert f"-# {name}" in commit.code_changes()


@pytest.mark.parametrize("name", ["tests/t.py", "results/r.py", "tests/new.py", "a.md", "out/x.py"])
def test_what_no_run_depends_on_is_no_edit(clone, name):
    (clone / "out").mkdir()
    append(clone / name)
    assert not commit.commit().endswith("-dirty")
    assert commit.code_changes() == ""


def test_a_new_config_is_stored_and_no_edit(clone, tmp_path):
    places = (clone / "config/mine.py", clone / "mine é.py", tmp_path / "elsewhere.py")
    for path in places:
        append(path)
        assert not commit.commit(path).endswith("-dirty")
        assert "+an_edit = 1" in commit.code_changes(path)
        path.unlink()
    # at the top, without the command's word for it, it may be anything
    append(clone / "mine.py")
    assert commit.commit().endswith("-dirty")


def test_without_git_the_commit_is_unknown(clone, tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "ROOT", tmp_path)
    assert commit.commit() == "unknown"
    assert commit.code_changes() == ""
    monkeypatch.setattr(commit, "ROOT", clone)
    monkeypatch.setenv("PATH", "")
    assert commit.commit() == "unknown"


def test_another_repository_is_not_asked(clone, tmp_path, monkeypatch):
    head = commit.commit()
    # inside a hook of another repository
    other = tmp_path / "other"
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert commit.commit() == head
    # a copy without .git, inside another repository
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.setattr(commit, "ROOT", clone / "lib")
    assert commit.commit() == "unknown"
