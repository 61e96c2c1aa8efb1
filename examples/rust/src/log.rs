// SPDX-License-Identifier: MIT
use std::cell::Cell;
use std::fmt;
use std::os::raw::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::error::text;
use crate::panics::drop_quietly;
use crate::sys;

/// How severe a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Something failed that should not.
    Error,
    /// A command was ended by a limit, or runs with less than was asked for.
    Warn,
    /// Commands that start, run for long and end.
    Info,
    /// Each step.
    Debug,
}

impl LogLevel {
    const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// One that is newer than this crate is as detailed as can be.
    fn from_raw(level: i32) -> Self {
        *Self::ALL.iter().find(|known| known.to_raw() == level).unwrap_or(&Self::Debug)
    }

    pub(crate) fn to_raw(self) -> i32 {
        match self {
            Self::Error => sys::AGENTD_LOG_ERROR as i32,
            Self::Warn => sys::AGENTD_LOG_WARN as i32,
            Self::Info => sys::AGENTD_LOG_INFO as i32,
            Self::Debug => sys::AGENTD_LOG_DEBUG as i32,
        }
    }
}

/// What a runner does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogRecord {
    /// How severe it is.
    pub level: LogLevel,
    /// The part of the library that speaks: `core`, `host`, ...
    pub component: String,
    /// One line of text.
    pub message: String,
    /// Keys and values, such as `child_pid`.
    pub fields: Vec<(String, String)>,
}

impl LogRecord {
    /// # Safety
    ///
    /// `record` lives during the call.
    unsafe fn from_raw(record: *const sys::agentd_log_record) -> Self {
        // SAFETY: as the caller promises; the strings of what exists are never NULL.
        unsafe {
            Self {
                level: LogLevel::from_raw(sys::agentd_log_record_level(record)),
                component: text(sys::agentd_log_record_component(record)),
                message: text(sys::agentd_log_record_message(record)),
                fields: (0..sys::agentd_log_record_field_count(record))
                    .map(|i| {
                        (
                            text(sys::agentd_log_record_field_key(record, i)),
                            text(sys::agentd_log_record_field_value(record, i)),
                        )
                    })
                    .collect(),
            }
        }
    }
}

type LogFn = Box<dyn FnMut(&LogRecord)>;

/// Who hears of a runner's records.
pub(crate) struct Log {
    pub(crate) level: LogLevel,
    /// Absent while it is being called.
    closure: Cell<Option<LogFn>>,
}

impl Log {
    pub(crate) fn new(level: LogLevel, closure: impl FnMut(&LogRecord) + 'static) -> Self {
        Self { level, closure: Cell::new(Some(Box::new(closure))) }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("level", &self.level).finish_non_exhaustive()
    }
}

/// A panic must not unwind through the library, and nobody is there to whom it could go on: it
/// is said, by the hook, and the closure is not called again.
pub(crate) unsafe extern "C" fn on_log(record: *const sys::agentd_log_record, log: *mut c_void) {
    // SAFETY: the log lives as long as its runner.
    let log = unsafe { &*(log as *const Log) };
    let mut closure = match log.closure.take() {
        Some(closure) => closure,
        None => return,
    };
    // SAFETY: the record lives during the call.
    let record = unsafe { LogRecord::from_raw(record) };
    match catch_unwind(AssertUnwindSafe(|| closure(&record))) {
        Ok(()) => log.closure.set(Some(closure)),
        Err(panic) => {
            drop_quietly(closure);
            drop_quietly(panic);
        }
    }
}
