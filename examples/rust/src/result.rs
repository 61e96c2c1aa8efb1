// SPDX-License-Identifier: MIT
use std::ffi::CStr;
use std::fmt;
use std::os::raw::c_char;
use std::ptr;
use std::time::Duration;

use crate::error::{make_text, Error, Result};
use crate::handle::{Handle, Object};
use crate::sys;

impl Object for sys::agentd_result {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_result_unref(object) }
    }
}

/// How a command ended: what callers switch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// Exit code 0.
    Ok,
    /// Another exit code, a signal that was not the library's, or it could not be started.
    Error,
    /// Refused by a policy or for want of isolation: nothing was run.
    Denied,
    /// The limit of wall clock or idle time.
    Timeout,
    /// Ended by the library for another cause.
    Killed,
    /// A status that is newer than this crate.
    Unknown(i32),
}

impl Status {
    fn from_raw(status: sys::agentd_status) -> Self {
        match u32::try_from(status) {
            Ok(sys::AGENTD_STATUS_OK) => Self::Ok,
            Ok(sys::AGENTD_STATUS_ERROR) => Self::Error,
            Ok(sys::AGENTD_STATUS_DENIED) => Self::Denied,
            Ok(sys::AGENTD_STATUS_TIMEOUT) => Self::Timeout,
            Ok(sys::AGENTD_STATUS_KILLED) => Self::Killed,
            _ => Self::Unknown(status),
        }
    }

    fn to_raw(self) -> sys::agentd_status {
        match self {
            Self::Ok => sys::AGENTD_STATUS_OK as _,
            Self::Error => sys::AGENTD_STATUS_ERROR as _,
            Self::Denied => sys::AGENTD_STATUS_DENIED as _,
            Self::Timeout => sys::AGENTD_STATUS_TIMEOUT as _,
            Self::Killed => sys::AGENTD_STATUS_KILLED as _,
            Self::Unknown(status) => status,
        }
    }
}

/// `ok`, `timeout`, ...
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: takes any number, returns static text.
        f.write_str(unsafe { borrowed(sys::agentd_status_name(self.to_raw())) })
    }
}

/// Why exactly it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// By itself, with an exit code.
    Exited,
    /// By a signal that was not the library's.
    Signaled,
    /// Limit of wall clock.
    Timeout,
    /// Limit of idle time.
    IdleTimeout,
    /// Limit of CPU time.
    CpuTime,
    /// Limit of memory.
    Memory,
    /// Limit of tasks.
    Pids,
    /// Limit of bytes written to storage.
    Io,
    /// Limit of output, where it kills.
    Output,
    /// Cancelled, or the runner went away.
    Canceled,
    /// The closure of its output refused or panicked.
    Sink,
    /// By the system call filter.
    Violation,
    /// Refused by a policy before it started.
    Policy,
    /// The isolation that is required is not to be had.
    Isolation,
    /// It could not be started: see [`ExecResult::error`].
    Spawn,
    /// The helper or the machine died under it.
    BackendLost,
    /// Limit of the size of a file.
    FileSize,
    /// A cause that is newer than this crate.
    Unknown(i32),
}

const CAUSES: [(u32, Cause); 17] = [
    (sys::AGENTD_CAUSE_EXITED, Cause::Exited),
    (sys::AGENTD_CAUSE_SIGNALED, Cause::Signaled),
    (sys::AGENTD_CAUSE_TIMEOUT, Cause::Timeout),
    (sys::AGENTD_CAUSE_IDLE_TIMEOUT, Cause::IdleTimeout),
    (sys::AGENTD_CAUSE_CPU_TIME, Cause::CpuTime),
    (sys::AGENTD_CAUSE_MEMORY, Cause::Memory),
    (sys::AGENTD_CAUSE_PIDS, Cause::Pids),
    (sys::AGENTD_CAUSE_IO, Cause::Io),
    (sys::AGENTD_CAUSE_OUTPUT, Cause::Output),
    (sys::AGENTD_CAUSE_CANCELED, Cause::Canceled),
    (sys::AGENTD_CAUSE_SINK, Cause::Sink),
    (sys::AGENTD_CAUSE_VIOLATION, Cause::Violation),
    (sys::AGENTD_CAUSE_POLICY, Cause::Policy),
    (sys::AGENTD_CAUSE_ISOLATION, Cause::Isolation),
    (sys::AGENTD_CAUSE_SPAWN, Cause::Spawn),
    (sys::AGENTD_CAUSE_BACKEND_LOST, Cause::BackendLost),
    (sys::AGENTD_CAUSE_FILE_SIZE, Cause::FileSize),
];

impl Cause {
    fn from_raw(cause: i32) -> Self {
        let known = CAUSES.iter().find(|(raw, _)| i64::from(*raw) == i64::from(cause));
        known.map_or(Self::Unknown(cause), |(_, known)| *known)
    }

    fn to_raw(self) -> i32 {
        match self {
            Self::Unknown(cause) => cause,
            known => {
                CAUSES.iter().find(|(_, cause)| *cause == known).map_or(0, |(raw, _)| *raw as _)
            }
        }
    }
}

/// `exited`, `idle_timeout`, ...
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: takes any number, returns static text.
        f.write_str(unsafe { borrowed(sys::agentd_cause_name(self.to_raw())) })
    }
}

/// Whether a layer of protection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerState {
    /// It does not.
    Absent,
    /// In part, or with a substitute: see the reason.
    Degraded,
    /// It does.
    Enforced,
}

impl LayerState {
    pub(crate) fn from_raw(state: i32) -> Self {
        match state {
            1 => Self::Enforced,
            0 => Self::Degraded,
            _ => Self::Absent,
        }
    }
}

/// One layer of the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer<'a> {
    /// Its name: `landlock`.
    pub name: &'a str,
    /// Whether it holds.
    pub state: LayerState,
    /// How, or why not.
    pub reason: &'a str,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Metric {
    /// From start to exit.
    WallNs = sys::AGENTD_METRIC_WALL_NS as isize,
    /// User and system time of the whole tree.
    CpuNs = sys::AGENTD_METRIC_CPU_NS as isize,
    /// Of the tree, or without a control group of the largest process.
    MemoryPeakBytes = sys::AGENTD_METRIC_MEMORY_PEAK_BYTES as isize,
    /// Produced.
    StdoutBytes = sys::AGENTD_METRIC_STDOUT_BYTES as isize,
    /// Produced.
    StderrBytes = sys::AGENTD_METRIC_STDERR_BYTES as isize,
    /// Produced, not delivered.
    DroppedBytes = sys::AGENTD_METRIC_DROPPED_BYTES as isize,
    /// Until it ran.
    StartupNs = sys::AGENTD_METRIC_STARTUP_NS as isize,
    /// Connections to hosts.
    NetConnections = sys::AGENTD_METRIC_NET_CONNECTIONS as isize,
    /// By the command, to hosts.
    NetSentBytes = sys::AGENTD_METRIC_NET_SENT_BYTES as isize,
    /// By the command, from hosts.
    NetReceivedBytes = sys::AGENTD_METRIC_NET_RECEIVED_BYTES as isize,
}

/// How a command ended, and its output as far as nobody else has taken it.
#[derive(Debug)]
pub struct ExecResult {
    handle: Handle<sys::agentd_result>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    omitted: [u64; 2],
}

// SAFETY: immutable, and everything in agentd/result.h may be called from any thread.
unsafe impl Send for ExecResult {}
// SAFETY: as above.
unsafe impl Sync for ExecResult {}

/// # Safety
///
/// `data` points to a string that lives as long as the caller uses what is returned.
pub(crate) unsafe fn borrowed<'a>(data: *const c_char) -> &'a str {
    // SAFETY: as the caller promises. What is borrowed here are names and sentences of the
    // library's, which are text.
    unsafe { CStr::from_ptr(data) }.to_str().unwrap_or("")
}

impl ExecResult {
    /// `output`: of each stream what was kept, and how many bytes are missing from it.
    pub(crate) fn new(handle: Handle<sys::agentd_result>, output: [(Vec<u8>, u64); 2]) -> Self {
        let [(stdout, no_stdout), (stderr, no_stderr)] = output;
        Self { handle, stdout, stderr, omitted: [no_stdout, no_stderr] }
    }

    fn as_ptr(&self) -> *const sys::agentd_result {
        self.handle.as_ptr()
    }

    /// What callers switch on.
    pub fn status(&self) -> Status {
        // SAFETY: it lives as long as self.
        Status::from_raw(unsafe { sys::agentd_result_status(self.as_ptr()) })
    }

    /// Exit code 0.
    pub fn is_ok(&self) -> bool {
        self.status() == Status::Ok
    }

    /// Why exactly.
    pub fn cause(&self) -> Cause {
        // SAFETY: it lives as long as self.
        Cause::from_raw(unsafe { sys::agentd_result_cause(self.as_ptr()) })
    }

    /// `None` unless it exited by itself.
    pub fn exit_code(&self) -> Option<i32> {
        // SAFETY: it lives as long as self.
        let code = unsafe { sys::agentd_result_exit_code(self.as_ptr()) };
        (code >= 0).then_some(code)
    }

    /// Number of the signal that ended it.
    pub fn signal(&self) -> Option<i32> {
        // SAFETY: it lives as long as self.
        let signal = unsafe { sys::agentd_result_signal(self.as_ptr()) };
        (signal > 0).then_some(signal)
    }

    /// What it wrote to its standard output.
    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// What it wrote to its standard error.
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// Bytes that are missing between the head and the tail of [`ExecResult::stdout`], with
    /// [`ExecOptions::keep`](crate::ExecOptions::keep).
    pub fn stdout_omitted(&self) -> u64 {
        self.omitted[0]
    }

    /// The same with [`ExecResult::stderr`].
    pub fn stderr_omitted(&self) -> u64 {
        self.omitted[1]
    }

    /// Both outputs, without a copy.
    pub fn into_output(self) -> (Vec<u8>, Vec<u8>) {
        (self.stdout, self.stderr)
    }

    /// The backend that ran it, or nothing.
    pub fn backend(&self) -> &str {
        // SAFETY: it lives as long as self, the text too.
        unsafe { borrowed(sys::agentd_result_backend(self.as_ptr())) }
    }

    /// The limit that was hit, also where the command survived that.
    pub fn limit(&self) -> Option<&str> {
        // SAFETY: it lives as long as self, the text too.
        let limit = unsafe { borrowed(sys::agentd_result_limit(self.as_ptr())) };
        (!limit.is_empty()).then_some(limit)
    }

    /// Output was produced and not delivered.
    pub fn is_truncated(&self) -> bool {
        // SAFETY: it lives as long as self.
        unsafe { sys::agentd_result_truncated(self.as_ptr()) != 0 }
    }

    /// What could not be done.
    pub fn error(&self) -> Option<Error> {
        // SAFETY: it lives as long as self, the error too.
        unsafe {
            sys::agentd_result_error(self.as_ptr()).as_ref().map(|err| Error::from_object(err))
        }
    }

    /// One measurement, if it was made.
    pub fn metric(&self, metric: Metric) -> Option<u64> {
        let mut value = 0;
        // SAFETY: it lives as long as self; value is written to during the call.
        let code = unsafe { sys::agentd_result_metric(self.as_ptr(), metric as i32, &mut value) };
        (code >= 0).then_some(value)
    }

    /// From start to exit, if it ran.
    pub fn duration(&self) -> Option<Duration> {
        self.metric(Metric::WallNs).map(Duration::from_nanos)
    }

    /// The receipt: each layer of protection.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = Layer<'_>> {
        // SAFETY: it lives as long as self.
        let count = unsafe { sys::agentd_result_protection_count(self.as_ptr()) };
        (0..count).map(move |i| self.layer(i))
    }

    fn layer(&self, i: usize) -> Layer<'_> {
        let (mut name, mut state, mut reason) = (ptr::null(), 0, ptr::null());
        // SAFETY: i is below their number, so that all three are written; the texts live as
        // long as self.
        unsafe {
            sys::agentd_result_protection_at(self.as_ptr(), i, &mut name, &mut state, &mut reason);
            Layer {
                name: borrowed(name),
                state: LayerState::from_raw(state),
                reason: borrowed(reason),
            }
        }
    }

    /// All of it but the output, the receipt included, as docs/result.schema.json describes.
    pub fn to_json(&self) -> Result<String> {
        // SAFETY: it lives as long as self.
        make_text(|ret, len, err| unsafe {
            sys::agentd_result_to_json(self.as_ptr(), ret, len, err)
        })
    }
}
