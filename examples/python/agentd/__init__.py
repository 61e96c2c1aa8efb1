# SPDX-License-Identifier: MIT
"""Run shell commands on behalf of AI agents: libagentd for Python.

    import agentd
    result = agentd.run("make 2>&1 | tail", timeout=60)
    result = await agentd.run_async("make", timeout=60)

Each Runner has one thread, which runs the library's loop; every call to the library that
is bound to the loop is made there. A Runner may be used from any thread.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import concurrent.futures
import ctypes
import functools
import itertools
import json
import os
import subprocess
import threading
import weakref
from ctypes import byref, c_char_p, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import (
    Any, AsyncIterator, Callable, Iterator, Mapping, NoReturn, Optional, Protocol, Sequence, Union,
)

from . import _lib
from ._lib import LIB as _c

__all__ = [
    "AgentdError", "Context", "Denial", "Execution", "LogRecord", "Params", "Policy", "Pool",
    "Question", "Result", "Runner", "ASK_CONTEXT", "ASK_DENY", "ASK_ONCE", "EXEC",
    "ISOLATION_NONE", "ISOLATION_SANDBOX", "ISOLATION_VM", "LOG_DEBUG", "LOG_ERROR", "LOG_INFO",
    "LOG_WARN", "READ", "RUNNER_NO_STDERR_LOG", "RUNNER_SNAPSHOTS", "STDERR", "STDOUT", "WRITE",
    "probe", "probe_async", "run", "run_async", "version",
]

STDOUT, STDERR = 1, 2
LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG = 0, 1, 2, 3
RUNNER_NO_STDERR_LOG, RUNNER_SNAPSHOTS = 1, 2
READ, WRITE, EXEC = 1, 2, 4
ASK_DENY, ASK_ONCE, ASK_CONTEXT = 0, 1, 2
ISOLATION_NONE, ISOLATION_SANDBOX, ISOLATION_VM = 0, 200, 300



class HasFileno(Protocol):
    """A file, a socket, ..."""

    def fileno(self) -> int: ...


File = Union[int, HasFileno]
Bytes = Union[bytes, bytearray, memoryview]
OutputFn = Callable[[int, bytes], None]
DeniedFn = Callable[["Denial"], None]
AskFn = Callable[["Question"], Optional[int]]

_ERR_STATE, _ERR_REENTRANT, _ERR_AGAIN, _ERR_USER = -3, -4, -9, -16
_UINT32_MAX, _UINT64_MAX = (1 << 32) - 1, (1 << 64) - 1
_STDIN_OPEN, _MERGE_STDERR, _KILL_ON_OUTPUT = 1, 2, 4
_PROBE_NO_CACHE = 1
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
# Bytes that wait for an iterator before the command has to.
_WINDOW = 1 << 20


class AgentdError(Exception):
    """What the library could not do. How a command ended is never one: see Result."""

    def __init__(self, message: str, code: int, pointer: str = "", os_errno: int = 0) -> None:
        super().__init__(message)
        self.code = code  #: AGENTD_ERR_*
        self.pointer = pointer  #: JSON pointer of the offending input, or ""
        self.os_errno = os_errno  #: errno of the system call that failed, or 0


def _error(err: Union[int, c_void_p]) -> AgentdError:
    """Of an error object."""
    return AgentdError(
        _c.agentd_error_message(err).decode(errors="replace"),
        _c.agentd_error_code(err),
        _c.agentd_error_pointer(err).decode(errors="replace"),
        _c.agentd_error_os_errno(err),
    )


def _try(function: Any, *args: Any) -> int:
    """Call function(*args, reterr)."""
    err = c_void_p()
    code: int = function(*args, byref(err))
    if code >= 0:
        return code
    if not err:
        raise AgentdError(_c.agentd_strerror(code).decode(), code)
    try:
        raise _error(err)
    finally:
        _c.agentd_error_unref(err)


def _new(function: Any, *args: Any) -> c_void_p:
    ret = c_void_p()
    _try(function, *args, byref(ret))
    return ret


def _json(function: Any, *args: Any) -> bytes:
    """The text that function(*args, ret, ret_len, reterr) makes."""
    text, length = c_void_p(), c_size_t()
    _try(function, *args, byref(text), byref(length))
    try:
        return ctypes.string_at(text.value or 0, length.value)
    finally:
        _c.agentd_free(text)


def _text(value: Union[str, os.PathLike[str]]) -> bytes:
    data = os.fsencode(value)
    if b"\0" in data:
        raise ValueError(f"embedded null character: {value!r}")
    return data


def _milliseconds(name: str, seconds: Optional[float], most: int) -> int:
    """0, which stands for a default, only for None. What is above `most` is `most`."""
    if seconds is None:
        return 0
    if not seconds > 0:
        raise ValueError(f"{name} is not above 0: {seconds}")
    return max(1, int(min(seconds * 1000, most)))


def _set_member(struct: ctypes.Structure, kind: str, name: str, value: Any) -> None:
    """Of a struct of options, in which 0 stands for a default."""
    types = {field[0]: field[1] for field in struct._fields_[1:]}
    settable = types.get(name) in (c_char_p, c_uint32, c_uint64)
    if not settable or name.startswith("reserved"):
        raise TypeError(f"there is no {kind} {name!r}")
    if types[name] is c_char_p:
        setattr(struct, name, _text(value))
        return
    most = (1 << 8 * ctypes.sizeof(types[name])) - 1
    if not isinstance(value, int) or not 0 < value <= most:
        raise ValueError(f"{kind} {name} is not a number from 1 to {most}: {value!r}")
    setattr(struct, name, value)


def _descriptor(file: File) -> int:
    return file if isinstance(file, int) else file.fileno()


def version() -> str:
    """Version of the loaded library."""
    return str(_c.agentd_version_string().decode())


class _Reference:
    """Has a reference to an object of the library, which a copy would drop as well."""

    _unref: Any
    _ptr: Any

    def __del__(self) -> None:
        if hasattr(self, "_ptr"):
            self._unref(self._ptr)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be copied")


class Policy(_Reference):
    """What is allowed. A new one denies everything and asks for a sandbox; `document` has
    the members of agentd_policy(5)."""

    _unref = _c.agentd_policy_unref

    def __init__(self, document: Optional[Mapping[str, Any]] = None) -> None:
        if document is None:
            self._ptr = _new(_c.agentd_policy_new)
        else:
            data = json.dumps(document).encode()
            self._ptr = _new(_c.agentd_policy_from_json, data, len(data))

    @classmethod
    def system(cls) -> Policy:
        """A sandbox in which the system's programs can be run."""
        policy = cls()
        for path in _SYSTEM:
            if os.path.isdir(path):
                policy.allow_path(path, READ | EXEC)
        return policy

    @classmethod
    def none(cls) -> Policy:
        """Accepts no isolation: for the backend "host"."""
        policy = cls()
        policy.set_min_isolation(ISOLATION_NONE)
        return policy

    def allow_path(self, path: Union[str, os.PathLike[str]], access: int) -> None:
        _try(_c.agentd_policy_allow_path, self._ptr, _text(path), access)

    def deny_path(self, path: Union[str, os.PathLike[str]]) -> None:
        _try(_c.agentd_policy_deny_path, self._ptr, _text(path))

    def set_min_isolation(self, isolation: int) -> None:
        _try(_c.agentd_policy_set_min_isolation, self._ptr, isolation)

    @property
    def document(self) -> Mapping[str, Any]:
        """In the form of agentd_policy(5)."""
        return _object(_json(_c.agentd_policy_to_json, self._ptr))


class Params(_Reference):
    """What to run as a model says it, in the arguments of its tool call: JSON, or a mapping,
    with the members of agentd_params(5). It is a command for Runner.start() and its like, with
    a timeout of its own."""

    _unref = _c.agentd_params_unref

    def __init__(self, arguments: Union[str, bytes, Mapping[str, Any]]) -> None:
        if isinstance(arguments, str):
            data = arguments.encode()
        elif isinstance(arguments, bytes):
            data = arguments
        else:
            data = json.dumps(arguments).encode()
        self._ptr = _new(_c.agentd_params_parse, data, len(data))

    @staticmethod
    def schema() -> Mapping[str, Any]:
        """JSON Schema of the arguments, for the definition of a tool."""
        return _object(_c.agentd_params_schema())

    @property
    def document(self) -> Mapping[str, Any]:
        """With the timeout that holds."""
        return _object(_json(_c.agentd_params_to_json, self._ptr))


class Context(_Reference):
    """Where and as whom commands run. `document` has the members of agentd_context(5);
    `session`, a UUID, names a session of the runner's Pool. Without a policy, which
    Policy.system() may be, a command sees no programs.

    In the network mode "allow" `ask` is called with a Question for each host that neither policy
    denies and this one's rules say nothing about, on the runner's thread. It returns an ASK_*, or
    None to have Question.answer() called later; `ask_fallback` (ASK_DENY or ASK_ONCE) holds if
    that does not come in `ask_timeout` seconds, else 60. An exception is the command's end, and
    raised by Execution.wait(). `netns` is a network namespace, a descriptor or what has one.
    """

    _unref = _c.agentd_context_unref

    def __init__(
        self,
        document: Optional[Mapping[str, Any]] = None,
        *,
        policy: Optional[Policy] = None,
        workdir: Union[str, os.PathLike[str], None] = None,
        backend: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        session: Optional[str] = None,
        ask: Optional[AskFn] = None,
        ask_timeout: Optional[float] = None,
        ask_fallback: int = ASK_DENY,
        netns: Optional[File] = None,
    ) -> None:
        if document is None:
            self._ptr = _new(_c.agentd_context_new)
        else:
            data = json.dumps(document).encode()
            self._ptr = _new(_c.agentd_context_from_json, data, len(data))
        if policy is not None:
            _try(_c.agentd_context_set_policy, self._ptr, policy._ptr)
        if workdir is not None:
            _try(_c.agentd_context_set_workdir, self._ptr, _text(workdir))
        if backend is not None:
            _try(_c.agentd_context_set_backend, self._ptr, _text(backend))
        for name, value in (env or {}).items():
            _try(_c.agentd_context_set_env, self._ptr, _text(name), _text(value))
        if session is not None:
            _try(_c.agentd_context_set_session, self._ptr, _text(session), None, None)
        if netns is not None:
            _try(_c.agentd_context_set_netns, self._ptr, _descriptor(netns))
        if ask is not None:
            self._set_ask(ask, ask_timeout, ask_fallback)

    def _set_ask(self, ask: AskFn, timeout: Optional[float], fallback: int) -> None:
        number = next(_numbers)
        opts = _lib.AskOpts(
            size=ctypes.sizeof(_lib.AskOpts),
            timeout_ms=_milliseconds("ask_timeout", timeout, _UINT32_MAX),
            fallback=fallback,
            ask=_on_ask,
            userdata=number,
            destroy=_on_ask_over,
        )
        _asked[number] = ask
        try:
            _try(_c.agentd_context_set_ask, self._ptr, byref(opts))
        except BaseException:
            del _asked[number]
            raise


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: str
    cause: str
    exit_code: Optional[int]
    signal: Optional[int]
    backend: str
    stdout: bytes
    stderr: bytes
    stdout_omitted: int  #: bytes that are missing between head and tail: see keep
    stderr_omitted: int
    _json: bytes = field(repr=False)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def error(self) -> Optional[str]:
        """Why it was refused, could not be started, or failed: else None."""
        error = self.document["error"]
        return error["message"] if error else None

    @property
    def limit(self) -> Optional[str]:
        """Member of struct agentd_limits that made itself felt, or None."""
        return self.document["limit"]  # type: ignore[no-any-return]

    @property
    def truncated(self) -> bool:
        """Output was produced and not delivered."""
        return bool(self.document["truncated"])

    @functools.cached_property
    def document(self) -> Mapping[str, Any]:
        """All of docs/result.schema.json; parsed when it is asked for, as few do."""
        return _object(self._json)


def _result(ptr: int, output: Mapping[int, tuple[bytes, int]]) -> Result:
    exit_code: int = _c.agentd_result_exit_code(ptr)
    return Result(
        status=_c.agentd_status_name(_c.agentd_result_status(ptr)).decode(),
        cause=_c.agentd_cause_name(_c.agentd_result_cause(ptr)).decode(),
        exit_code=exit_code if exit_code >= 0 else None,
        signal=_c.agentd_result_signal(ptr) or None,
        backend=_c.agentd_result_backend(ptr).decode(),
        stdout=output[STDOUT][0],
        stderr=output[STDERR][0],
        stdout_omitted=output[STDOUT][1],
        stderr_omitted=output[STDERR][1],
        _json=_json(_c.agentd_result_to_json, ptr),
    )


def _answer(
    future: concurrent.futures.Future[Any],
    result: Any = None,
    failure: Optional[BaseException] = None,
) -> None:
    """Unless it was cancelled, as asyncio does with one that nobody waits for any more."""
    if not future.set_running_or_notify_cancel():
        return
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)


def _object(text: bytes) -> Mapping[str, Any]:
    document: Mapping[str, Any] = json.loads(text)
    return document


Command = Union[str, Sequence[str], Params]


def _params(command: Command, timeout: Optional[float]) -> c_void_p:
    """A reference of the caller's."""
    if isinstance(command, Params):
        if timeout is not None:
            raise ValueError("timeout: Params have their own")
        return c_void_p(_c.agentd_params_ref(command._ptr))
    timeout_ms = _milliseconds("timeout", timeout, _UINT64_MAX)
    if isinstance(command, str):
        return _new(_c.agentd_params_new_shell, _text(command), timeout_ms)
    argv = (c_char_p * (len(command) + 1))(*map(_text, command), None)
    return _new(_c.agentd_params_new_argv, argv, timeout_ms)


@dataclass(frozen=True)
class Denial:
    """Something that a policy stopped, as far as the library sees it: see agentd_denial_kind(3)."""

    kind: str  #: "net", "path" or "syscall"
    target: str  #: what was wanted: "example.org:443", a path, a system call
    rule: str  #: what stopped it
    remedy: str  #: how the operator can allow it, or ""


class Question(_Reference):
    """May this command reach that host? See Context."""

    _unref = _c.agentd_ask_unref

    def __init__(self, ptr: int) -> None:
        self._ptr = _c.agentd_ask_ref(ptr)
        self.host: str = _c.agentd_ask_host(ptr).decode()  #: name or address, normalised
        self.port: int = _c.agentd_ask_port(ptr)
        exec_ptr = _c.agentd_ask_exec(ptr)
        #: whose command it is
        self.execution = next(one for one in list(_alive.values()) if one._exec.value == exec_ptr)

    def answer(self, answer: int) -> None:
        """ASK_DENY, ASK_ONCE (this connection) or ASK_CONTEXT (also later ones of every command
        of the context), from any thread. AgentdError if the question is over: answered, too late,
        or its command has ended."""
        self.execution._on_thread(lambda: _try(_c.agentd_ask_answer, self._ptr, answer))


# Whom contexts ask, by the userdata of their callback.
_asked: dict[int, AskFn] = {}


@_lib.ASK_FN
def _on_ask(ptr: int, number: int) -> None:
    question = Question(ptr)
    try:
        answer = _asked[number](question)
        if answer is not None:
            question.answer(answer)
    except BaseException as failure:
        question.execution._fail(failure)


@_lib.DESTROY_FN
def _on_ask_over(number: int) -> None:
    del _asked[number]


# Executions that the library may still call for, by the userdata of their sink.
_alive: dict[int, Execution] = {}
_numbers = itertools.count(1)


@_lib.OUTPUT_FN
def _on_output(_exec: int, stream: int, data: int, length: int, number: int) -> int:
    return _alive[number]._output(stream, ctypes.string_at(data, length))


@_lib.FINISHED_FN
def _on_finished(_exec: int, result: int, number: int) -> None:
    _alive.pop(number)._finished(result)


@_lib.DENIED_FN
def _on_denied(_exec: int, denial: int, number: int) -> None:
    _alive[number]._denied(denial)


@_lib.DRAINED_FN
def _on_drained(_exec: int, number: int) -> None:
    _alive[number]._feed()


def _sink_ops(output: Any) -> _lib.SinkOps:
    return _lib.SinkOps(
        size=ctypes.sizeof(_lib.SinkOps),
        output=output,
        stdin_drained=_on_drained,
        denied=_on_denied,
        finished=_on_finished,
    )


_output_ops, _silent_ops = _sink_ops(_on_output), _sink_ops(_lib.OUTPUT_FN())


def _bytes(name: str, data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name} is {type(data).__name__}, not bytes")
    return bytes(data)


class _Files:
    """Where output goes that neither the result nor a callback gets: the caller may close files
    that a command still writes to."""

    def __init__(self, files: Mapping[int, Optional[File]]) -> None:
        self._fds: dict[int, int] = {}
        copies: dict[int, int] = {}  # one of each, for the library sees to what is the same
        for stream, file in files.items():
            if file is not None and file != subprocess.DEVNULL:
                fd = _descriptor(file)
                if fd not in copies:
                    copies[fd] = os.dup(fd)
                self._fds[stream] = copies[fd]
        self.streams = {stream for stream, file in files.items() if file is not None}

    def __del__(self) -> None:
        for fd in set(self._fds.values()):
            os.close(fd)

    def sink(self) -> Optional[c_void_p]:
        """A reference of the caller's, or None if there would be nothing to it."""
        if not self._fds:
            return None
        return _new(_c.agentd_sink_new_fd, self._fds.get(STDOUT, -1), self._fds.get(STDERR, -1))


class _Options:
    """What a command is started with."""

    def __init__(
        self,
        limits: Optional[Mapping[str, int]],
        stdin: Union[Bytes, int, None],
        merge_stderr: bool,
        kill_on_output: bool,
        grace: Optional[float],
    ) -> None:
        #: all of the input, or None where write() gives it
        self.stdin = None if stdin is None or stdin == subprocess.PIPE else _bytes("stdin", stdin)
        self._limits = _lib.Limits(size=ctypes.sizeof(_lib.Limits))
        for name, value in (limits or {}).items():
            _set_member(self._limits, "limit", name, value)
        self.raw = _lib.ExecOpts(
            size=ctypes.sizeof(_lib.ExecOpts),
            flags=(_STDIN_OPEN if stdin is not None else 0)
            | (_MERGE_STDERR if merge_stderr else 0)
            | (_KILL_ON_OUTPUT if kill_on_output else 0),
            limits=ctypes.pointer(self._limits),
            grace_ms=_milliseconds("grace", grace, _UINT32_MAX),
        )


class Execution:
    """One command. Made by Runner.start()."""

    def __init__(
        self,
        runner: Runner,
        options: _Options,
        on_output: Optional[OutputFn],
        on_denied: Optional[DeniedFn],
        stream: bool,
        keep: Optional[tuple[int, int]],
        files: _Files,
    ) -> None:
        self._runner = runner
        self._options = options
        # Input that was not taken yet, and whom to tell when it is.
        self._input: collections.deque[tuple[bytes, Optional[concurrent.futures.Future[None]]]]
        self._input = collections.deque()
        self._input_ends = True
        self._fed = 0  # bytes of the first of them
        if options.stdin is not None:
            self._input.append((options.stdin, None))
        elif options.raw.flags & _STDIN_OPEN:
            self._input_ends = False
        self._on_output = on_output
        self._on_denied = on_denied
        self._stream = stream
        self._kept: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
        self._keep = keep
        self._buffer: Optional[c_void_p] = None
        self._files = files
        self._exec = c_void_p()
        self._future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        self._change = threading.Condition()
        self._chunks: collections.deque[tuple[int, bytes]] = collections.deque()
        self._waiting = 0
        self._paused: set[int] = set()
        self._over = False
        self._abandoned = False
        self._notify: Optional[Callable[[], None]] = None
        self._failure: Optional[BaseException] = None

    # on the loop's thread

    def _begin(self, context: Context, params: c_void_p) -> None:
        number = next(_numbers)
        sink: Optional[c_void_p] = None
        _alive[number] = self
        try:
            sink = self._sink(number)
            _try(
                _c.agentd_exec_start, self._runner._ptr, context._ptr, params, sink,
                byref(self._options.raw), byref(self._exec),
            )
        except BaseException:
            del _alive[number]
            self._let_go()
            raise
        finally:
            _c.agentd_sink_unref(sink)
        if self._options.raw.flags & _STDIN_OPEN:
            self._feed()

    def _sink(self, number: int) -> c_void_p:
        """A reference of the caller's."""
        heard = self._keep is None and not self._files.streams >= {STDOUT, STDERR}
        sink = _new(_c.agentd_sink_new, byref(_output_ops if heard else _silent_ops), number)
        try:
            if self._keep is not None:
                self._buffer = _new(_c.agentd_sink_new_buffer, *self._keep)
                sink = self._tee(sink, self._buffer)
            file_sink = self._files.sink()
            if file_sink is not None:
                try:
                    sink = self._tee(sink, file_sink)
                finally:
                    _c.agentd_sink_unref(file_sink)
        except BaseException:
            _c.agentd_sink_unref(sink)
            raise
        return sink

    def _let_go(self) -> None:
        """Of what has its output: who reads a file is told of its end."""
        _c.agentd_sink_unref(self._buffer)
        self._buffer = None
        self._files = _Files({})

    @staticmethod
    def _tee(sink: c_void_p, other: c_void_p) -> c_void_p:
        """In place of the reference to sink."""
        both = _new(_c.agentd_sink_new_tee, sink, other)
        _c.agentd_sink_unref(sink)
        return both

    def _feed(self) -> None:
        """What it takes now of its input."""
        taken = c_size_t()
        while self._input:
            data, written = self._input[0]
            start = ctypes.cast(c_char_p(data), c_void_p).value or 0
            while self._fed < len(data):
                rest = len(data) - self._fed
                code = _c.agentd_exec_write(self._exec, start + self._fed, rest, byref(taken))
                if code == _ERR_AGAIN:
                    return  # until it takes more
                if code == _ERR_REENTRANT:  # inside of the log
                    self._call(lambda _exec: self._feed())
                    return
                if code < 0:
                    self._refuse_input(AgentdError("nobody reads the input any more", code))
                    return
                self._fed += taken.value
            self._input.popleft()
            self._fed = 0
            if written is not None:
                _answer(written)
        if self._input_ends:
            _c.agentd_exec_close_stdin(self._exec)

    def _refuse_input(self, failure: AgentdError) -> None:
        self._fed = 0
        while self._input:
            written = self._input.popleft()[1]
            if written is not None:
                _answer(written, failure=failure)

    def _write(self, data: bytes, written: Optional[concurrent.futures.Future[None]]) -> None:
        if not self._exec or self._input_ends:
            what = "input has ended" if self._exec else "command is not running"
            raise AgentdError(f"the {what}", _ERR_STATE)
        self._input.append((data, written))
        if len(self._input) == 1:
            self._feed()

    def _end_input(self) -> None:
        self._input_ends = True
        if self._exec and not self._input:
            _c.agentd_exec_close_stdin(self._exec)

    def _output(self, stream: int, data: bytes) -> int:
        if stream in self._files.streams:
            return 0
        if self._on_output is not None:
            try:
                self._on_output(stream, data)
            except BaseException as failure:
                self._failure = failure
                return _ERR_USER
            return 0
        if self._abandoned:
            return 0
        if not self._stream:
            self._kept[stream].append(data)
            return 0
        with self._change:
            self._chunks.append((stream, data))
            self._waiting += len(data)
            pause = self._waiting >= _WINDOW
            if pause:
                self._paused.add(stream)
            self._tell()
        return 1 if pause else 0

    def _denied(self, ptr: int) -> None:
        if self._on_denied is None:
            return
        try:
            self._on_denied(Denial(
                kind=_c.agentd_denial_kind(ptr).decode(errors="replace"),
                target=_c.agentd_denial_target(ptr).decode(errors="replace"),
                rule=_c.agentd_denial_rule(ptr).decode(errors="replace"),
                remedy=_c.agentd_denial_remedy(ptr).decode(errors="replace"),
            ))
        except BaseException as failure:
            self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        """Of a callback: it is the command's end, and raised by wait()."""
        if self._failure is None:
            self._failure = failure
        _c.agentd_exec_cancel(self._exec)

    def _finished(self, ptr: int) -> None:
        try:
            output = {stream: self._kept_of(stream) for stream in (STDOUT, STDERR)}
            result, failure = _result(ptr, output), self._failure
        except BaseException as caught:
            result, failure = None, caught
        self._let_go()
        self._refuse_input(AgentdError("the command has ended", _ERR_STATE))
        _c.agentd_exec_unref(self._exec)
        self._exec = c_void_p()
        with self._change:
            self._over = True
            self._tell()
        if failure is not None:
            self._future.set_exception(failure)
        elif result is not None:
            self._future.set_result(result)

    def _kept_of(self, stream: int) -> tuple[bytes, int]:
        """And how many bytes are missing from it."""
        if self._buffer is None or stream in self._files.streams:
            return b"".join(self._kept[stream]), 0
        data, length, omitted = c_void_p(), c_size_t(), c_uint64()
        code = _c.agentd_sink_buffer_get(
            self._buffer, stream, byref(data), byref(length), byref(omitted)
        )
        if code < 0:
            raise AgentdError(_c.agentd_strerror(code).decode(), code)
        return ctypes.string_at(data.value or 0, length.value), omitted.value

    def _tell(self) -> None:
        self._change.notify_all()
        if self._notify is not None:
            self._notify()

    def _resume(self) -> None:
        with self._change:
            streams, self._paused = self._paused, set()
        for stream in streams:
            if self._exec:
                _c.agentd_exec_resume(self._exec, stream)

    # on any thread

    def _call(self, function: Any) -> None:
        def call() -> None:
            if self._exec:
                function(self._exec)

        try:
            self._runner._post(call)
        except AgentdError:
            if not self._over and not self._runner._closed:
                raise

    def _on_thread(self, function: Callable[[], Any]) -> None:
        """Call it there; what it raises is raised here."""
        if threading.current_thread() is self._runner._thread:
            function()
        else:
            self._runner._call(function)

    def cancel(self) -> None:
        """Ask it to end, and end it after a grace. Nothing if it has ended."""
        self._call(_c.agentd_exec_cancel)

    def kill(self) -> None:
        """End it now."""
        self._call(_c.agentd_exec_kill)

    def write(self, data: Bytes) -> None:
        """Give it input, if it was started with stdin=subprocess.PIPE, and wait until that is
        taken; from a callback of its runner without waiting. AgentdError if nobody reads it."""
        data = _bytes("data", data)
        if threading.current_thread() is self._runner._thread:
            self._write(data, None)
        else:
            self._writing(data).result()

    async def write_async(self, data: Bytes) -> None:
        """The same for asyncio."""
        await asyncio.wrap_future(self._writing(_bytes("data", data)))

    def _writing(self, data: bytes) -> concurrent.futures.Future[None]:
        return self._runner._ask(lambda written: self._write(data, written))

    def close_stdin(self) -> None:
        """End its input after what was written."""
        self._call(lambda _exec: self._end_input())

    def signal(self, number: int) -> None:
        """Deliver a signal to its process group. AgentdError before it runs and after it
        has ended."""

        def send() -> None:
            if not self._exec:
                raise AgentdError("the command is not running", _ERR_STATE)
            _try(_c.agentd_exec_signal, self._exec, number)

        self._on_thread(send)

    def _check_waiter(self) -> None:
        if not self._future.done():
            self._runner._check_waiter()

    def wait(self, timeout: Optional[float] = None) -> Result:
        """How it ended; TimeoutError (of concurrent.futures) if it has not by then. An
        exception of on_output is raised here. With stream=True somebody has to read meanwhile:
        what nobody reads makes the command wait."""
        self._check_waiter()
        return self._future.result(timeout)

    async def wait_async(self) -> Result:
        """The same for asyncio; cancelling the task cancels the command."""
        self._check_waiter()
        try:
            return await asyncio.shield(asyncio.wrap_future(self._future))
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _check_reader(self) -> None:
        if not self._stream:
            raise ValueError("the command was started without stream=True")
        self._runner._check_waiter()

    def _take(self) -> Optional[tuple[int, bytes]]:
        """Under _change: the next piece of output."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._waiting -= len(chunk[1])
        return chunk

    def _went_on(self) -> None:
        if self._paused and self._waiting < _WINDOW // 2:
            self._call(lambda _exec: self._resume())

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """(stream, bytes) as it comes, of a command started with stream=True; a slow reader
        makes the command wait, one that stops reading cancels it."""
        self._check_reader()
        try:
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._chunks or self._over)
                    chunk = self._take()
                if chunk is None:
                    return
                self._went_on()
                yield chunk
        finally:
            self._abandon()

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """The same for asyncio."""
        self._check_reader()
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:  # that loop is closed: nobody waits
                pass

        with self._change:
            self._notify = notify
        try:
            while True:
                with self._change:
                    ready.clear()
                    chunk, over = self._take(), self._over
                if chunk is not None:
                    self._went_on()
                    yield chunk
                elif over:
                    return
                else:
                    await ready.wait()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Nobody reads any more."""
        with self._change:
            self._notify = None
            self._chunks.clear()
            self._waiting = 0
            self._abandoned = True
            over = self._over
        if not over:
            self.cancel()
            self._call(lambda _exec: self._resume())


@dataclass(frozen=True)
class LogRecord:
    """What a runner does."""

    level: int  #: LOG_*
    component: str
    message: str
    fields: Mapping[str, str]


LogFn = Callable[[LogRecord], None]


def _log_fn(log: Optional[LogFn]) -> Any:
    """NULL for None. What log raises is reported by sys.unraisablehook."""
    if log is None:
        return _lib.LOG_FN()

    def text(data: bytes) -> str:
        return data.decode(errors="replace")

    def on_log(record: int, _userdata: int) -> None:
        log(LogRecord(
            level=_c.agentd_log_record_level(record),
            component=text(_c.agentd_log_record_component(record)),
            message=text(_c.agentd_log_record_message(record)),
            fields={
                text(_c.agentd_log_record_field_key(record, i)):
                text(_c.agentd_log_record_field_value(record, i))
                for i in range(_c.agentd_log_record_field_count(record))
            },
        ))

    return _lib.LOG_FN(on_log)


class Runner:
    """The engine, with a thread of its own. Close it, or use it in a `with` statement; the end of
    the interpreter closes what is left.

    `log` is called on that thread with a LogRecord for all that the runner does, up to
    `log_level`. What else there is are members of struct agentd_runner_opts by name, such as
    helper_path, max_running or microvm_image.
    """

    def __init__(
        self,
        policy: Optional[Policy] = None,
        *,
        log: Optional[LogFn] = None,
        log_level: int = LOG_INFO,
        **members: Union[int, str, os.PathLike[str], None],
    ) -> None:
        self._closed = True
        self._gone = False
        self._is_parents = False  # of a process that was forked with it
        # Signal handlers and finalizers may come in between, and cancel.
        self._lock = threading.RLock()
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._awaited: set[concurrent.futures.Future[Any]] = set()
        self._policy = policy if policy is not None else Policy.system()
        self._opts = _lib.RunnerOpts(
            size=ctypes.sizeof(_lib.RunnerOpts),
            policy=self._policy._ptr,
            log=_log_fn(log),
            log_level=log_level,
        )
        for name, value in members.items():
            if value is not None:
                _set_member(self._opts, "option", name, value)
        self._ptr = c_void_p()
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._main, args=(started,), name="agentd", daemon=True
        )
        self._thread.start()
        started.result()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _main(self, started: concurrent.futures.Future[None]) -> None:
        self._loop = c_void_p()
        try:
            self._loop = _new(_c.agentd_loop_new)
            self._opts.event_base = _c.agentd_loop_event_base(self._loop)
            self._ptr = _new(_c.agentd_runner_new, byref(self._opts))
        except BaseException as failure:
            _c.agentd_loop_unref(self._loop)
            started.set_exception(failure)
            return
        self._closed = False
        _runners.add(self)
        started.set_result(None)
        while not self._gone:
            _try(_c.agentd_loop_run, self._loop, -1)
            while self._calls:
                self._calls.popleft()()
        _c.agentd_runner_unref(self._ptr)
        with self._lock:
            _c.agentd_loop_unref(self._loop)
            self._loop = c_void_p()
        for future in list(self._awaited):
            _answer(future, failure=AgentdError("the runner is closed", _ERR_STATE))

    def _post(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise AgentdError("the runner is closed", _ERR_STATE)
            self._calls.append(call)
            _c.agentd_loop_wakeup(self._loop)

    def _check_waiter(self) -> None:
        """Whoever would wait for the thread for ever is told."""
        if threading.current_thread() is self._thread:
            raise AgentdError("not from a callback of this runner", _ERR_REENTRANT)
        if self._is_parents:
            raise AgentdError("the runner is the parent process's", _ERR_STATE)

    def _ask(
        self, call: Callable[[concurrent.futures.Future[Any]], None]
    ) -> concurrent.futures.Future[Any]:
        """A future that call(future), made on the thread, answers now or later."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def ask() -> None:
            try:
                call(future)
            except BaseException as failure:
                _answer(future, failure=failure)

        self._awaited.add(future)
        future.add_done_callback(self._awaited.discard)
        try:
            self._post(ask)
        except BaseException:
            self._awaited.discard(future)
            raise
        return future

    def _call(self, function: Callable[[], Any]) -> Any:
        """What function() returns, called on the thread."""
        self._check_waiter()
        return self._ask(lambda future: _answer(future, function())).result()

    def close(self, grace: float = 2.0) -> None:
        """End what runs, after a grace in seconds, and the thread. Idempotent; not for signal
        handlers, and nothing in a forked child."""
        if not grace >= 0:
            raise ValueError(f"grace is below 0: {grace}")
        grace_ms = int(min(grace * 1000, _UINT32_MAX))

        @_lib.RUNNER_FN
        def done(_runner: int, _userdata: int) -> None:
            self._gone = True
            _c.agentd_loop_wakeup(self._loop)

        def shutdown() -> None:
            # The library calls it after whoever waits below may have been interrupted.
            self._done = done
            _c.agentd_runner_shutdown(self._ptr, grace_ms, done, None)

        if self._is_parents:
            return
        self._check_waiter()
        with self._lock:
            if not self._closed:
                self._closed = True
                self._calls.append(shutdown)
                _c.agentd_loop_wakeup(self._loop)
        self._thread.join()

    def _context(self, context: Optional[Context]) -> Context:
        return context or Context(policy=self._policy, workdir=os.getcwd())

    def start(
        self,
        command: Command,
        *,
        timeout: Optional[float] = None,
        context: Optional[Context] = None,
        limits: Optional[Mapping[str, int]] = None,
        stdin: Union[Bytes, int, None] = None,
        stdout: Optional[File] = None,
        stderr: Optional[File] = None,
        keep: Optional[tuple[int, int]] = None,
        merge_stderr: bool = False,
        kill_on_output: bool = False,
        grace: Optional[float] = None,
        on_output: Optional[OutputFn] = None,
        on_denied: Optional[DeniedFn] = None,
        stream: bool = False,
    ) -> Execution:
        """Start a script (str), a program with its arguments (a sequence), or Params.

        timeout is in seconds; None: the library's 30; math.inf: as long as the policies allow.
        limits: members of struct agentd_limits, such as mem_bytes. grace is from SIGTERM to
        SIGKILL, in seconds, else 2.

        stdin is bytes, or subprocess.PIPE: then Execution.write() and close_stdin() give it; else
        it is empty. Output is kept for the result: all of it, or with keep=(head, tail) the first
        and last so many bytes of each stream. Or it goes to on_output(stream, bytes) on the
        runner's thread, or with stream=True to an iterator. What there is of stdout and stderr (a
        descriptor, what has one, or subprocess.DEVNULL) gets that stream in place of all these.
        With merge_stderr standard error is part of standard output. Output above the limit
        output_bytes is dropped, or with kill_on_output the command's end.

        on_denied(Denial) hears on the runner's thread of what the policies stopped. What cannot be
        started for reasons of the library is raised by Execution.wait().
        """
        if on_output is not None and stream:
            raise ValueError("on_output and stream exclude each other")
        if keep is not None:
            if on_output is not None or stream:
                raise ValueError("keep is for output that is kept: not with on_output or stream")
            if len(keep) != 2 or not all(isinstance(n, int) and 0 <= n < 1 << 62 for n in keep):
                raise ValueError(f"keep is not two numbers of bytes: {keep!r}")
        options = _Options(limits, stdin, merge_stderr, kill_on_output, grace)
        files = _Files({STDOUT: stdout, STDERR: stderr})
        params = _params(command, timeout)
        execution = Execution(self, options, on_output, on_denied, stream, keep, files)

        def begin() -> None:
            try:
                execution._begin(context, params)
            except BaseException as failure:
                with execution._change:
                    execution._over = True
                    execution._tell()
                execution._future.set_exception(failure)
            finally:
                _c.agentd_params_unref(params)

        try:
            context = self._context(context)
            self._post(begin)
        except BaseException:
            _c.agentd_params_unref(params)
            raise
        return execution

    def run(self, command: Command, **options: Any) -> Result:
        """Start and wait; the options are those of start(). What ends the waiting, as an exception
        of a signal handler does, cancels the command."""
        execution = self.start(command, **options)
        try:
            return execution.wait()
        except BaseException:
            execution.cancel()
            raise

    async def run_async(self, command: Command, **options: Any) -> Result:
        """Start and wait, without blocking asyncio's loop; the options are those of start()."""
        return await self.start(command, **options).wait_async()

    def explain(
        self,
        command: Command,
        *,
        timeout: Optional[float] = None,
        context: Optional[Context] = None,
    ) -> Mapping[str, Any]:
        """Would this run, and how? The backend, limits, names of the environment, and the
        refusal."""
        params = _params(command, timeout)
        try:
            args = (self._ptr, self._context(context)._ptr, params)
            return _object(self._call(lambda: _json(_c.agentd_runner_explain, *args)))
        finally:
            _c.agentd_params_unref(params)


class Pool(_Reference):
    """Persistent sessions of a runner: one sandbox for each id, with files that outlive it.
    `document` has the members of agentd_pool(5). The runner keeps it: with that its sessions
    are stopped, and their files stay.

        pool = agentd.Pool(runner, {"enabled": True, "backend": "sandbox", "volume_root": path})
        runner.run("make", context=agentd.Context(policy=p, workdir="/tmp", session=uuid))
    """

    _unref = _c.agentd_pool_unref

    def __init__(self, runner: Runner, document: Mapping[str, Any]) -> None:
        data = json.dumps(document).encode()

        def make() -> c_void_p:
            pool = _new(_c.agentd_pool_new, runner._ptr, data, len(data))
            try:
                _try(_c.agentd_runner_set_pool, runner._ptr, pool)
            except BaseException:
                _c.agentd_pool_unref(pool)
                raise
            return pool

        self._runner = runner
        self._ptr: c_void_p = runner._call(make)

    def _begin(self, function: Any, *args: Any) -> concurrent.futures.Future[None]:
        def begin(future: concurrent.futures.Future[None]) -> None:
            number = next(_numbers)
            _answered[number] = future
            code = function(self._ptr, *args, _on_done, number)
            if code < 0:
                del _answered[number]
                raise AgentdError(_c.agentd_strerror(code).decode(), code)

        return self._runner._ask(begin)

    def stop(self, session: str) -> None:
        """Shut a session down when its command, if it has one, has ended, and wait for that.
        Its files stay."""
        self._runner._check_waiter()
        self._begin(_c.agentd_pool_stop, _text(session)).result()

    async def stop_async(self, session: str) -> None:
        """The same for asyncio."""
        await asyncio.wrap_future(self._begin(_c.agentd_pool_stop, _text(session)))

    def maintain(self) -> None:
        """One pass of maintenance, which else comes every minute, and wait for what it began:
        idle sessions are stopped, stopped ones backed up and pruned."""
        self._runner._check_waiter()
        self._begin(_c.agentd_pool_maintain).result()

    async def maintain_async(self) -> None:
        """The same for asyncio."""
        await asyncio.wrap_future(self._begin(_c.agentd_pool_maintain))

    @property
    def document(self) -> Mapping[str, Any]:
        """Its sessions and what they do."""
        return _object(self._runner._call(lambda: _json(_c.agentd_pool_to_json, self._ptr)))


# What pools have begun, by the userdata of its callback.
_answered: dict[int, concurrent.futures.Future[None]] = {}


@_lib.POOL_FN
def _on_done(_pool: int, err: Optional[int], number: int) -> None:
    _answer(_answered.pop(number), failure=_error(err) if err else None)


def probe(
    *,
    cached: bool = True,
    helper_path: Union[str, os.PathLike[str], None] = None,
    cache_dir: Union[str, os.PathLike[str], None] = None,
) -> Mapping[str, Any]:
    """What this machine can do, found by trying it, which takes about a second unless it is known
    already: docs/probe.schema.json. With cached=False it is tried whatever is known."""
    opts = _lib.ProbeOpts(
        size=ctypes.sizeof(_lib.ProbeOpts), flags=0 if cached else _PROBE_NO_CACHE
    )
    if helper_path is not None:
        opts.helper_path = _text(helper_path)
    if cache_dir is not None:
        opts.cache_dir = _text(cache_dir)
    found: concurrent.futures.Future[Mapping[str, Any]] = concurrent.futures.Future()

    @_lib.PROBE_FN
    def on_probe(ptr: Optional[int], err: Optional[int], _userdata: int) -> None:
        try:
            if err:
                raise _error(err)
            found.set_result(_object(_json(_c.agentd_probe_to_json, ptr)))
        except BaseException as failure:
            found.set_exception(failure)

    def look() -> None:
        try:
            _try(_c.agentd_probe_start, byref(opts), on_probe, None)
        except BaseException as failure:
            found.set_exception(failure)

    # Nobody would hear of what a signal handler raises in on_probe(), nor of what was found.
    threading.Thread(target=look, name="agentd-probe").start()
    return found.result()


async def probe_async(**options: Any) -> Mapping[str, Any]:
    """The same for asyncio."""
    return await asyncio.to_thread(probe, **options)


_runners: weakref.WeakSet[Runner] = weakref.WeakSet()
_default: Optional[Runner] = None
_default_lock = threading.Lock()


def _forked() -> None:
    """In a forked child: the runners, and their threads, stayed with the parent."""
    global _default, _default_lock
    for runner in list(_runners):
        runner._lock = threading.RLock()
        runner._closed = runner._is_parents = True
    _default, _default_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forked)


def _close_all() -> None:
    """At the interpreter's end, after which no callback may come."""
    for runner in list(_runners):
        runner.close()


atexit.register(_close_all)


def _runner() -> Runner:
    """The one of run() and run_async(): made by the first, ends with the interpreter."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Runner()
        return _default


def run(command: Command, **options: Any) -> Result:
    """Run a command in a sandbox with the system's programs and the working directory; the
    options are those of Runner.start()."""
    return _runner().run(command, **options)


async def run_async(command: Command, **options: Any) -> Result:
    """The same for asyncio."""
    return await _runner().run_async(command, **options)
