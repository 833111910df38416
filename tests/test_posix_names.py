"""No name that only POSIX systems have is used where Windows would come along: every file of the tree, parsed."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
NAMES = {
    "os": """
        chown fchmod fork forkpty getegid geteuid getgid getgroups getpgid getpgrp getpriority getuid killpg lchown
        mkfifo mknod nice openpty sched_getaffinity setgid setpgid setpriority setsid setuid statvfs uname wait wait3
        wait4 waitid WEXITSTATUS WIFEXITED WIFSIGNALED WNOHANG WTERMSIG O_NONBLOCK""",
    "signal": """
        SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGXCPU alarm
        pthread_kill setitimer""",
}
KEYWORDS = {"pass_fds", "preexec_fn"}
# Guards: a condition around it, an import that may fail, a function that left before, a test that is skipped there.
CONDITIONS = (ast.If, ast.IfExp, ast.BoolOp, ast.Try)
MARKS = ("skipif", "POSIX_ONLY", "LINUX_ONLY")


def names_of(module: str | None) -> set[str]:
    return set(NAMES.get(module or "", "").split())


def posix_name(node: ast.AST) -> str | None:
    """The name, when this node uses one that Windows lacks."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}" if node.attr in names_of(node.value.id) else None
    if isinstance(node, ast.Import):
        return next((alias.name for alias in node.names if alias.name in MODULES), None)
    if isinstance(node, ast.ImportFrom):
        imported = {alias.name for alias in node.names}
        wrong = {node.module} & MODULES or imported & names_of(node.module)
        return ", ".join(sorted(str(name) for name in wrong)) or None
    if isinstance(node, ast.keyword):
        return node.arg if node.arg in KEYWORDS else None
    return None


def leaves_early(function: ast.AST, line: int) -> bool:
    """Whether the function may have ended above: `if os.name != "posix": return`, `pytest.importorskip(…)`."""
    for node in ast.walk(function):
        if getattr(node, "lineno", line) >= line:
            continue
        if isinstance(node, ast.If) and isinstance(node.body[-1], (ast.Return, ast.Raise, ast.Continue)):
            return True
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.importorskip", "pytest.skip"):
            return True
    return False


def unguarded(source: str) -> list[str]:
    """`line: name` of every POSIX name that Windows would come to."""
    tree = ast.parse(source)
    if "POSIX only" in (ast.get_docstring(tree) or "") or "pytestmark" in source.split("\ndef ")[0]:
        return []
    found = []

    def visit(node: ast.AST, above: list[ast.AST]) -> None:
        name = posix_name(node)
        functions = [each for each in above if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
        marks = " ".join(ast.unparse(mark) for function in functions for mark in function.decorator_list)
        guarded = any(isinstance(each, CONDITIONS) for each in above) or any(mark in marks for mark in MARKS)
        # `POSIX_FILES = {...: lambda: os.mkfifo(...)}`: what the name says is for POSIX.
        guarded |= any(
            isinstance(each, ast.AnnAssign) and ast.unparse(each.target).startswith("POSIX") for each in above
        )
        line = getattr(node, "lineno", 0)
        if name and not guarded and not any(leaves_early(function, line) for function in functions):
            found.append(f"{line}: {name}")
        for child in ast.iter_child_nodes(node):
            # A decorator's arguments are computed when the file is read, whatever the mark says.
            visit(child, above if is_decorator(node, child) else [*above, node])

    visit(tree, [])
    return found


def is_decorator(function: ast.AST, child: ast.AST) -> bool:
    return isinstance(function, ast.FunctionDef) and child in function.decorator_list


def python_files() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return listed.stdout.split()
    return [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if ".venv" not in path.parts]


def test_no_file_uses_what_windows_has_not():
    found = {name: unguarded((ROOT / name).read_text(encoding="utf-8")) for name in python_files()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import signal\nX = signal.SIGKILL", ["2: signal.SIGKILL"]),
        ("import resource", ["1: resource"]),
        ("from signal import SIGHUP", ["1: SIGHUP"]),
        ("def f():\n    import fcntl", ["2: fcntl"]),
        ("run(a, preexec_fn=f)", ["1: preexec_fn"]),
        ("@mark.parametrize('n', [signal.SIGKILL])\n@POSIX_ONLY\ndef test(n): pass", ["1: signal.SIGKILL"]),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", []),
        ("if os.name == 'posix':\n    import fcntl", []),
        ("bad = os.name == 'nt' or os.geteuid() == 0", []),
        ("def f():\n    if os.name != 'posix':\n        return\n    os.killpg(1, 9)", []),
        ("@POSIX_ONLY\ndef test():\n    os.mkfifo('x')", []),
        ("def test():\n    resource = pytest.importorskip('resource')\n    os.wait()", []),
    ],
)
def test_what_counts_as_guarded(source, found):
    assert unguarded(source) == found
