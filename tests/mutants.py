"""Does every test that is meant to catch a mistake catch it?

    python tests/mutants.py                  run all mutants of tests/mutants_table.py
    python tests/mutants.py --only untile    those with the word in their file or test
    python tests/mutants.py --jobs 2         two at a time, each in a copy of its own
    python tests/mutants.py --list           say what there is
    python tests/mutants.py --markdown       the same as a table

Each mutant changes one place of one file in a temporary copy of the source tree. A mutated
kernel is rebuilt there. The named test must fail by an assertion or error, not by a failed
build, and must pass before the change. The working tree is never touched.

A mutant may also loop or wait for ever. It may use ten times the processor time that its test
takes on the unchanged tree, and two minutes more; that does not depend on what else the machine
does. What merely waits is stopped after four times as long. Both have noticed, and are told apart
from a failing test.
"""

import argparse
import importlib.machinery
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pytest
import torchvision  # noqa: F401  imported once here, not in every test's process
from mutants_table import MUTANTS

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("kernels", "tiled_ref", "tests", "setup.py", "pyproject.toml", "MANIFEST.in",
          "README.md", "LICENSE", "run.py", "bench", ".ci")  # fmt: skip
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
LEAST = 120  # s of processor time that any test may use


def copy(tree):
    """The source tree without what is built from it, except the kernels."""
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, tree / name)


def child(tree, name, seconds, output):
    """Never returns: pytest on one test in this process, which ends with its status."""
    status = 70
    try:
        os.setsid()
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1), os.dup2(handle, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
        signal.alarm(4 * seconds)
        os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
        sys.dont_write_bytecode = True
        sys.path[0] = str(tree)  # instead of the folder of this file
        os.chdir(tree)
        status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", name])
    finally:
        sys.stdout.flush()
        os._exit(int(status))


def test(tree, name, seconds):
    """(pytest's exit status or minus a signal, processor time in s, last lines printed)."""
    output = tree.parent / "output.txt"
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child(tree, name, seconds, output)
    try:
        _, status, used = os.wait4(pid, 0)
    finally:
        try:  # what the test started and left behind, and the test itself after Ctrl-C
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    lines = output.read_text("utf-8", "replace").splitlines()[-15:]
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, "\n".join(lines)


def build(tree, kernel):
    """Compile one kernel of the copy in place; its exit status and output."""
    script = (
        "import sys, pathlib, Cython.Build as c; real = c.cythonize\n"
        f"name = 'tiled_ref._{kernel}'\n"
        "c.cythonize = lambda e, **k: real([x for x in e if x.name == name], **k)\n"
        "sys.argv = ['setup.py', 'build_ext', '--inplace']\n"
        "text = pathlib.Path('setup.py').read_text().replace('-O3', '-O1')  # builds sooner\n"
        "exec(compile(text, 'setup.py', 'exec'))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tree, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return result.returncode, "\n".join(result.stdout.splitlines()[-15:])


def kill(mutant, tree, seconds):
    """(noticed, how or what is wrong) of one mutant in the copy, which is left unchanged."""
    file, old, new, name = mutant
    path = tree / file
    source = path.read_text("utf-8")
    if source.count(old) != 1:
        return False, f"the old text occurs {source.count(old)} times in the file"
    path.write_text(source.replace(old, new), "utf-8")
    module, kept = None, None
    try:
        if file.endswith(".pyx"):
            module = tree / "tiled_ref" / f"_{path.stem}{SUFFIX}"
            kept = module.read_bytes()
            status, output = build(tree, path.stem)
            if status:
                return False, f"the mutant does not build:\n{output}"
        status, _, output = test(tree, name, seconds)
    finally:
        path.write_text(source, "utf-8")
        if kept is not None:
            module.unlink()
            module.write_bytes(kept)
    if status == 0:
        return False, "SURVIVED"
    if status in (-signal.SIGXCPU, -signal.SIGALRM):
        return True, f"stopped after {seconds} s"
    # Another signal: the mutant wrote where it should not, and crashed.
    return (True, "killed") if status == 1 or status < 0 else (False, f"status {status}:\n{output}")


def kill_all(name, mutants):
    """[(mutant, noticed, how)] of all mutants of one test, in a copy of their own."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy(tree)
        start = time.perf_counter()
        status, used, output = test(tree, name, 3600)
        wall = time.perf_counter() - start
        if status:
            return [(m, False, f"fails on the unchanged tree:\n{output}") for m in mutants], wall
        limit = LEAST + int(10 * used)
        return [(mutant, *kill(mutant, tree, limit)) for mutant in mutants], wall


def markdown(mutants):
    """A Markdown table: file, the change, the test that notices it."""

    def code(text):
        return "`` " + " ".join(text.split()).replace("|", "\\|") + " ``" if text.strip() else ""

    lines = ["| file | was | becomes | noticed by |", "|---|---|---|---|"]
    lines += [
        f"| {file} | {code(old)} | {code(new)} | {name} |" for file, old, new, name in mutants
    ]
    return "\n".join(lines)


def run_all(mutants, jobs):
    """Print what becomes of every mutant; how many were not noticed."""
    tests = {}
    for mutant in mutants:
        tests.setdefault(mutant[3], []).append(mutant)
    alive = 0
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=fork) as pool:
        for done in as_completed([pool.submit(kill_all, *item) for item in tests.items()]):
            found, wall = done.result()
            print(f"{found[0][0][3]}  ({wall:.1f} s)")
            for (file, _, new, _), noticed, how in found:
                alive += not noticed
                print(f"  {how}: {file}: {' '.join(new.split())[:70]}", flush=True)
    print(f"{len(mutants) - alive} of {len(mutants)} noticed, by {len(tests)} tests")
    return alive


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORD", help="in the file's or the test's name")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="at a time, default 1")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--markdown", action="store_true", help="print a table and stop")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if args.only is None or args.only in m[0] or args.only in m[3]]
    if args.markdown:
        print(markdown(chosen))
        return 0
    if args.list or not chosen:
        for file, old, new, name in chosen:
            print(f"{file}\n  - {old}\n  + {new}\n  {name}")
        print(f"{len(chosen)} mutants")
        return 0 if chosen else 2
    return 1 if run_all(chosen, args.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
