// SPDX-License-Identifier: MIT
use std::cell::RefCell;
use std::os::raw::{c_int, c_void};
use std::rc::Rc;

use crate::error::{c_string, from_code, make, make_text, Error, Result};
use crate::event_loop::Loop;
use crate::handle::{Handle, Object};
use crate::runner::Runner;
use crate::sys;

impl Object for sys::agentd_pool {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_pool_unref(object) }
    }
}

/// Persistent sessions: one sandbox for each id, with files that outlive it. A command is in a
/// session if its context says so ([`Context::set_session`](crate::Context::set_session),
/// [`Command::session`](crate::Command::session)).
///
/// The runner keeps its pool: dropping this ends nothing. With the runner the sessions are
/// stopped, and their files stay.
///
/// ```no_run
/// # fn main() -> agentd::Result<()> {
/// use agentd::{Command, Pool, Runner};
///
/// let runner = Runner::new()?;
/// let pool = Pool::new(
///     &runner,
///     r#"{"enabled": true, "backend": "sandbox", "volume_root": "/var/lib/my-agent"}"#,
/// )?;
/// let id = "3fa9c1d2-0b1c-4c5e-9f0a-7d6e5f4a3b2c";
/// Command::shell("echo hello >note").session(id).run_on(&runner)?;
/// pool.stop(id)?;
/// let result = Command::shell("cat note").session(id).run_on(&runner)?;
/// assert_eq!(result.stdout(), b"hello\n");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pool {
    handle: Handle<sys::agentd_pool>,
    runner: Runner,
}

impl Pool {
    /// Makes one from the members of agentd_pool(5). The runner's sessions come from it from now
    /// on; no session is started yet.
    pub fn new(runner: &Runner, config: &str) -> Result<Self> {
        // SAFETY: all live during the call.
        let handle: Handle<sys::agentd_pool> = make(|ret, err| unsafe {
            sys::agentd_pool_new(runner.as_ptr(), config.as_ptr().cast(), config.len(), ret, err)
        })?;
        runner.set_pool(handle.as_ptr())?;
        Ok(Self { handle, runner: runner.clone() })
    }

    /// Shuts a session down when its command, if it has one, has ended, and waits for that. Its
    /// files stay.
    pub fn stop(&self, session: &str) -> Result<()> {
        let session = c_string("/session", session)?;
        // SAFETY: all live during the call; the library calls done() once.
        self.wait(|done, state| unsafe {
            sys::agentd_pool_stop(self.as_ptr(), session.as_ptr(), done, state)
        })
    }

    /// One pass of maintenance, which else comes every minute, and waits for what it began: idle
    /// sessions are stopped, stopped ones backed up and pruned.
    pub fn maintain(&self) -> Result<()> {
        // SAFETY: the pool lives during the call; the library calls done() once.
        self.wait(|done, state| unsafe { sys::agentd_pool_maintain(self.as_ptr(), done, state) })
    }

    /// JSON with its sessions and what they do.
    pub fn to_json(&self) -> Result<String> {
        // SAFETY: it lives as long as self.
        make_text(|ret, len, err| unsafe { sys::agentd_pool_to_json(self.as_ptr(), ret, len, err) })
    }

    /// Whose it is.
    pub fn runner(&self) -> &Runner {
        &self.runner
    }

    /// For what only [`sys`](crate::sys) has: borrowed, and of this thread unless its header says
    /// otherwise.
    pub fn as_ptr(&self) -> *mut sys::agentd_pool {
        self.handle.as_ptr()
    }

    fn wait(&self, call: impl FnOnce(sys::agentd_pool_fn, *mut c_void) -> c_int) -> Result<()> {
        let event_loop = self.runner.event_loop();
        let answer = Rc::new(Answer { event_loop: event_loop.clone(), given: RefCell::default() });
        let state = Rc::into_raw(answer.clone());
        let code = call(Some(done), state as *mut c_void);
        if code < 0 {
            // SAFETY: there will be no call of done().
            drop(unsafe { Rc::from_raw(state) });
            return Err(from_code(code));
        }
        loop {
            if let Some(given) = answer.given.take() {
                return given;
            }
            event_loop.run(None)?;
        }
    }
}

/// Of the library, to whoever waits.
struct Answer {
    event_loop: Loop,
    given: RefCell<Option<Result<()>>>,
}

unsafe extern "C" fn done(
    _pool: *mut sys::agentd_pool,
    err: *const sys::agentd_error,
    state: *mut c_void,
) {
    // SAFETY: it is the reference that the library was given, and the only call for it.
    let answer = unsafe { Rc::from_raw(state as *const Answer) };
    let given = if err.is_null() {
        Ok(())
    } else {
        // SAFETY: it lives during the call.
        Err(unsafe { Error::from_object(err) })
    };
    answer.given.replace(Some(given));
    answer.event_loop.wake();
}
