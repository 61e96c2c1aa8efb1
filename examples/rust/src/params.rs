// SPDX-License-Identifier: MIT
use std::ffi::{CStr, OsStr};
use std::ptr;
use std::time::Duration;

use crate::error::{c_string, make, make_text, milliseconds, Result};
use crate::handle::{Handle, Object};
use crate::sys;

impl Object for sys::agentd_params {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_params_unref(object) }
    }
}

/// What to run: the untrusted part, usually a model's.
#[derive(Debug)]
pub struct Params(Handle<sys::agentd_params>);

// SAFETY: immutable and shareable between threads, as agentd/params.h says.
unsafe impl Send for Params {}
// SAFETY: as above.
unsafe impl Sync for Params {}

impl Params {
    /// A script for the context's shell. Without a timeout it is 30 seconds.
    pub fn shell(script: impl AsRef<OsStr>, timeout: Option<Duration>) -> Result<Self> {
        let script = c_string("/command", script)?;
        let timeout_ms = timeout_ms(timeout)?;
        // SAFETY: the script lives during the call.
        make(|ret, err| unsafe {
            sys::agentd_params_new_shell(script.as_ptr(), timeout_ms, ret, err)
        })
        .map(Self)
    }

    /// A program with its arguments, and no shell. Without a timeout it is 30 seconds.
    pub fn argv(argv: &[impl AsRef<OsStr>], timeout: Option<Duration>) -> Result<Self> {
        let argv = argv.iter().map(|arg| c_string("/argv", arg)).collect::<Result<Vec<_>>>()?;
        let raw: Vec<_> = argv.iter().map(|arg| arg.as_ptr()).chain([ptr::null()]).collect();
        let timeout_ms = timeout_ms(timeout)?;
        // SAFETY: all live during the call, and the array ends with NULL.
        make(|ret, err| unsafe { sys::agentd_params_new_argv(raw.as_ptr(), timeout_ms, ret, err) })
            .map(Self)
    }

    /// From a model's tool call: the members of agentd_params(5).
    pub fn from_json(json: &str) -> Result<Self> {
        // SAFETY: the text lives during the call.
        make(|ret, err| unsafe {
            sys::agentd_params_parse(json.as_ptr().cast(), json.len(), ret, err)
        })
        .map(Self)
    }

    /// JSON Schema of what [`Params::from_json`] takes, for the definition of a model's tool.
    pub fn schema() -> &'static str {
        // SAFETY: static text.
        let schema = unsafe { CStr::from_ptr(sys::agentd_params_schema()) };
        schema.to_str().expect("a schema is ASCII")
    }

    /// With the timeout that holds.
    pub fn to_json(&self) -> Result<String> {
        // SAFETY: it lives as long as self.
        make_text(|ret, len, err| unsafe {
            sys::agentd_params_to_json(self.as_ptr(), ret, len, err)
        })
    }

    /// For what only [`sys`](crate::sys) has: borrowed, and of this thread unless its header says
    /// otherwise.
    pub fn as_ptr(&self) -> *mut sys::agentd_params {
        self.0.as_ptr()
    }
}

fn timeout_ms(timeout: Option<Duration>) -> Result<u64> {
    timeout.map_or(Ok(0), |timeout| milliseconds("/timeout_ms", timeout))
}
