"""Which process of several prints and writes."""

from __future__ import annotations

import pytest

from ace_lora.processes import is_first_process, outside_launcher, process_number, say

NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


@pytest.mark.parametrize(
    ("environment", "first", "number"),
    [
        ({}, True, 0),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True, 0),
        ({"LOCAL_RANK": "1"}, False, 1),  # as Lightning starts its second process
        ({"RANK": "5", "LOCAL_RANK": "1", "NODE_RANK": "2"}, False, 5),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False, 0),
        ({"RANK": ""}, True, 0),
    ],
)
def test_only_the_first_process_speaks(monkeypatch, capsys, environment, first, number):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (is_first_process(), process_number()) == (first, number)
    say("hello")
    assert capsys.readouterr().out == ("hello\n" if first else "")


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, None),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, None),  # Lightning's own second process
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}, "torchrun"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}, "SLURM"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_NTASKS": "1"}, None),
    ],
)
def test_launchers_that_start_all_processes_at_once_are_known(monkeypatch, environment, launcher):
    for name in (*NAMES, "TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert outside_launcher() == launcher
