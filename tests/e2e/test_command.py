"""What the `pose` command does before any of its sub-commands."""

import os

import pytest

from pose import main


@pytest.mark.parametrize(("given", "then"), [(None, "10000"), ("7", "7")])
def test_pytorch_threads_spin_briefly_unless_the_user_says_how_long(
    monkeypatch: pytest.MonkeyPatch, given: str | None, then: str
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "")  # so that it is put back
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    else:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    assert main(["info", "--json"]) == 0
    assert os.environ["GOMP_SPINCOUNT"] == then
