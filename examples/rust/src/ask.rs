// SPDX-License-Identifier: MIT
use std::any::Any;
use std::ffi::CStr;
use std::fmt;
use std::os::raw::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use crate::error::{check, milliseconds, text, Error, ErrorCode, Result};
use crate::handle::{Handle, Object};
use crate::panics::drop_quietly;
use crate::sys;

impl Object for sys::agentd_ask {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_ask_unref(object) }
    }
}

/// May a command reach a host?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// No.
    Deny,
    /// This connection, and those that wait for the same answer.
    Once,
    /// Also later ones to this host and port, of every command of the context.
    Context,
}

impl Answer {
    fn to_raw(self) -> i32 {
        match self {
            Self::Deny => sys::AGENTD_ASK_DENY as i32,
            Self::Once => sys::AGENTD_ASK_ONCE as i32,
            Self::Context => sys::AGENTD_ASK_CONTEXT as i32,
        }
    }
}

/// May this command reach that host? One that is dropped without an answer is not answered.
#[derive(Debug)]
pub struct Question {
    handle: Handle<sys::agentd_ask>,
    thread: ThreadId,
    host: String,
    port: u16,
}

// SAFETY: what others may see of it is its own; the object is used on its thread only, which
// answer() checks, and references are counted on any.
unsafe impl Send for Question {}
// SAFETY: as above.
unsafe impl Sync for Question {}

impl Question {
    /// # Safety
    ///
    /// `ask` lives during the call, which comes from its thread.
    unsafe fn from_raw(ask: *mut sys::agentd_ask) -> Self {
        // SAFETY: as the caller promises; the string is never NULL.
        unsafe {
            Self {
                handle: Handle::from_raw(sys::agentd_ask_ref(ask))
                    .expect("ref returns its argument"),
                thread: thread::current().id(),
                host: text(sys::agentd_ask_host(ask)),
                port: sys::agentd_ask_port(ask) as u16,
            }
        }
    }

    /// Name or address, normalised.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers. That is for the thread of the command's runner, where the closure was called: from
    /// another, and once the question is over, it is [`ErrorCode::State`].
    pub fn answer(&self, answer: Answer) -> Result<()> {
        if thread::current().id() != self.thread {
            return Err(Error::new(ErrorCode::State, "not the thread of the question's runner"));
        }
        // SAFETY: the handle keeps it alive.
        check(|err| unsafe { sys::agentd_ask_answer(self.handle.as_ptr(), answer.to_raw(), err) })?;
        Ok(())
    }
}

/// Whom to ask about hosts: see [`Context::set_ask`](crate::Context::set_ask).
pub struct Ask {
    closure: Box<dyn Fn(Question) + Send + Sync>,
    timeout: Option<Duration>,
    fallback: Answer,
    panics: Mutex<Vec<(String, Box<dyn Any + Send>)>>,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask").field("fallback", &self.fallback).finish_non_exhaustive()
    }
}

impl Ask {
    /// Gives questions to a closure, on the thread of the runner whose command it is, while that
    /// is in the loop. It answers, or sees to it that somebody else does. A panic cancels the
    /// command and goes on in whoever waits for its [`Exec`](crate::Exec).
    pub fn new(closure: impl Fn(Question) + Send + Sync + 'static) -> Self {
        Self {
            closure: Box::new(closure),
            timeout: None,
            fallback: Answer::Deny,
            panics: Mutex::default(),
        }
    }

    /// What holds when there is no answer in time; a minute and [`Answer::Deny`] unless set.
    /// [`Answer::Context`] is refused.
    pub fn fallback(mut self, timeout: Duration, answer: Answer) -> Self {
        self.timeout = Some(timeout);
        self.fallback = answer;
        self
    }

    pub(crate) fn set(self, context: *mut sys::agentd_context) -> Result<Arc<Self>> {
        let timeout =
            self.timeout.map_or(Ok(0), |timeout| milliseconds("/ask/timeout", timeout))?;
        let fallback = self.fallback.to_raw();
        let shared = Arc::new(self);
        let userdata = Arc::into_raw(shared.clone());
        let opts = sys::agentd_ask_opts {
            size: std::mem::size_of::<sys::agentd_ask_opts>() as u32,
            timeout_ms: timeout.try_into().unwrap_or(u32::MAX),
            fallback,
            ask: Some(on_ask),
            userdata: userdata as *mut c_void,
            destroy: Some(on_destroy),
            ..Default::default()
        };
        // SAFETY: opts lives during the call, userdata until on_destroy().
        check(|err| unsafe { sys::agentd_context_set_ask(context, &opts, err) }).map_err(
            |error| {
                // SAFETY: on_destroy() is not called for what was refused.
                drop(unsafe { Arc::from_raw(userdata) });
                error
            },
        )?;
        Ok(shared)
    }

    pub(crate) fn unset(context: *mut sys::agentd_context) -> Result<()> {
        // SAFETY: the context lives during the call.
        check(|err| unsafe { sys::agentd_context_set_ask(context, ptr::null(), err) })?;
        Ok(())
    }

    /// The panic of a question of the command of this id.
    pub(crate) fn panic_of(&self, id: &CStr) -> Option<Box<dyn Any + Send>> {
        let mut panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        let at = panics.iter().position(|(of, _)| of.as_bytes() == id.to_bytes())?;
        Some(panics.swap_remove(at).1)
    }
}

unsafe extern "C" fn on_ask(ask: *mut sys::agentd_ask, userdata: *mut c_void) {
    // SAFETY: on_destroy() has not been called; the question lives during the call.
    let (shared, question) = unsafe { (&*(userdata as *const Ask), Question::from_raw(ask)) };
    // SAFETY: a question that is being asked has its execution; ref returns it with one more
    // reference.
    let exec = unsafe { Handle::from_raw(sys::agentd_exec_ref(sys::agentd_ask_exec(ask))) };
    let outcome = catch_unwind(AssertUnwindSafe(|| (shared.closure)(question)));
    if let (Err(panic), Some(exec)) = (outcome, exec) {
        // SAFETY: the handle keeps it alive.
        let id = unsafe { text(sys::agentd_exec_id(exec.as_ptr())) };
        shared.panics.lock().unwrap_or_else(PoisonError::into_inner).push((id, panic));
        // SAFETY: as above.
        unsafe { sys::agentd_exec_cancel(exec.as_ptr()) };
    }
}

unsafe extern "C" fn on_destroy(userdata: *mut c_void) {
    // SAFETY: it is the reference that the context was given, and the last call for it.
    drop_quietly(unsafe { Arc::from_raw(userdata as *const Ask) });
}
