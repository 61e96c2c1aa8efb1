// SPDX-License-Identifier: MIT
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::os::raw::{c_char, c_int};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::time::Duration;

use crate::handle::{Handle, Object};
use crate::sys;

/// Why the library could not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// An argument or a JSON text is malformed.
    Invalid,
    /// Out of memory.
    NoMemory,
    /// Not valid now: finished, closed, shutting down.
    State,
    /// Not allowed from inside of a callback.
    Reentrant,
    /// The policy refused; nothing was run.
    Denied,
    /// The kernel or the backend lacks a feature that was asked for.
    Unsupported,
    /// No such backend, key, file or value.
    NotFound,
    /// A quota of the library is used up.
    Limit,
    /// A buffer is full.
    Again,
    /// What comes before the command did not end in time.
    Timeout,
    /// Cancelled before it started.
    Canceled,
    /// A system call failed: see [`Error::os_error`].
    System,
    /// The backend failed.
    Backend,
    /// A helper or a guest sent something malformed.
    Protocol,
    /// The library and these bindings are of versions that do not fit.
    Abi,
    /// A closure of the program's refused or panicked.
    User,
    /// A bug of the library, or a code that is newer than this crate.
    Internal,
}

impl ErrorCode {
    fn from_raw(code: c_int) -> Self {
        match code {
            sys::AGENTD_ERR_INVALID => Self::Invalid,
            sys::AGENTD_ERR_NOMEM => Self::NoMemory,
            sys::AGENTD_ERR_STATE => Self::State,
            sys::AGENTD_ERR_REENTRANT => Self::Reentrant,
            sys::AGENTD_ERR_DENIED => Self::Denied,
            sys::AGENTD_ERR_UNSUPPORTED => Self::Unsupported,
            sys::AGENTD_ERR_NOTFOUND => Self::NotFound,
            sys::AGENTD_ERR_LIMIT => Self::Limit,
            sys::AGENTD_ERR_AGAIN => Self::Again,
            sys::AGENTD_ERR_TIMEOUT => Self::Timeout,
            sys::AGENTD_ERR_CANCELED => Self::Canceled,
            sys::AGENTD_ERR_SYSTEM => Self::System,
            sys::AGENTD_ERR_BACKEND => Self::Backend,
            sys::AGENTD_ERR_PROTOCOL => Self::Protocol,
            sys::AGENTD_ERR_ABI => Self::Abi,
            sys::AGENTD_ERR_USER => Self::User,
            _ => Self::Internal,
        }
    }
}

/// What the library could not do. How a command ended is never one: see
/// [`ExecResult`](crate::ExecResult).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: ErrorCode,
    pointer: String,
    message: String,
    os_errno: i32,
}

impl Error {
    /// What kind of failure it is.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// JSON pointer (RFC 6901) of the input that is to blame, such as `/limits/mem_bytes`,
    /// or nothing.
    pub fn pointer(&self) -> &str {
        &self.pointer
    }

    /// One line of text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The error of the system call that failed, if it was one.
    pub fn os_error(&self) -> Option<std::io::Error> {
        (self.os_errno != 0).then(|| std::io::Error::from_raw_os_error(self.os_errno))
    }

    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, pointer: String::new(), message: message.into(), os_errno: 0 }
    }

    pub(crate) fn invalid(pointer: &str, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), ..Self::new(ErrorCode::Invalid, message) }
    }

    /// # Safety
    ///
    /// `err` points to an error object that lives during the call.
    pub(crate) unsafe fn from_object(err: *const sys::agentd_error) -> Self {
        // SAFETY: as the caller promises; the strings are never NULL.
        unsafe {
            Self {
                code: ErrorCode::from_raw(sys::agentd_error_code(err)),
                pointer: text(sys::agentd_error_pointer(err)),
                message: text(sys::agentd_error_message(err)),
                os_errno: sys::agentd_error_os_errno(err),
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.pointer.is_empty() {
            write!(f, " (at {})", self.pointer)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// What a call of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Object for sys::agentd_error {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_error_unref(object) }
    }
}

/// Calls a function of the library whose last parameter is an error.
pub(crate) fn check(call: impl FnOnce(*mut *mut sys::agentd_error) -> c_int) -> Result<c_int> {
    let mut err = ptr::null_mut();
    let code = call(&mut err);
    if code >= 0 {
        return Ok(code);
    }
    // SAFETY: a call that failed left us a reference, or NULL.
    match unsafe { Handle::from_raw(err) } {
        // SAFETY: the handle keeps it alive.
        Some(err) => Err(unsafe { Error::from_object(err.as_ptr()) }),
        None => Err(from_code(code)),
    }
}

/// The error of a function that has no other than its code.
pub(crate) fn from_code(code: c_int) -> Error {
    // SAFETY: takes any number, returns static text.
    let message = unsafe { text(sys::agentd_strerror(code)) };
    Error::new(ErrorCode::from_raw(code), message)
}

/// Calls a function of the library that makes an object.
pub(crate) fn make<T: Object>(
    call: impl FnOnce(*mut *mut T, *mut *mut sys::agentd_error) -> c_int,
) -> Result<Handle<T>> {
    let mut object = ptr::null_mut();
    check(|err| call(&mut object, err))?;
    // SAFETY: a call that succeeded left us a reference.
    let handle = unsafe { Handle::from_raw(object) };
    Ok(handle.expect("a success has its object"))
}

/// Calls a function of the library that makes a text.
pub(crate) fn make_text(
    call: impl FnOnce(*mut *mut c_char, *mut usize, *mut *mut sys::agentd_error) -> c_int,
) -> Result<String> {
    let (mut data, mut len) = (ptr::null_mut(), 0);
    check(|err| call(&mut data, &mut len, err))?;
    // SAFETY: a call that succeeded left us that many bytes.
    let bytes = unsafe { std::slice::from_raw_parts(data as *const u8, len) };
    let text = String::from_utf8_lossy(bytes).into_owned();
    // SAFETY: ours to free, and not used any more.
    unsafe { sys::agentd_free(data.cast()) };
    Ok(text)
}

/// # Safety
///
/// `data` points to a string that lives during the call.
pub(crate) unsafe fn text(data: *const c_char) -> String {
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(data) }.to_string_lossy().into_owned()
}

/// `value` for C; `pointer` says which input it is.
pub(crate) fn c_string(pointer: &str, value: impl AsRef<OsStr>) -> Result<CString> {
    CString::new(value.as_ref().as_bytes())
        .map_err(|_| Error::invalid(pointer, "a NUL byte is not allowed in it"))
}

/// Milliseconds, rounded up: 0 means something else to the library.
pub(crate) fn milliseconds(pointer: &str, duration: Duration) -> Result<u64> {
    if duration.is_zero() {
        return Err(Error::invalid(pointer, "a duration must be above 0"));
    }
    Ok(duration.as_nanos().saturating_add(999_999) / 1_000_000)
        .map(|ms| ms.try_into().unwrap_or(u64::MAX))
}
