// SPDX-License-Identifier: MIT
use std::cell::Cell;
use std::os::raw::c_void;
use std::rc::Rc;
use std::time::Duration;

use crate::error::{check, make, Result};
use crate::handle::{Handle, Object};
use crate::log::Log;
use crate::panics::drop_quietly;
use crate::sys;

impl Object for sys::agentd_loop {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_loop_unref(object) }
    }
}

/// A loop of the library's own, for the thread that made it: everything that runs on it
/// moves on only while that thread is in [`Exec::wait`](crate::Exec::wait), in the iterator of
/// an [`Exec`](crate::Exec), or in [`Loop::run`]. Cloning makes another reference.
#[derive(Clone, Debug)]
pub struct Loop(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle<sys::agentd_loop>,
    /// Runners that were dropped and are not gone yet.
    closing: Cell<usize>,
}

impl Loop {
    /// A loop for this thread.
    pub fn new() -> Result<Self> {
        // SAFETY: both pointers are written to during the call only.
        let handle = make(|ret, err| unsafe { sys::agentd_loop_new(ret, err) })?;
        Ok(Self(Rc::new(Inner { handle, closing: Cell::new(0) })))
    }

    /// Runs what is ready, and what becomes so until the time is over (`None`: never) or the loop
    /// is woken, by a [`Waker`] or by what these bindings wait for: then it returns true.
    pub fn run(&self, timeout: Option<Duration>) -> Result<bool> {
        self.0.run(timeout)
    }

    /// Ends [`Loop::run`], from any thread.
    pub fn waker(&self) -> Waker {
        // SAFETY: ref takes any living object and returns it with one more reference.
        let handle = unsafe { Handle::from_raw(sys::agentd_loop_ref(self.as_ptr())) };
        Waker(handle.expect("ref returns its argument"))
    }

    /// For what only [`sys`](crate::sys) has: borrowed, and of this thread unless its header says
    /// otherwise.
    pub fn as_ptr(&self) -> *mut sys::agentd_loop {
        self.0.handle.as_ptr()
    }

    pub(crate) fn run_until(
        &self,
        exec: *mut sys::agentd_exec,
        timeout: Option<Duration>,
    ) -> Result<bool> {
        // SAFETY: the loop lives as long as self; it takes a reference of exec while it runs.
        check(|err| unsafe {
            sys::agentd_loop_run_until(self.as_ptr(), exec, timeout_ms(timeout), err)
        })
        .map(|reached| reached > 0)
    }

    pub(crate) fn wake(&self) {
        self.0.wake();
    }

    /// Kills what runs on the runner, and waits until it is gone, unless a callback is what
    /// drops it: then the loop does when it is run again, or at last when it is dropped. Its log
    /// is kept until then.
    pub(crate) fn close(&self, runner: *mut sys::agentd_runner, log: Option<Rc<Log>>) {
        let closing = Box::into_raw(Box::new(Closing { inner: &*self.0, _log: log }));
        self.0.closing.set(self.0.closing.get() + 1);
        // SAFETY: the runner is the caller's; the loop outlives all that are closing.
        let code =
            unsafe { sys::agentd_runner_shutdown(runner, 0, Some(gone), closing as *mut c_void) };
        if code < 0 {
            // It is dropped by its own log, of which that is the last that is heard: `closing`
            // stays, for the log is still being called.
            self.0.closing.set(self.0.closing.get() - 1);
        }
        self.0.settle();
    }
}

impl Inner {
    fn run(&self, timeout: Option<Duration>) -> Result<bool> {
        // SAFETY: the loop lives as long as self.
        check(|err| unsafe { sys::agentd_loop_run(self.handle.as_ptr(), timeout_ms(timeout), err) })
            .map(|woken| woken > 0)
    }

    fn wake(&self) {
        // SAFETY: the loop lives as long as self.
        unsafe { sys::agentd_loop_wakeup(self.handle.as_ptr()) };
    }

    fn settle(&self) {
        while self.closing.get() > 0 && self.run(None).is_ok() {}
    }
}

/// Whoever runs the loop holds it: never inside of a callback.
impl Drop for Inner {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A runner that was dropped.
struct Closing {
    inner: *const Inner,
    _log: Option<Rc<Log>>,
}

unsafe extern "C" fn gone(_runner: *mut sys::agentd_runner, closing: *mut c_void) {
    // SAFETY: close() made it, for this call alone.
    let closing = unsafe { Box::from_raw(closing as *mut Closing) };
    // SAFETY: it lives until none is closing.
    let inner = unsafe { &*closing.inner };
    inner.closing.set(inner.closing.get() - 1);
    inner.wake();
    drop_quietly(closing);
}

/// Rounded up, so that whoever waits for something in time does not find it too early.
fn timeout_ms(timeout: Option<Duration>) -> i64 {
    timeout.map_or(-1, |timeout| {
        let ms = timeout.as_nanos().saturating_add(999_999) / 1_000_000;
        ms.try_into().unwrap_or(i64::MAX)
    })
}

/// Ends [`Loop::run`] of another thread, the one that goes on or else the next.
#[derive(Debug)]
pub struct Waker(Handle<sys::agentd_loop>);

// SAFETY: waking and the counting of references work from any thread. Of the loop's own
// thread's doings nothing is left when the last reference is dropped elsewhere: its Inner
// has seen to the runners.
unsafe impl Send for Waker {}
// SAFETY: as above.
unsafe impl Sync for Waker {}

impl Waker {
    /// Ends it.
    pub fn wake(&self) {
        // SAFETY: it lives as long as self.
        unsafe { sys::agentd_loop_wakeup(self.0.as_ptr()) };
    }
}
