"""The program as a process: its streams decide nothing, a signal is one line, memory a sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sources import ROOT
from toys import toy_category, write_category

OPTIONS = ["--image-size", "32", "--tile-size", "16", "--weights", "random", "--device", "cpu"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TILED_REF_THREADS": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set whose name would clear a terminal and is no ASCII."""
    root = tmp_path_factory.mktemp("main") / "pä\x1b[2Jrts"
    write_category(root, toy_category(8, 3, 3, side=32), "{}", "train")
    return root


def shell(line, *argv, **env):
    """A finished bash: $@ in line is the command of the program."""
    command = ["bash", "-c", line, "bash", sys.executable, str(ROOT / "run.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, env={**ENV, **env}, timeout=300)


def run(line, folder, name, *argv, **env):
    """(status, files below --out, the bash) of a small run."""
    out = folder.parent / name
    fixed = ["--dataset", "folder", "--root", folder, "--out", out, "--setup", "ENS4", *OPTIONS]
    done = shell(line, *fixed, *argv, **env)
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    return done.returncode, files, done


def test_streams_decide_neither_files_nor_status(folder):
    status, files, plain = run('exec "$@"', folder, "plain")
    assert status == 0 and "results.csv" in files and b"Traceback" not in plain.stderr
    for text in plain.stdout, plain.stderr:
        assert b"\x1b" not in text and rb"p\xe4\x1b[2Jrts".replace(rb"\xe4", "ä".encode()) in text
    metrics = next((folder.parent / "plain").rglob("metrics.json")).read_text().splitlines()
    numbers = [line for line in metrics if "_auroc" in line or "_aupro" in line]
    for name, line, env in (
        ("stderr closed", 'exec "$@" 2>&-', {}),
        ("all closed", 'exec "$@" <&- >&- 2>&-', {}),
        ("full", 'exec "$@" >/dev/full 2>/dev/full', {}),
        ("broken pipe", '"$@" 2>&1 | true; exit ${PIPESTATUS[0]}', {"PYTHONUNBUFFERED": "1"}),
        ("ascii", 'exec "$@"', {"PYTHONIOENCODING": "ascii:strict"}),
        ("ebcdic", 'exec "$@"', {"PYTHONIOENCODING": "cp037:strict"}),
    ):
        found, written, done = run(line, folder, name, **env)
        assert (found, written) == (0, files), (name, done.stderr)
        text = next((folder.parent / name).rglob("metrics.json")).read_text()
        assert all(number in text for number in numbers), name
        assert done.stderr == b"" or name in ("ascii", "ebcdic")
        assert done.stdout == b"" or name in ("ascii", "ebcdic", "stderr closed")
        assert name != "ascii" or b"p\\xe4\\x1b[2Jrts" in done.stdout


def test_a_name_that_the_file_system_encoding_lacks_is_one_sentence(folder):
    ascii_names = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, files, done = run('exec "$@"', folder, "names", "--quiet", **ascii_names)
    error = [line for line in done.stderr.decode().splitlines() if "error" in line]
    assert status == 2 and "results.csv" not in files and b"Traceback" not in done.stderr
    assert len(error) == 1 and error[0].startswith("tiled-ref: error: a file's name: 'ascii' codec")
    assert error[0].endswith("; set PYTHONUTF8=1")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [["--list"], ["--help-all"]])
def test_a_pipe_that_closes_ends_the_program_quietly(argv, unbuffered):
    line = '"$@" | head -1; exit ${PIPESTATUS[0]}'
    done = shell(line, *argv, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr, done.stdout.count(b"\n")) == (0, b"", 1)


def test_an_error_ends_with_its_status_however_the_streams_are():
    for line in 'exec "$@" 2>&-', 'exec "$@" >&-', 'exec "$@" 2>/dev/full':
        done = shell(line, "--setup", "ENS5")
        assert done.returncode == 2 and done.stdout == b""
        assert done.stderr.count(b"\n") == (">&-" in line and "2>" not in line)


def start(*argv):
    command = [sys.executable, str(ROOT / "run.py"), *map(str, argv)]

    def heed():  # a shell ignores SIGINT for what it runs in the background, the tests perhaps
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(command, stdout=-1, stderr=-1, env=ENV, preexec_fn=heed)


def wait_until_caught(process):
    """Until the program, not the interpreter that starts, catches SIGTERM; Linux tells."""
    path, until = Path(f"/proc/{process.pid}/status"), time.monotonic() + 30
    while path.exists() and time.monotonic() < until:
        caught = path.read_text().partition("SigCgt:")[2].split()[0]
        if int(caught, 16) >> signal.SIGTERM - 1 & 1:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("number, word", [(signal.SIGINT, "interrupted"), (15, "terminated")])
def test_a_signal_during_the_imports_is_one_line(number, word):
    for seconds in (0, 0.5, 1.2):  # the imports take longer
        process = start("--list")
        wait_until_caught(process)
        time.sleep(seconds)
        for _ in range(2):
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (128 + number, b"")
        assert err.decode() == f"tiled-ref: {word}\n"


@pytest.mark.parametrize("number, word", [(signal.SIGINT, "interrupted"), (15, "terminated")])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_during_a_run_is_one_line_and_keeps_what_is_there(folder, number, word, times):
    out = folder.parent / f"signal {number} {times}"
    fixed = ["--dataset", "folder", "--root", folder, "--out", out, "--setup", "ENS4", *OPTIONS]
    process = start(*fixed, "--arch", "reverse_distillation", "--steps", 2000)
    while b"decode" not in (line := process.stderr.readline()):
        assert line
    time.sleep(0.5)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.001)
    _, err = process.communicate(timeout=120)
    lines = [line for line in err.decode().splitlines() if line.startswith("tiled-ref")]
    assert process.returncode == 128 + number and b"Traceback" not in err
    (line,) = lines
    assert line.startswith(f"tiled-ref: {word}")
    assert times == 2 or line.endswith("; the same command with --resume continues")
    assert (out / "folder").is_dir()


@pytest.mark.parametrize("kib", [400_000, 3_000_000, 3_700_000])
def test_a_limit_on_memory_is_one_sentence_or_a_run(folder, kib):
    """Too small for the libraries, which abort, for their modules, for the images."""
    argv = ["--image-size", 512, "--tile-size", 256, "--quiet"]
    line = f'ulimit -v {kib}; exec "$@"'
    status, _, done = run(line, folder, f"limit {kib}", *argv, OMP_NUM_THREADS="2")
    text = done.stderr.decode()
    assert status == 2 or status == 0 and kib > 3_000_000, text
    errors = [line for line in text.splitlines() if "warning" not in line and "random" not in line]
    assert "Traceback" not in text and len(errors) == (status == 2), text
    assert status == 0 or errors[0].startswith("tiled-ref: error: ") and "memory" in errors[0]


@pytest.mark.parametrize("fails", ["raise SystemError", "os.abort()", "while True: pass"])
def test_imports_that_fail_in_any_way_within_a_limit_are_its_sentence(tmp_path, fails):
    """A module in place of a library's does what the interpreter does without a byte left."""
    (tmp_path / "torch.py").write_text(f"import os\n{fails}\n")
    script = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from tiled_ref import __main__\n"
        "__main__.CHILD_SECONDS = 0.2\n"
        "sys.exit(__main__.main([]))\n"
    )
    line = f'ulimit -v 4000000; exec "{sys.executable}" -c "$0"'
    done = subprocess.run(["bash", "-c", line, script], capture_output=True, timeout=60)
    words = b"tiled-ref: error: out of memory while loading libraries (Cannot allocate memory); "
    assert done.returncode == 2 and done.stderr == words + b"raise the limit (ulimit -v)\n"


@pytest.mark.parametrize("module", ["tiled_ref", "tiled_ref.golden"])
def test_a_package_is_a_program(module):
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith(b"usage: ")
