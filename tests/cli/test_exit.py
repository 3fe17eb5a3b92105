"""The exit status says whose it is: 0 done, 2 the user's mistake, 1 ours or the machine's, 130 Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dml as package


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serch"], "Did you mean 'search'"),
        (["search"], "IMAGE"),
        (["search", "x.png", "--wher", "a=b"], "--where"),
        (["search", "x.png", "-k", "none"], "integer"),
        (["train"], "DATASET"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_command_that_cannot_be_read_is_the_users_mistake(dml, arguments, says, as_json):
    done = dml(*arguments, *(["--json"] if as_json and len(arguments) > 1 else []))
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert says.lower() in done.err.lower()
    if as_json and len(arguments) > 1:
        assert says.lower() in done.json["error"].lower()


def test_no_verb_shows_the_help(dml):
    done = dml()
    assert done.status == 2
    assert "search" in done.out + done.err


def test_the_version_is_the_packages(dml):
    assert dml("--version").out == f"dml {package.__version__}\n"


def test_completion_is_offered(dml):
    assert "--install-completion" in dml("--help").out


def test_a_picture_that_cannot_be_written_is_one_line_with_the_path(dml, store, query):
    done = dml("search", query, "--store", store, "--picture", "/dev/full/x.png")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "/dev/full" in done.err


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that root cannot write either")
def test_a_store_that_cannot_be_written_is_one_line_with_the_path(dml):
    done = dml("ingest", "glyphs:classes=4,per_class=2", "--store", "/sys/kernel/store", "--json")
    assert (done.status, done.err.count("Traceback")) == (1, 0)
    assert "/sys/kernel/store" in done.json["error"]
    assert done.err.splitlines()[-1].startswith("error: The system refused: ")


def test_an_unexpected_error_keeps_its_traceback_and_is_status_1(dml, tmp_path, monkeypatch):
    monkeypatch.setattr("dml.presets.names", lambda: {}[0])
    done = dml("presets", "--json")
    assert (done.status, done.json) == (1, {"error": "KeyError: 0"})
    assert done.err.startswith("Traceback")


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"], ["--version"]], ids=" ".join)
def test_a_help_text_is_an_answer_also_in_json(dml, words):
    done = dml(*words, "--json")
    assert done.status == 0
    assert done.json["help"] == dml(*words).out != ""


@pytest.mark.parametrize(
    "module",
    ["typer._click.core", "pyarrow.lib", pytest.param("torch._C", marks=pytest.mark.slow)],
)
def test_ctrl_c_while_libraries_are_imported_is_one_line_and_status_130(store, query, module):
    words = ["search", query, "--store", store, "--json"]
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "dml.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])},
    ) as run:
        assert any(line.endswith(f" {module}\n") for line in run.stderr)
        run.send_signal(signal.SIGINT)
        printed = [line for line in run.stderr.read().splitlines() if not line.startswith("import time:")]
        assert [line for line in printed if line != "dml search: at work"] == ["error: Interrupted."]
        assert json.loads(run.stdout.read()) == {"error": "Interrupted."}
        assert run.wait(60) == 130


@pytest.mark.parametrize(
    ("words", "never"),
    [
        (["--help"], {"pyarrow", "pydantic", "numpy"}),
        (["search", "no.png"], {"torch", "faiss"}),
        (["datasets"], {"torch", "prefect", "ray"}),
        pytest.param(
            ["ingest", "glyphs:classes=4,per_class=2", "--name", "d"],
            {"torch", "ray", "mlflow"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_verb_imports_nothing_it_does_not_need(tmp_path, words, never):
    code = "import sys\nfrom dml.cli.command import run\nrun()\n"
    code += f"print(sorted({never} & set(sys.modules)), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_log_is_the_same_when_prefect_is_imported():
    code = "import sys; sys.argv = ['dml', 'presets', '--json']\nfrom dml.cli.command import run\nrun()\n"
    code += "import logging, prefect\nlogging.getLogger('dml.x').info('a\\x1bb')"
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith(r" dml.x: a\x1bb")


@pytest.mark.slow
def test_a_verb_that_takes_long_gives_a_sign_of_life_and_can_be_interrupted():
    environment = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    code = "import sys, time; sys.argv = ['dml', 'presets']\nimport dml.presets, dml.cli\n"
    code += "dml.presets.names = lambda: time.sleep(600)\ndml.cli.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stderr.readline() == "dml presets: at work\n"
        assert re.fullmatch(r"dml presets: at work, \d+ s\n", run.stderr.readline())
        run.send_signal(signal.SIGINT)
        printed = run.stderr.read().splitlines()
        assert [line for line in printed if "at work" not in line] == ["error: Interrupted."]
        assert run.wait(60) == 130, "before it has slept its time"


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_closed_streams_end_no_verb(store, closed):
    command = f'"{sys.executable}" -m dml.cli datasets --store "{store}" {closed}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def test_a_reader_that_does_not_read_on_causes_no_traceback(store):
    command = f'"{sys.executable}" -m dml.cli datasets --store "{store}" | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert set(done.stderr.splitlines()) <= {"dml datasets: at work"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_json_on_a_full_disk_is_one_line(store):
    command = f'"{sys.executable}" -m dml.cli datasets --json --store "{store}" > /dev/full'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


ABORTS_AT_THE_END = """
import os
class Thread:
    def __del__(self):
        os.abort()  # as the destructor of a C++ thread that still runs
sys.modules["thread"] = Thread()
"""
ENDS_LATE = """
import atexit, threading, time
def end_late():
    while "dml.cli.command" not in sys.modules:
        time.sleep(0.01)
    atexit.register(print, "handler")
    time.sleep(2)
    print("thread")
threading.Thread(target=end_late).start()
"""


def program(before: str, *arguments: str, entry: str = "program") -> subprocess.CompletedProcess[str]:
    """`dml` in a process that first does something else; its output goes into a pipe."""
    code = f"import sys\n{before}\nsys.argv = ['dml', *{list(arguments)}]\n"
    code += f"from dml.cli import {entry} as entry\nentry()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_a_thread_that_aborts_when_the_process_ends_changes_no_status():
    done = program(ABORTS_AT_THE_END, "serch", "--json")
    assert done.returncode == 2
    assert "Did you mean 'search'" in json.loads(done.stdout)["error"]
    assert program(ABORTS_AT_THE_END, "serch", entry="main").returncode == -signal.SIGABRT, "it does abort"


def test_threads_and_exit_handlers_of_libraries_have_run_and_what_they_print_is_complete():
    done = program(ENDS_LATE, "presets")
    assert done.returncode == 0
    assert "cub200" in done.stdout
    assert done.stdout.endswith("thread\nhandler\n")


def test_an_exception_of_this_package_is_status_1_with_its_traceback():
    done = program("import dml.cli; dml.cli.main = lambda: 1 / 0", "presets")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
