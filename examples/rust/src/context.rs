// SPDX-License-Identifier: MIT
use std::ffi::OsStr;
use std::os::unix::io::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ask::Ask;
use crate::error::{c_string, check, make, Result};
use crate::handle::{Handle, Object};
use crate::limits::Limits;
use crate::policy::{Access, Policy};
use crate::sys;

impl Object for sys::agentd_context {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_context_unref(object) }
    }
}

/// Where and as whom commands run: the host program's part, never the model's. What a
/// command started with does not change with it. For one thread at a time.
#[derive(Debug)]
pub struct Context {
    handle: Handle<sys::agentd_context>,
    ask: Option<Arc<Ask>>,
}

// SAFETY: the library allows one thread at a time, any; what commands of another thread took
// from it is a snapshot, counted atomically.
unsafe impl Send for Context {}

impl Context {
    /// An empty one: the strongest backend, and no working directory, without which nothing
    /// runs.
    pub fn new() -> Result<Self> {
        // SAFETY: both pointers are written to during the call only.
        make(|ret, err| unsafe { sys::agentd_context_new(ret, err) }).map(Self::from_handle)
    }

    /// From the members of agentd_context(5).
    pub fn from_json(json: &str) -> Result<Self> {
        // SAFETY: the text lives during the call.
        make(|ret, err| unsafe {
            sys::agentd_context_from_json(json.as_ptr().cast(), json.len(), ret, err)
        })
        .map(Self::from_handle)
    }

    fn from_handle(handle: Handle<sys::agentd_context>) -> Self {
        Self { handle, ask: None }
    }

    /// For what only [`sys`](crate::sys) has: borrowed, and of this thread unless its header says
    /// otherwise.
    pub fn as_ptr(&self) -> *mut sys::agentd_context {
        self.handle.as_ptr()
    }

    /// What is allowed, besides what the runner's policy says.
    pub fn set_policy(&mut self, policy: &Policy) -> Result<&mut Self> {
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_context_set_policy(self.as_ptr(), policy.as_ptr(), err)
        })?;
        Ok(self)
    }

    /// Limits besides those of the policies.
    pub fn set_limits(&mut self, limits: &Limits) -> Result<&mut Self> {
        let limits = limits.to_raw()?;
        // SAFETY: both live during the call.
        check(|err| unsafe { sys::agentd_context_set_limits(self.as_ptr(), &limits, err) })?;
        Ok(self)
    }

    /// Backend by name or alias: `host`, `sandbox`, `microvm`.
    pub fn set_backend(&mut self, name: &str) -> Result<&mut Self> {
        let name = c_string("/backend", name)?;
        // SAFETY: both live during the call.
        check(|err| unsafe { sys::agentd_context_set_backend(self.as_ptr(), name.as_ptr(), err) })?;
        Ok(self)
    }

    /// Root file system: an absolute path of a directory or an image.
    pub fn set_rootfs(&mut self, path: impl AsRef<Path>) -> Result<&mut Self> {
        let path = c_string("/rootfs", path.as_ref())?;
        // SAFETY: both live during the call.
        check(|err| unsafe { sys::agentd_context_set_rootfs(self.as_ptr(), path.as_ptr(), err) })?;
        Ok(self)
    }

    /// Working directory: an absolute path without `.` and `..`.
    pub fn set_workdir(&mut self, path: impl AsRef<Path>) -> Result<&mut Self> {
        let path = c_string("/workdir", path.as_ref())?;
        // SAFETY: both live during the call.
        check(|err| unsafe { sys::agentd_context_set_workdir(self.as_ptr(), path.as_ptr(), err) })?;
        Ok(self)
    }

    /// A variable of the command's environment, which is built from nothing.
    pub fn set_env(
        &mut self,
        name: impl AsRef<OsStr>,
        value: impl AsRef<OsStr>,
    ) -> Result<&mut Self> {
        let (name, value) = (c_string("/env", name)?, c_string("/env", value)?);
        // SAFETY: all live during the call.
        check(|err| unsafe {
            sys::agentd_context_set_env(self.as_ptr(), name.as_ptr(), value.as_ptr(), err)
        })?;
        Ok(self)
    }

    /// Keeps a variable out of the command's environment, which else would be there by the backend
    /// or the policies.
    pub fn unset_env(&mut self, name: impl AsRef<OsStr>) -> Result<&mut Self> {
        let name = c_string("/env", name)?;
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_context_set_env(self.as_ptr(), name.as_ptr(), ptr::null(), err)
        })?;
        Ok(self)
    }

    /// A short-lived token, which the command finds in a private file that AGENTD_TOKEN_FILE names;
    /// after its time, if it has one, nothing runs.
    pub fn set_credentials(
        &mut self,
        token: &str,
        expires: Option<SystemTime>,
    ) -> Result<&mut Self> {
        let token = c_string("/credentials", token)?;
        let ms = expires.map_or(0, |time| {
            // 0 stands for no time in C.
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            since.as_millis().clamp(1, u64::MAX.into()) as u64
        });
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_context_set_credentials(self.as_ptr(), token.as_ptr(), ms, err)
        })?;
        Ok(self)
    }

    /// A network namespace to join, which is duplicated.
    pub fn set_netns(&mut self, netns: BorrowedFd<'_>) -> Result<&mut Self> {
        // SAFETY: the context lives during the call, and the descriptor is open.
        check(|err| unsafe {
            sys::agentd_context_set_netns(self.as_ptr(), netns.as_raw_fd(), err)
        })?;
        Ok(self)
    }

    /// Asks about hosts that the policy of this context says nothing about, with
    /// [`Net::Allowlist`](crate::Net::Allowlist); `None`: nobody, and they are denied. There is no
    /// question about what the runner's policy does not allow, and of addresses that only a rule
    /// can allow, as of this machine and of private networks.
    pub fn set_ask(&mut self, ask: Option<Ask>) -> Result<&mut Self> {
        self.ask = match ask {
            Some(ask) => Some(ask.set(self.as_ptr())?),
            None => {
                Ask::unset(self.as_ptr())?;
                None
            }
        };
        Ok(self)
    }

    pub(crate) fn ask(&self) -> Option<Arc<Ask>> {
        self.ask.clone()
    }

    /// Makes the host's absolute `source` appear at the absolute `target`.
    pub fn add_mount(
        &mut self,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        access: Access,
    ) -> Result<&mut Self> {
        let source = c_string("/mounts", source.as_ref())?;
        let target = c_string("/mounts", target.as_ref())?;
        // SAFETY: all live during the call.
        check(|err| unsafe {
            sys::agentd_context_add_mount(
                self.as_ptr(),
                source.as_ptr(),
                target.as_ptr(),
                access.0,
                err,
            )
        })?;
        Ok(self)
    }

    /// Shell and its arguments before the command; `bash -lc` unless set.
    pub fn set_shell(&mut self, argv: &[impl AsRef<OsStr>]) -> Result<&mut Self> {
        let argv = argv.iter().map(|arg| c_string("/shell", arg)).collect::<Result<Vec<_>>>()?;
        let raw: Vec<_> = argv.iter().map(|arg| arg.as_ptr()).chain([ptr::null()]).collect();
        // SAFETY: all live during the call, and the array ends with NULL.
        check(|err| unsafe { sys::agentd_context_set_shell(self.as_ptr(), raw.as_ptr(), err) })?;
        Ok(self)
    }

    /// Given to the command as SMITH_TRACE_ID, and to every log record.
    pub fn set_trace_id(&mut self, id: &str) -> Result<&mut Self> {
        let id = c_string("/trace_id", id)?;
        // SAFETY: both live during the call.
        check(|err| unsafe { sys::agentd_context_set_trace_id(self.as_ptr(), id.as_ptr(), err) })?;
        Ok(self)
    }

    /// Runs in a persistent session of the runner's [`Pool`](crate::Pool), on the session's
    /// files instead of the working directory; `None`: in none. The id is a UUID.
    pub fn set_session(&mut self, id: Option<&str>) -> Result<&mut Self> {
        let id = id.map(|id| c_string("/session", id)).transpose()?;
        let raw = id.as_ref().map_or(ptr::null(), |id| id.as_ptr());
        // SAFETY: all live during the call.
        check(|err| unsafe {
            sys::agentd_context_set_session(self.as_ptr(), raw, ptr::null(), ptr::null(), err)
        })?;
        Ok(self)
    }

    /// A tag that log records and results carry.
    pub fn set_label(&mut self, key: &str, value: &str) -> Result<&mut Self> {
        let (key, value) = (c_string("/labels", key)?, c_string("/labels", value)?);
        // SAFETY: all live during the call.
        check(|err| unsafe {
            sys::agentd_context_set_label(self.as_ptr(), key.as_ptr(), value.as_ptr(), err)
        })?;
        Ok(self)
    }
}
