# SPDX-License-Identifier: MIT
"""The C functions this package uses, as ctypes sees them."""

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

LIB = ctypes.CDLL("libagentd.so.0")

_OUT = POINTER(c_void_p)

OUTPUT_FN = ctypes.CFUNCTYPE(c_int32, c_void_p, c_int32, c_void_p, c_size_t, c_void_p)
FINISHED_FN = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
DRAINED_FN = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
RUNNER_FN = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
POOL_FN = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
DENIED_FN = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
ASK_FN = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
DESTROY_FN = ctypes.CFUNCTYPE(None, c_void_p)
LOG_FN = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
PROBE_FN = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)


class RunnerOpts(ctypes.Structure):
    """struct agentd_runner_opts."""

    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("event_base", c_void_p),
        ("policy", c_void_p),
        ("log", LOG_FN),
        ("log_userdata", c_void_p),
        ("log_level", c_int32),
        ("max_running", c_uint32),
        ("max_queued", c_uint32),
        ("heartbeat_ms", c_uint32),
        ("drain_ms", c_uint32),
        ("reserved0", c_uint32),
        ("helper_path", c_char_p),
        ("sandbox_tmp_bytes", c_uint64),
        ("sandbox_uid", c_uint32),
        ("sandbox_gid", c_uint32),
        ("sandbox_prewarm", c_uint32),
        ("reserved1", c_uint32),
        ("microvm_image", c_char_p),
        ("microvm_monitor", c_char_p),
        ("microvm_guest", c_char_p),
        ("microvm_memory_bytes", c_uint64),
        ("microvm_workdir_bytes", c_uint64),
        ("microvm_uid", c_uint32),
        ("microvm_gid", c_uint32),
        ("net_resolver", c_char_p),
    ]


class Limits(ctypes.Structure):
    """struct agentd_limits."""

    _fields_ = [
        ("size", c_uint32),
        ("pids_max", c_uint32),
        ("timeout_ms", c_uint64),
        ("idle_timeout_ms", c_uint64),
        ("cpu_time_ms", c_uint64),
        ("mem_bytes", c_uint64),
        ("io_bytes", c_uint64),
        ("output_bytes", c_uint64),
        ("file_bytes", c_uint64),
        ("cpu_ms_per_100ms", c_uint32),
        ("open_files_max", c_uint32),
        ("net_bytes", c_uint64),
    ]


class ExecOpts(ctypes.Structure):
    """struct agentd_exec_opts."""

    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("limits", POINTER(Limits)),
        ("grace_ms", c_uint32),
        ("reserved0", c_uint32),
    ]


class AskOpts(ctypes.Structure):
    """struct agentd_ask_opts."""

    _fields_ = [
        ("size", c_uint32),
        ("timeout_ms", c_uint32),
        ("fallback", c_int32),
        ("reserved0", c_uint32),
        ("ask", ASK_FN),
        ("userdata", c_void_p),
        ("destroy", DESTROY_FN),
    ]


class SinkOps(ctypes.Structure):
    """struct agentd_sink_ops."""

    _fields_ = [
        ("size", c_uint32),
        ("reserved0", c_uint32),
        ("started", c_void_p),
        ("output", OUTPUT_FN),
        ("stdin_drained", DRAINED_FN),
        ("log", c_void_p),
        ("denied", DENIED_FN),
        ("exited", c_void_p),
        ("finished", FINISHED_FN),
        ("destroy", c_void_p),
    ]


class ProbeOpts(ctypes.Structure):
    """struct agentd_probe_opts."""

    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("event_base", c_void_p),
        ("helper_path", c_char_p),
        ("cache_dir", c_char_p),
    ]


_PROTOTYPES = {
    "agentd_loop_new": (c_int, _OUT, _OUT),
    "agentd_loop_event_base": (c_void_p, c_void_p),
    "agentd_loop_run": (c_int, c_void_p, c_int64, _OUT),
    "agentd_loop_wakeup": (c_int, c_void_p),
    "agentd_loop_unref": (None, c_void_p),
    "agentd_runner_new": (c_int, POINTER(RunnerOpts), _OUT, _OUT),
    "agentd_runner_set_pool": (c_int, c_void_p, c_void_p, _OUT),
    "agentd_runner_explain": (
        c_int, c_void_p, c_void_p, c_void_p, POINTER(c_void_p), POINTER(c_size_t), _OUT,
    ),
    "agentd_runner_shutdown": (c_int, c_void_p, c_uint32, RUNNER_FN, c_void_p),
    "agentd_runner_unref": (None, c_void_p),
    "agentd_policy_new": (c_int, _OUT, _OUT),
    "agentd_policy_from_json": (c_int, c_char_p, c_size_t, _OUT, _OUT),
    "agentd_policy_allow_path": (c_int, c_void_p, c_char_p, c_uint32, _OUT),
    "agentd_policy_deny_path": (c_int, c_void_p, c_char_p, _OUT),
    "agentd_policy_set_min_isolation": (c_int, c_void_p, c_int32, _OUT),
    "agentd_policy_to_json": (c_int, c_void_p, POINTER(c_void_p), POINTER(c_size_t), _OUT),
    "agentd_policy_unref": (None, c_void_p),
    "agentd_context_new": (c_int, _OUT, _OUT),
    "agentd_context_from_json": (c_int, c_char_p, c_size_t, _OUT, _OUT),
    "agentd_context_set_policy": (c_int, c_void_p, c_void_p, _OUT),
    "agentd_context_set_workdir": (c_int, c_void_p, c_char_p, _OUT),
    "agentd_context_set_backend": (c_int, c_void_p, c_char_p, _OUT),
    "agentd_context_set_env": (c_int, c_void_p, c_char_p, c_char_p, _OUT),
    "agentd_context_set_session": (c_int, c_void_p, c_char_p, c_char_p, c_char_p, _OUT),
    "agentd_context_set_ask": (c_int, c_void_p, POINTER(AskOpts), _OUT),
    "agentd_context_set_netns": (c_int, c_void_p, c_int32, _OUT),
    "agentd_context_unref": (None, c_void_p),
    "agentd_ask_ref": (c_void_p, c_void_p),
    "agentd_ask_unref": (None, c_void_p),
    "agentd_ask_host": (c_char_p, c_void_p),
    "agentd_ask_port": (c_int32, c_void_p),
    "agentd_ask_exec": (c_void_p, c_void_p),
    "agentd_ask_answer": (c_int, c_void_p, c_int32, _OUT),
    "agentd_params_new_shell": (c_int, c_char_p, c_uint64, _OUT, _OUT),
    "agentd_params_new_argv": (c_int, POINTER(c_char_p), c_uint64, _OUT, _OUT),
    "agentd_params_parse": (c_int, c_char_p, c_size_t, _OUT, _OUT),
    "agentd_params_to_json": (c_int, c_void_p, POINTER(c_void_p), POINTER(c_size_t), _OUT),
    "agentd_params_schema": (c_char_p,),
    "agentd_params_ref": (c_void_p, c_void_p),
    "agentd_params_unref": (None, c_void_p),
    "agentd_sink_new": (c_int, POINTER(SinkOps), c_void_p, _OUT, _OUT),
    "agentd_sink_new_buffer": (c_int, c_size_t, c_size_t, _OUT, _OUT),
    "agentd_sink_new_fd": (c_int, c_int32, c_int32, _OUT, _OUT),
    "agentd_sink_new_tee": (c_int, c_void_p, c_void_p, _OUT, _OUT),
    "agentd_sink_buffer_get": (
        c_int, c_void_p, c_int32, POINTER(c_void_p), POINTER(c_size_t), POINTER(c_uint64),
    ),
    "agentd_sink_unref": (None, c_void_p),
    "agentd_denial_kind": (c_char_p, c_void_p),
    "agentd_denial_target": (c_char_p, c_void_p),
    "agentd_denial_rule": (c_char_p, c_void_p),
    "agentd_denial_remedy": (c_char_p, c_void_p),
    "agentd_exec_start": (
        c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(ExecOpts), _OUT, _OUT,
    ),
    "agentd_exec_signal": (c_int, c_void_p, c_int32, _OUT),
    "agentd_exec_write": (c_int, c_void_p, c_void_p, c_size_t, POINTER(c_size_t)),
    "agentd_exec_close_stdin": (c_int, c_void_p),
    "agentd_exec_cancel": (c_int, c_void_p),
    "agentd_exec_kill": (c_int, c_void_p),
    "agentd_exec_resume": (c_int, c_void_p, c_int32),
    "agentd_exec_unref": (None, c_void_p),
    "agentd_result_status": (c_int32, c_void_p),
    "agentd_result_cause": (c_int32, c_void_p),
    "agentd_result_exit_code": (c_int32, c_void_p),
    "agentd_result_signal": (c_int32, c_void_p),
    "agentd_result_backend": (c_char_p, c_void_p),
    "agentd_status_name": (c_char_p, c_int32),
    "agentd_cause_name": (c_char_p, c_int32),
    "agentd_result_to_json": (c_int, c_void_p, POINTER(c_void_p), POINTER(c_size_t), _OUT),
    "agentd_pool_new": (c_int, c_void_p, c_char_p, c_size_t, _OUT, _OUT),
    "agentd_pool_maintain": (c_int, c_void_p, POOL_FN, c_void_p),
    "agentd_pool_stop": (c_int, c_void_p, c_char_p, POOL_FN, c_void_p),
    "agentd_pool_to_json": (c_int, c_void_p, POINTER(c_void_p), POINTER(c_size_t), _OUT),
    "agentd_pool_unref": (None, c_void_p),
    "agentd_probe_start": (c_int, POINTER(ProbeOpts), PROBE_FN, c_void_p, _OUT),
    "agentd_probe_to_json": (c_int, c_void_p, POINTER(c_void_p), POINTER(c_size_t), _OUT),
    "agentd_log_record_level": (c_int32, c_void_p),
    "agentd_log_record_component": (c_char_p, c_void_p),
    "agentd_log_record_message": (c_char_p, c_void_p),
    "agentd_log_record_field_count": (c_size_t, c_void_p),
    "agentd_log_record_field_key": (c_char_p, c_void_p, c_size_t),
    "agentd_log_record_field_value": (c_char_p, c_void_p, c_size_t),
    "agentd_free": (None, c_void_p),
    "agentd_strerror": (c_char_p, c_int),
    "agentd_error_code": (c_int, c_void_p),
    "agentd_error_os_errno": (c_int, c_void_p),
    "agentd_error_message": (c_char_p, c_void_p),
    "agentd_error_pointer": (c_char_p, c_void_p),
    "agentd_error_unref": (None, c_void_p),
    "agentd_version_string": (c_char_p,),
}
for _name, (_returns, *_takes) in _PROTOTYPES.items():
    _function = getattr(LIB, _name)
    _function.restype = _returns
    _function.argtypes = _takes
