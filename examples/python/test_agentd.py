# SPDX-License-Identifier: MIT
"""The Python package, with whatever libagentd the loader finds."""

import asyncio
import concurrent.futures
import copy
import gc
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

import agentd

SESSION = "3fa9c1d2-0b1c-4c5e-9f0a-7d6e5f4a3b2c"


@pytest.fixture(scope="module")
def runner():
    with agentd.Runner(agentd.Policy.none()) as made:
        yield made


@pytest.fixture(scope="module")
def ctx():
    return agentd.Context(
        policy=agentd.Policy.none(), workdir="/", backend="host", env={"GREETING": "hello", "HOME": "/"}
    )


def rss():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_result(runner, ctx):
    result = runner.run('echo "$GREETING"; echo oops >&2; exit 3', context=ctx)
    assert (result.status, result.cause, result.exit_code) == ("error", "exited", 3)
    assert (result.stdout, result.stderr) == (b"hello\n", b"oops\n")
    assert not result.ok and result.backend == "host"
    assert result.signal is None and result.document["signal"] is None
    for member in ("status", "cause", "exit_code", "backend"):
        assert result.document[member] == getattr(result, member)
    killed = runner.run("kill -USR1 $$", context=ctx)
    assert (killed.cause, killed.exit_code, killed.signal) == ("signaled", None, 10)
    assert (killed.document["exit_code"], killed.document["signal"]) == (None, 10)


def test_argv_is_not_parsed_by_a_shell(runner, ctx):
    result = runner.run(["/bin/echo", "$HOME; a  b"], context=ctx)
    assert result.ok and result.stdout == b"$HOME; a  b\n"


def test_timeout(runner, ctx):
    begin = time.monotonic()
    result = runner.run("sleep 60", timeout=0.2, context=ctx)
    assert (result.status, result.cause) == ("timeout", "timeout")
    assert time.monotonic() - begin < 30


def test_errors_have_code_and_pointer():
    with pytest.raises(agentd.AgentdError) as caught:
        agentd.Policy({"limits": {"mem_bytes": "much"}})
    assert caught.value.code == -1
    assert caught.value.pointer == "/limits/mem_bytes"
    assert str(caught.value)
    agentd.Policy({"limits": {"mem_bytes": 1 << 30}})


def test_what_cannot_start_raises(runner):
    none = agentd.Policy.none()
    result = runner.run(["/nonexistent"], context=agentd.Context(policy=none, workdir="/", backend="host"))
    assert result.cause == "spawn" and "/nonexistent" in result.error
    with pytest.raises(agentd.AgentdError) as caught:
        runner.run("true", context=agentd.Context(policy=none, workdir="/", backend="paper"))
    assert caught.value.code == -7 and "paper" in str(caught.value)


@pytest.mark.parametrize("options, error", [
    ({"timeout": 0}, ValueError),
    ({"timeout": -1}, ValueError),
    ({"grace": 0}, ValueError),
    ({"stdin": "text"}, TypeError),
    ({"stdin": 5}, TypeError),
    ({"limits": {"mem_bytes": 0}}, ValueError),
    ({"limits": {"pids_max": 1 << 32}}, ValueError),
    ({"limits": {"mem_bytes": "much"}}, ValueError),
    ({"limits": {"memory": 1}}, TypeError),
    ({"limits": {"size": 1}}, TypeError),
    ({"priority": 1}, TypeError),
])
def test_bad_option(runner, ctx, options, error):
    with pytest.raises(error) as caught:
        runner.run("true", context=ctx, **options)
    name = list(options.get("limits", options))[0]
    assert name in str(caught.value)
    assert not agentd._alive


@pytest.mark.parametrize("seconds, ms", [
    (1e-9, 1), (0.25, 250), (1e6, 10**9), (1e30, 2**64 - 2), (math.inf, 2**64 - 2),
])
def test_timeouts_do_not_wrap_around(runner, ctx, seconds, ms):
    limits = runner.explain("true", context=ctx, timeout=seconds)["limits"]
    assert limits["timeout_ms"] == ms


def test_grace_does_not_wrap_around(ctx):
    with agentd.Runner(agentd.Policy.none()) as runner:
        for grace in (2**32 / 1000, math.inf):
            execution = runner.start("exec sleep 60", context=ctx, grace=grace)
            assert execution._options.raw.grace_ms == 2**32 - 1
            execution.kill()
            assert execution.wait(30).cause == "canceled"


def test_bad_grace_of_close(ctx):
    runner = agentd.Runner(agentd.Policy.none())
    for grace, error in ((-1, ValueError), (math.nan, ValueError), ("2", TypeError), (None, TypeError)):
        with pytest.raises(error):
            runner.close(grace=grace)
    # It is as it was.
    assert runner.run("echo here", context=ctx).stdout == b"here\n"
    runner.close(grace=0)


def test_bad_runner_option():
    for members in ({"speed": 1}, {"event_base": 1}, {"reserved0": 1}):
        with pytest.raises(TypeError):
            agentd.Runner(agentd.Policy.none(), **members)
    with pytest.raises(ValueError):
        agentd.Runner(agentd.Policy.none(), max_running=-1)


def test_limits(runner, ctx):
    result = runner.run("head -c 5000 /dev/zero", context=ctx, limits={"output_bytes": 1000})
    assert result.ok and len(result.stdout) == 1000
    assert result.document["metrics"]["dropped_bytes"] == 4000
    assert result.truncated and result.limit == "output_bytes" and result.error is None


def test_stdin(runner, ctx):
    for data in (b"", b"a line\n", bytes(range(256)) * 4096):
        assert runner.run("cat", context=ctx, stdin=data).stdout == data
    for data in (bytearray(b"an array\n"), memoryview(b"a view\n")):
        assert runner.run("cat", context=ctx, stdin=data).stdout == bytes(data)
    # Nobody reads all of it.
    assert runner.run("head -c 3", context=ctx, stdin=b"x" * (4 << 20)).stdout == b"xxx"
    assert runner.run("cat", context=ctx).stdout == b""


def test_open_stdin(runner, ctx):
    execution = runner.start(
        "while read -r line; do echo got $line; done; echo end", context=ctx, stream=True,
        stdin=subprocess.PIPE,
    )
    pieces = iter(execution)
    for word in (b"one", b"two"):
        execution.write(word + b"\n")
        assert next(pieces) == (agentd.STDOUT, b"got " + word + b"\n")
    execution.write(b"")
    execution.write(memoryview(b"thr"))
    execution.write(bytearray(b"ee\n"))
    execution.close_stdin()
    execution.close_stdin()
    with pytest.raises(agentd.AgentdError) as caught:
        execution.write(b"more")
    assert caught.value.code == -3
    assert b"".join(data for _, data in pieces) == b"got three\nend\n"
    assert execution.wait(30).ok
    with pytest.raises(agentd.AgentdError) as caught:
        execution.write(b"more")
    assert caught.value.code == -3


def test_open_stdin_that_waits(runner, ctx):
    # More than a pipe takes: it is all taken when write() returns, in order.
    data = bytes(range(256)) * 16384
    execution = runner.start("sleep 0.3; cat", context=ctx, stdin=subprocess.PIPE)
    for start in range(0, len(data), 1 << 20):
        execution.write(data[start : start + (1 << 20)])
    execution.close_stdin()
    assert execution.wait(30).stdout == data

    async def main():
        execution = runner.start("cat", context=ctx, stdin=subprocess.PIPE)
        await asyncio.gather(*(execution.write_async(b"x" * 300000) for _ in range(4)))
        execution.close_stdin()
        return await execution.wait_async()

    assert asyncio.run(main()).stdout == b"x" * 1200000


def test_open_stdin_that_nobody_reads(runner, ctx):
    execution = runner.start("exec <&-; echo closed; sleep 60", context=ctx, stream=True,
                             stdin=subprocess.PIPE)
    next(iter(execution))
    with pytest.raises(agentd.AgentdError) as caught:
        for _ in range(100):
            execution.write(b"x" * 65536)
    assert caught.value.code == -3
    execution.kill()
    # It ends while somebody waits, or its runner does.
    execution = runner.start("sleep 60", context=ctx, stdin=subprocess.PIPE)
    threading.Timer(0.2, execution.kill).start()
    with pytest.raises(agentd.AgentdError) as caught:
        execution.write(b"x" * (4 << 20))
    assert caught.value.code == -3 and execution.wait(30).cause == "canceled"
    with agentd.Runner(agentd.Policy.none()) as other:
        execution = other.start("sleep 60", context=ctx, stdin=subprocess.PIPE)
        threading.Timer(0.2, other.close, [0]).start()
        with pytest.raises(agentd.AgentdError):
            execution.write(b"x" * (4 << 20))
    # Only where it is open.
    for stdin in (None, b"all of it"):
        execution = runner.start("sleep 0.2", context=ctx, stdin=stdin)
        with pytest.raises(agentd.AgentdError) as caught:
            execution.write(b"more")
        assert caught.value.code == -3
        with pytest.raises(TypeError):
            execution.write("text")
        assert execution.wait(30).ok


def test_writing_in_a_callback(runner, ctx):
    def on_output(stream, data):
        if data == b"name?\n":
            execution.write(b"x" * (1 << 20) + b"\n")
            execution.close_stdin()
        else:
            seen.append(data)

    seen = []
    execution = runner.start("sleep 0.1; echo name?; read -r name; echo ${#name}", context=ctx,
                             on_output=on_output, stdin=subprocess.PIPE)
    assert execution.wait(30).ok and seen == [b"1048576\n"]


def test_writing_in_the_log(ctx):
    def log(record):
        if "spawned" in record.message:
            execution.write(b"one\n")
            execution.write(b"two\n")
            execution.close_stdin()

    with agentd.Runner(agentd.Policy.none(), log=log) as runner:
        execution = runner.start("cat", context=ctx, stdin=subprocess.PIPE)
        assert execution.wait(30).stdout == b"one\ntwo\n"


def test_output_to_files(runner, ctx, tmp_path):
    with open(tmp_path / "out", "wb") as out:
        execution = runner.start("sleep 0.2; echo a; echo b >&2", context=ctx, stdout=out)
    result = execution.wait(30)
    assert (result.stdout, result.stderr) == (b"", b"b\n")
    assert (tmp_path / "out").read_bytes() == b"a\n"
    # Both to one.
    with open(tmp_path / "both", "wb") as both:
        result = runner.run("for i in 1 2 3; do echo $i; echo $i >&2; done", context=ctx,
                            stdout=both, stderr=both.fileno())
    assert result.ok and (result.stdout, result.stderr) == (b"", b"")
    text = (tmp_path / "both").read_bytes()
    assert sorted(text.split()) == [b"1", b"1", b"2", b"2", b"3", b"3"]
    result = runner.run("echo a; echo b >&2", context=ctx, stdout=subprocess.DEVNULL)
    assert (result.stdout, result.stderr) == (b"", b"b\n")
    seen = []
    with open(tmp_path / "err", "wb") as err:
        runner.run("echo a; echo b >&2", context=ctx, stderr=err, on_output=lambda *one: seen.append(one))
    assert seen == [(agentd.STDOUT, b"a\n")] and (tmp_path / "err").read_bytes() == b"b\n"
    with open(tmp_path / "err", "rb") as err, pytest.raises(agentd.AgentdError) as caught:
        runner.run("true", context=ctx, stderr=err)
    assert caught.value.code == -1
    with pytest.raises(OSError):
        runner.run("true", context=ctx, stdout=1 << 20)
    with pytest.raises(AttributeError):
        runner.run("true", context=ctx, stdout="a path")


def test_output_to_a_full_pipe_waits(runner, ctx):
    read_end, write_end = os.pipe()
    execution = runner.start("head -c 1000000 /dev/zero", context=ctx, stdout=write_end)
    os.close(write_end)
    with pytest.raises(concurrent.futures.TimeoutError):
        execution.wait(0.3)
    with open(read_end, "rb") as pipe:
        assert len(pipe.read()) == 1000000
    assert execution.wait(30).ok


def test_what_cannot_start_keeps_nothing_open(runner):
    options = {"policy": agentd.Policy.none(), "workdir": "/"}
    # The control is one that can.
    for backend, keep, error in (("host", None, None), ("paper", None, -7), ("paper", (10, 10), -7)):
        context = agentd.Context(backend=backend, **options)
        ours, theirs = os.pipe()
        execution = runner.start(["/bin/true"], context=context, keep=keep, stdout=theirs)
        os.close(theirs)
        if error is None:
            assert execution.wait(30).ok
        else:
            with pytest.raises(agentd.AgentdError) as caught:
                execution.wait(30)
            assert caught.value.code == error
        os.set_blocking(ours, False)
        assert os.read(ours, 10) == b""
        os.close(ours)
        assert execution._buffer is None


def test_head_and_tail_are_kept(runner, ctx):
    script = "seq 1 100000; echo few >&2"
    whole = runner.run(script, context=ctx)
    assert (whole.stdout_omitted, whole.stderr_omitted) == (0, 0)
    result = runner.run(script, context=ctx, keep=(100, 50))
    assert result.stdout == whole.stdout[:100] + whole.stdout[-50:]
    assert result.stdout_omitted == len(whole.stdout) - 150
    assert (result.stderr, result.stderr_omitted) == (b"few\n", 0)
    assert result.ok and not result.truncated
    assert runner.run(script, context=ctx, keep=(0, 0)).stdout == b""
    for keep in ((1,), (1, -1), ("1", 1), (1 << 63, 1 << 63)):
        with pytest.raises(ValueError):
            runner.run("true", context=ctx, keep=keep)
    with pytest.raises(ValueError):
        runner.start("true", context=ctx, keep=(1, 1), stream=True)


def test_kill_on_output(runner, ctx):
    limits = {"output_bytes": 1000}
    result = runner.run("yes", context=ctx, limits=limits, kill_on_output=True)
    assert (result.status, result.cause, len(result.stdout)) == ("killed", "output", 1000)


def test_merged_output_is_in_order(runner, ctx):
    result = runner.run("echo a; echo b >&2; echo c", context=ctx, merge_stderr=True)
    assert (result.stdout, result.stderr) == (b"a\nb\nc\n", b"")


def test_grace(runner, ctx):
    execution = runner.start(
        "trap '' TERM; echo ready; sleep 60; :", context=ctx, grace=2.5, stream=True
    )
    assert next(iter(execution)) == (agentd.STDOUT, b"ready\n")
    begin = time.monotonic()
    execution.cancel()
    assert execution.wait(30).cause == "canceled"
    assert time.monotonic() - begin >= 2.4


def test_signal(runner, ctx):
    execution = runner.start("echo ready; exec sleep 60", context=ctx, stream=True)
    pieces = iter(execution)
    next(pieces)
    execution.signal(signal.SIGUSR1)
    assert execution.wait(30).signal == signal.SIGUSR1
    with pytest.raises(agentd.AgentdError) as caught:
        execution.signal(signal.SIGUSR1)
    assert caught.value.code == -3


def test_explain(runner, ctx):
    document = runner.explain("true", context=ctx)
    assert document["backend"] == "host" and "GREETING" in document["env"]


def test_params_of_a_tool_call(runner, ctx):
    schema = agentd.Params.schema()
    assert set(schema["properties"]) == {"command", "timeout_ms"}
    for arguments in ({"command": "echo hi", "timeout_ms": 5000}, '{"command": "echo hi"}',
                      b'{"command": "echo hi"}'):
        params = agentd.Params(arguments)
        assert params.document["command"] == "echo hi"
        assert params.document["timeout_ms"] == (5000 if isinstance(arguments, dict) else 30000)
        for _ in range(2):
            assert runner.run(params, context=ctx).stdout == b"hi\n"
    assert runner.explain(params, context=ctx)["limits"]["timeout_ms"] == 30000
    with pytest.raises(ValueError):
        runner.run(params, timeout=1, context=ctx)
    for arguments in ({"command": 1}, '{"command": 1}'):
        with pytest.raises(agentd.AgentdError) as caught:
            agentd.Params(arguments)
        assert (caught.value.code, caught.value.pointer) == (-1, "/command")


def test_every_constant_can_be_imported():
    constants = {name for name in vars(agentd) if name.isupper() and not name.startswith("_")}
    assert {"STDOUT", "READ", "ISOLATION_VM"} <= constants <= set(agentd.__all__)


def test_policy_as_a_document():
    policy = agentd.Policy({"paths": {"read": ["/usr"]}, "limits": {"pids_max": 7}})
    policy.allow_path("/srv", agentd.READ | agentd.WRITE)
    document = policy.document
    assert document["limits"] == {"pids_max": 7}
    assert sorted(document["paths"]["read"]) == ["/srv", "/usr"]
    assert agentd.Policy(document).document == document


def test_probe(tmp_path):
    document = agentd.probe(cache_dir=tmp_path)
    assert not document["cached"] and document["acts"]
    assert "sandbox" in document["capabilities"]
    known = asyncio.run(agentd.probe_async(cache_dir=tmp_path))
    assert known["cached"] and known["acts"] == document["acts"]
    assert not agentd.probe(cache_dir=tmp_path, cached=False)["cached"]
    with pytest.raises(agentd.AgentdError) as caught:
        agentd.probe(helper_path="/usr/no/such/helper", cached=False)
    assert "/usr/no/such/helper" in str(caught.value)
    with pytest.raises(agentd.AgentdError) as caught:
        agentd.probe(cache_dir="relative")
    assert caught.value.code == -1 and "relative" in str(caught.value)


def test_probe_that_is_interrupted():
    # It comes as an exception, and not only when all was tried.
    def handler(*_):
        raise InterruptedError

    previous = signal.signal(signal.SIGALRM, handler)
    begin = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            agentd.probe(cached=False)
        waited = time.monotonic() - begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert agentd.probe(cached=False)["acts"]
    assert waited < time.monotonic() - begin


# Asks the proxy for a host; nobody serves the runner's name server, so that an allowed host
# is 502 and another 403.
ASKS = """
get() {
    proxy=${http_proxy#http://} && proxy=${proxy%/}
    exec 3<>"/dev/tcp/${proxy%:*}/${proxy##*:}"
    printf 'GET http://%s/ HTTP/1.0\\r\\n\\r\\n' "$1" >&3
    read -r _ code _ <&3; echo "$code"
}
"""


@pytest.fixture(scope="module")
def net():
    """A runner, and what makes contexts, of commands that may reach hosts below .test if the
    context's policy allows that."""
    def policy(*hosts):
        document = agentd.Policy.system().document
        return agentd.Policy({**document, "net": {"mode": "allow", "allow": list(hosts)}})

    with agentd.Runner(policy("*.test"), net_resolver="127.0.0.1:1") as made:
        def context(*hosts, **options):
            return agentd.Context(policy=policy(*hosts), workdir="/usr", **options)

        result = made.run("true", context=context())
        if result.cause == "isolation":
            pytest.skip(f"SKIP-CANNOT: {result.document['error']}")
        assert result.ok, result.document
        yield made, context


def test_denials(net):
    runner, context = net
    denials = []
    script = ASKS + "get allowed.test; get denied.test"
    options = {"context": context("allowed.test"), "on_denied": denials.append}
    result = runner.run(script, **options)
    assert result.stdout == b"502\n403\n", result
    assert [(one.kind, one.target) for one in denials] == [("net", "denied.test:80")]
    assert denials[0].rule and denials[0].remedy
    assert result.document["denied_count"] == 1

    def fails(denial):
        raise KeyError(denial.target)

    with pytest.raises(KeyError, match="denied.test:80"):
        runner.run(script + "; sleep 60", **{**options, "on_denied": fails})


def test_questions(net):
    runner, context = net
    asked = []

    def ask(question):
        asked.append((question.host, question.port))
        return {
            "once.test": agentd.ASK_ONCE, "always.test": agentd.ASK_CONTEXT, "no.test": agentd.ASK_DENY,
        }[question.host]

    asking = context("rule.test", ask=ask)
    hosts = ("once.test", "once.test", "always.test", "always.test", "no.test:8080", "rule.test", "else.where")
    result = runner.run(ASKS + "".join(f"get {host};" for host in hosts), context=asking)
    assert result.stdout == b"502\n502\n502\n502\n403\n502\n403\n", result
    # Not of what a rule allows, nor of what the runner's policy does not.
    assert asked == [("once.test", 80)] * 2 + [("always.test", 80), ("no.test", 8080)]
    # Another command of the same context.
    assert runner.run(ASKS + "get always.test", context=asking).stdout == b"502\n"
    assert len(asked) == 4
    # Somebody without an answer of his own.
    assert runner.run(ASKS + "get once.test", context=context()).stdout == b"403\n"


def test_questions_answered_later(net):
    runner, context = net
    later = []
    asking = context(ask=later.append)
    execution = runner.start(ASKS + "get a.test; get b.test", context=asking, stream=True)
    pieces = iter(execution)
    for host, answer, code in (("a.test", agentd.ASK_ONCE, b"502\n"), ("b.test", agentd.ASK_DENY, b"403\n")):
        until = time.monotonic() + 30
        while not later and time.monotonic() < until:
            time.sleep(0.01)
        question = later.pop()
        assert question.host == host and question.execution is execution
        with pytest.raises(agentd.AgentdError) as caught:
            question.answer(7)
        assert caught.value.code == -1
        question.answer(answer)
        assert next(pieces) == (agentd.STDOUT, code)
        with pytest.raises(agentd.AgentdError) as caught:
            question.answer(answer)
        assert caught.value.code == -3
    assert execution.wait(30).ok


def test_questions_nobody_answers(net):
    runner, context = net
    for fallback, code in ((agentd.ASK_DENY, b"403\n"), (agentd.ASK_ONCE, b"502\n")):
        asking = context(ask=lambda question: None, ask_timeout=0.1, ask_fallback=fallback)
        assert runner.run(ASKS + "get a.test", context=asking).stdout == code
    with pytest.raises(agentd.AgentdError) as caught:
        context(ask=lambda question: None, ask_fallback=agentd.ASK_CONTEXT)
    assert caught.value.code == -1


def test_questions_that_raise(net):
    runner, context = net
    for ask, error in ((lambda question: {}[question.host], KeyError),
                       (lambda question: 7, agentd.AgentdError)):
        with pytest.raises(error):
            runner.run(ASKS + "get a.test; sleep 60", context=context(ask=ask))


def test_questions_leave_nothing(net):
    runner, context = net
    kept = []
    asking = context(ask=kept.append)
    execution = runner.start(ASKS + "get a.test", context=asking, stream=True)
    del asking
    until = time.monotonic() + 30
    while not kept and time.monotonic() < until:
        time.sleep(0.01)
    execution.kill()
    assert execution.wait(30).cause == "canceled"
    with pytest.raises(agentd.AgentdError) as caught:
        kept[0].answer(agentd.ASK_ONCE)
    assert caught.value.code == -3
    assert agentd._asked
    kept.clear()
    del caught  # its traceback knows the question
    gc.collect()
    assert not agentd._asked


def test_log():
    records = []
    policy = agentd.Policy.none()
    context = agentd.Context(policy=policy, workdir="/", backend="host", env={"HOME": "/"})
    with agentd.Runner(policy, log=records.append) as runner:
        assert runner.run("exit 3", context=context).exit_code == 3
    assert {record.level for record in records} <= {agentd.LOG_WARN, agentd.LOG_INFO}
    assert all(record.component and record.message for record in records)
    assert any(record.fields.get("exit_code") == "3" for record in records)


def test_log_that_raises(monkeypatch):
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(args.exc_type))

    def fails(record):
        raise KeyError(record.message)

    policy = agentd.Policy.none()
    context = agentd.Context(policy=policy, workdir="/", backend="host")
    with agentd.Runner(policy, log=fails) as runner:
        assert runner.run(["/bin/true"], context=context).ok
    assert raised and set(raised) == {KeyError}


def test_sessions(tmp_path):
    policy = agentd.Policy.system()
    workdir = tmp_path / "work"
    workdir.mkdir()
    context = agentd.Context(policy=policy, workdir=workdir, session=SESSION)
    document = {"enabled": True, "backend": "sandbox", "volume_root": str(tmp_path / "volumes")}
    with agentd.Runner(policy) as runner:
        # The control: without a pool it is a sandbox in the working directory.
        result = runner.run("echo lost >note", context=context)
        if result.cause == "isolation":
            pytest.skip(f"SKIP-CANNOT: {result.document['error']}")
        assert result.ok and (workdir / "note").read_text() == "lost\n"
        pool = agentd.Pool(runner, document)
        with pytest.raises(agentd.AgentdError) as caught:
            pool.stop(SESSION)
        assert caught.value.code == -7
        script = "ls; echo hello >note; sleep 60 & echo $! >pid"
        result = runner.run(script, context=context)
        assert result.ok and result.stdout == b"", result.document
        alive = "cat note; test -e /proc/$(cat pid) && echo alive"
        assert runner.run(alive, context=context).stdout == b"hello\nalive\n"
        assert [one["id"] for one in pool.document["sessions"]] == [SESSION]
        pool.maintain()
        assert runner.run(alive, context=context).stdout == b"hello\nalive\n"
        pool.stop(SESSION)
        assert runner.run(alive, context=context).stdout == b"hello\n"

        async def stop():
            await pool.maintain_async()
            await pool.stop_async(SESSION)

        asyncio.run(stop())
        assert runner.run(alive, context=context).stdout == b"hello\n"
    with pytest.raises(agentd.AgentdError) as caught:
        pool.stop(SESSION)
    assert caught.value.code == -3


def test_a_copy_of_a_reference_is_refused(ctx):
    for one in (agentd.Policy(), agentd.Params({"command": "true"}), ctx):
        for copies in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=type(one).__name__):
                copies(one)
    # What it holds can be had.
    policy = agentd.Policy({"paths": {"read": ["/usr"]}})
    assert agentd.Policy(policy.document).document == policy.document


def test_bad_pool(runner):
    with pytest.raises(agentd.AgentdError) as caught:
        agentd.Pool(runner, {"enabled": True, "volume_roof": "/"})
    assert caught.value.code == -1 and caught.value.pointer == "/volume_roof"
    with pytest.raises(agentd.AgentdError) as caught:
        agentd.Context(session="no uuid")
    assert caught.value.code == -1 and "no uuid" in str(caught.value)


def test_pool_inside_a_callback_is_refused(runner, ctx):
    def pools(stream, data):
        agentd.Pool(runner, {})

    with pytest.raises(agentd.AgentdError) as caught:
        runner.run("echo a", context=ctx, on_output=pools)
    assert caught.value.code == -4


def test_bad_command(runner, ctx):
    with pytest.raises(ValueError):
        runner.run("true\0", context=ctx)
    with pytest.raises(agentd.AgentdError):
        runner.run([], context=ctx)


def test_helper_that_is_missing():
    with pytest.raises(agentd.AgentdError) as caught:
        agentd.Runner(helper_path="/usr/no/such/helper")
    assert "/usr/no/such/helper" in str(caught.value)


def test_callback(runner, ctx):
    seen = []
    result = runner.run(
        "echo a; echo b >&2", context=ctx, on_output=lambda *piece: seen.append(piece)
    )
    assert result.ok and result.stdout == b""
    assert sorted(seen) == [(agentd.STDOUT, b"a\n"), (agentd.STDERR, b"b\n")]


def test_exception_in_callback_ends_the_command(runner, ctx):
    def fails(stream, data):
        raise KeyError(stream)

    with pytest.raises(KeyError):
        runner.run("echo a; sleep 60", context=ctx, on_output=fails)


def test_waiting_inside_a_callback_is_refused(runner, ctx, tmp_path):
    def waits(stream, data):
        runner.run(f"touch {tmp_path}/waited", context=ctx)

    with pytest.raises(agentd.AgentdError) as caught:
        runner.run("echo a", context=ctx, on_output=waits)
    assert caught.value.code == -4
    # Nor does it run.
    assert runner.run(f"sleep 0.2; touch {tmp_path}/here", context=ctx).ok
    assert os.listdir(tmp_path) == ["here"]


def test_iterator_streams_and_paces(runner, ctx):
    execution = runner.start("echo first; sleep 0.5; head -c 4000000 /dev/zero", context=ctx, stream=True)
    begin, pieces, most = time.monotonic(), [], 0
    for stream, data in execution:
        pieces.append(data)
        if len(pieces) < 4:
            time.sleep(0.2)
        most = max(most, execution._waiting)
    assert pieces[0] == b"first\n"
    assert sum(map(len, pieces)) == 6 + 4000000
    assert 0 < most < (1 << 20) + 262144
    assert execution.wait(10).ok and time.monotonic() > begin


def test_iterating_without_a_stream_is_refused(runner, ctx):
    execution = runner.start("echo a", context=ctx)
    with pytest.raises(ValueError):
        next(iter(execution))

    async def main():
        async for _ in execution:
            pass

    with pytest.raises(ValueError):
        asyncio.run(main())
    assert execution.wait(30).stdout == b"a\n"


def test_iterator_left_early_cancels(runner, ctx):
    execution = runner.start("yes", context=ctx, stream=True)
    for _ in execution:
        break
    result = execution.wait(30)
    assert (result.cause, result.stdout, result.stderr) == ("canceled", b"", b"")


def test_cancel_from_another_thread(runner, ctx):
    execution = runner.start("sleep 60", context=ctx)
    threading.Timer(0.1, execution.cancel).start()
    assert execution.wait(30).cause == "canceled"
    execution.cancel()
    execution.kill()


def test_cancel_in_a_signal_handler(ctx):
    # Whatever the main thread is at: here it is telling the runner's thread of another command.
    with agentd.Runner(agentd.Policy.none()) as runner:
        execution = runner.start("sleep 60", context=ctx)

        class Interrupted(type(runner._calls)):
            def append(self, call):
                super().append(call)
                if not handled:
                    signal.raise_signal(signal.SIGUSR1)

        handled = []
        def handler(*_):
            handled.append(runner._lock.acquire(blocking=False))
            if handled[-1]:
                runner._lock.release()
                execution.cancel()

        previous = signal.signal(signal.SIGUSR1, handler)
        try:
            runner._calls = Interrupted(runner._calls)
            assert runner.run("true", context=ctx).ok
        finally:
            signal.signal(signal.SIGUSR1, previous)
        execution.kill()
        assert handled == [True] and execution.wait(30).cause == "canceled"


def test_an_exception_of_a_signal_handler_cancels(runner, ctx, tmp_path):
    class Late(Exception):
        pass

    def handler(*_):
        raise Late

    previous = signal.signal(signal.SIGALRM, handler)
    script = f"trap 'touch {tmp_path}/ended; exit' TERM; touch {tmp_path}/begun; sleep 60 & wait"
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(Late):
            runner.run(script, context=ctx, timeout=90)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    until = time.monotonic() + 30
    while not (tmp_path / "ended").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(os.listdir(tmp_path)) == ["begun", "ended"]


def test_wait_times_out(runner, ctx):
    execution = runner.start("sleep 60", context=ctx)
    with pytest.raises(concurrent.futures.TimeoutError):
        execution.wait(0.05)
    execution.kill()
    assert execution.wait(30).cause == "canceled"


def test_asyncio_runs_beside_others(runner, ctx):
    async def main():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.create_task(tick())
        results = await asyncio.gather(
            *(runner.run_async(f"sleep 0.3; echo {i}", context=ctx) for i in range(3))
        )
        ticker.cancel()
        return ticks, [r.stdout for r in results]

    ticks, outputs = asyncio.run(main())
    assert outputs == [b"0\n", b"1\n", b"2\n"]
    assert ticks > 5


def test_asyncio_iteration(runner, ctx):
    async def main():
        execution = runner.start("for i in 1 2 3; do echo $i; sleep 0.05; done", context=ctx, stream=True)
        text = b"".join([data async for _, data in execution])
        return text, await execution.wait_async()

    text, result = asyncio.run(main())
    assert text == b"1\n2\n3\n" and result.ok


def test_task_cancel_cancels_the_command(runner, ctx):
    execution = runner.start("sleep 60", context=ctx)

    async def main():
        task = asyncio.create_task(execution.wait_async())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert execution.wait(30).cause == "canceled"


def test_waiting_takes_no_cpu_time(runner, ctx):
    before = time.process_time()
    assert runner.run("sleep 1", context=ctx).ok
    assert time.process_time() - before < 0.3


def test_closed_runner_and_its_commands(ctx):
    runner = agentd.Runner(agentd.Policy.none())
    execution = runner.start("sleep 60", context=ctx)
    runner.close(grace=0)
    runner.close()
    assert execution.wait(0).cause == "canceled"
    with pytest.raises(agentd.AgentdError) as caught:
        runner.run("true", context=ctx)
    assert caught.value.code == -3
    assert not runner._thread.is_alive()


def test_interrupted_close(ctx, monkeypatch):
    runner = agentd.Runner(agentd.Policy.none())
    execution = runner.start("trap '' TERM; echo ready; sleep 60; :", context=ctx, stream=True)
    next(iter(execution))
    thread = runner._thread
    with monkeypatch.context() as patch:
        def interrupt():
            raise KeyboardInterrupt

        patch.setattr(thread, "join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner.close(grace=0.5)
    gc.collect()
    thread.join(30)
    assert not thread.is_alive() and execution.wait(0).cause == "canceled"


AT_EXIT = """
import atexit, ctypes, sys, threading
begun = threading.Event()
atexit.register(lambda: print(runner.run(["/bin/echo", "late"], context=context).stdout))
import agentd
context = agentd.Context(policy=agentd.Policy.none(), workdir="/", backend="host")
runner = agentd.Runner(agentd.Policy.none())
atexit.register(lambda: print(runner.run(["/bin/echo", "early"], context=context).stdout))
script = ["/bin/sh", "-c", "while echo a; do sleep 0.01; done"]
runner.start(script, context=context, on_output=lambda *_: begun.set())
begun.wait()
# The end of the process waits for its parent, and has no interpreter then.
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.getchar, ctypes.c_void_p), None, None)
"""


def test_the_end_of_the_interpreter_closes_a_runner():
    child = subprocess.Popen(
        [sys.executable, "-c", AT_EXIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(1)
    out, err = child.communicate()
    assert child.returncode == 0, err
    # As with all that was imported: what was registered before has its turn later.
    assert out == b"b'early\\n'\n" and b"the runner is closed" in err


def test_forked_child_keeps_off(runner, ctx):
    pid = os.fork()
    if pid == 0:
        try:
            runner.run("true", context=ctx)
        except agentd.AgentdError as error:
            os._exit(0 if error.code == -3 else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert runner.run("true", context=ctx).ok


def test_forked_child_does_not_wait_for_its_parent(runner, ctx):
    execution = runner.start("sleep 60", context=ctx, stream=True)
    over = runner.start("echo over", context=ctx)
    over.wait()
    waits = [
        lambda: execution.wait(5),
        lambda: next(iter(execution)),
        lambda: asyncio.run(asyncio.wait_for(execution.wait_async(), 5)),
    ]
    for number, wait in enumerate(waits):
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            if over.wait().stdout != b"over\n":
                os._exit(4)
            try:
                wait()
            except agentd.AgentdError as error:
                os._exit(0 if error.code == -3 else 2)
            except BaseException:
                os._exit(3)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0, number
    pid = os.fork()
    if pid == 0:
        runner.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    execution.kill()
    assert execution.wait(30).cause == "canceled"


def test_default_is_a_sandbox(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("here\n")
    monkeypatch.chdir(tmp_path)
    result = agentd.run("cat file; test ! -e /proc/1/root/etc/hostname && test ! -e /srv && echo inside")
    if result.cause == "isolation":
        pytest.skip(f"SKIP-CANNOT: {result.document['error']}")
    assert result.ok and result.backend == "sandbox"
    assert result.stdout == b"here\ninside\n"
    assert asyncio.run(agentd.run_async("cat file")).stdout == b"here\n"


def test_many_runs_leave_nothing(runner, ctx):
    def some(count):
        for _ in range(count):
            assert runner.run(["/bin/true"], context=ctx).ok

    some(100)
    fds, memory = len(os.listdir("/proc/self/fd")), rss()
    some(int(os.environ.get("AGENTD_TEST_RUNS", "200")))
    assert len(os.listdir("/proc/self/fd")) == fds
    assert rss() - memory < 1 << 20
    assert not agentd._alive
