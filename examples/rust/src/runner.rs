// SPDX-License-Identifier: MIT
use std::cell::RefCell;
use std::ffi::CString;
use std::mem::size_of;
use std::path::Path;
use std::ptr;
use std::rc::Rc;

use crate::context::Context;
use crate::error::{c_string, check, make, make_text, Error, ErrorCode, Result};
use crate::event_loop::Loop;
use crate::exec::{Exec, ExecOptions};
use crate::handle::{Handle, Object};
use crate::log::{on_log, Log, LogLevel, LogRecord};
use crate::params::Params;
use crate::policy::Policy;
use crate::result::ExecResult;
use crate::sys;

impl Object for sys::agentd_runner {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_runner_unref(object) }
    }
}

/// The engine. It has a helper process and belongs, with all that it starts, to one thread;
/// another thread makes one of its own. Cloning makes another reference. With the last one
/// what still runs is killed; an [`Exec`] holds one.
#[derive(Clone, Debug)]
pub struct Runner(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    handle: Handle<sys::agentd_runner>,
    policy: Policy,
    event_loop: Loop,
    log: Option<Rc<Log>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.event_loop.close(self.handle.as_ptr(), self.log.take());
    }
}

thread_local! {
    static OF_THREAD: RefCell<Option<Runner>> = RefCell::default();
}

impl Runner {
    /// One for sandboxes with the system's programs, on a loop of its own.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Begins with what [`Runner::new`] makes.
    pub fn builder() -> RunnerBuilder {
        RunnerBuilder::default()
    }

    /// This thread's, which the first call makes and the end of the thread drops: what
    /// [`run`](crate::run) uses.
    pub fn of_thread() -> Result<Self> {
        let known = OF_THREAD.try_with(|runner| runner.borrow().clone());
        let over = |_| Error::new(ErrorCode::State, "the thread is ending");
        if let Some(runner) = known.map_err(over)? {
            return Ok(runner);
        }
        let made = Self::new()?;
        OF_THREAD.try_with(|runner| runner.replace(Some(made.clone()))).map_err(over)?;
        Ok(made)
    }

    /// Starts a command; nothing has run when it returns. A refusal by the policies is not an
    /// error but a result: see [`Status::Denied`](crate::Status::Denied).
    pub fn start(&self, context: &Context, params: &Params, options: ExecOptions) -> Result<Exec> {
        Exec::start(self, context, params, options)
    }

    /// Starts a command and waits for its end.
    pub fn run(&self, context: &Context, params: &Params) -> Result<ExecResult> {
        self.start(context, params, ExecOptions::new())?.wait()
    }

    /// Would this run, and how? JSON with the backend, limits, names of the environment, and
    /// the refusal.
    pub fn explain(&self, context: &Context, params: &Params) -> Result<String> {
        // SAFETY: all live during the call.
        make_text(|ret, len, err| unsafe {
            sys::agentd_runner_explain(
                self.as_ptr(),
                context.as_ptr(),
                params.as_ptr(),
                ret,
                len,
                err,
            )
        })
    }

    /// The ceiling of every context.
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    pub(crate) fn set_pool(&self, pool: *mut sys::agentd_pool) -> Result<()> {
        // SAFETY: both live during the call.
        check(|err| unsafe { sys::agentd_runner_set_pool(self.as_ptr(), pool, err) })?;
        Ok(())
    }

    /// What it runs on.
    pub fn event_loop(&self) -> &Loop {
        &self.0.event_loop
    }

    /// For what only [`sys`](crate::sys) has: borrowed, and of this thread unless its header says
    /// otherwise.
    pub fn as_ptr(&self) -> *mut sys::agentd_runner {
        self.0.handle.as_ptr()
    }
}

/// How to make a [`Runner`].
#[derive(Debug, Default)]
pub struct RunnerBuilder {
    policy: Option<Policy>,
    event_loop: Option<Loop>,
    helper_path: Option<Result<CString>>,
    max_running: u32,
    max_queued: u32,
    prewarm: Option<u32>,
    log: Option<Rc<Log>>,
}

impl RunnerBuilder {
    /// The ceiling of every context; [`Policy::system`] unless set.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// The loop, which other runners may be on as well; one of its own unless set.
    pub fn event_loop(mut self, event_loop: Loop) -> Self {
        self.event_loop = Some(event_loop);
        self
    }

    /// agentd-helper, where it is not installed with the library.
    pub fn helper_path(mut self, path: impl AsRef<Path>) -> Self {
        self.helper_path = Some(c_string("/helper_path", path.as_ref()));
        self
    }

    /// Commands alive at once; 16 unless set.
    pub fn max_running(mut self, count: u32) -> Self {
        self.max_running = count;
        self
    }

    /// Commands that wait for a place; 64 unless set.
    pub fn max_queued(mut self, count: u32) -> Self {
        self.max_queued = count;
        self
    }

    /// Sandboxes that are kept ready, of each policy; 1 unless set.
    pub fn sandbox_prewarm(mut self, count: u32) -> Self {
        self.prewarm = Some(count);
        self
    }

    /// Gives the records of what the runner does, up to this level, to a closure. It is called on
    /// the thread of the runner and may not start a command.
    pub fn log(mut self, level: LogLevel, closure: impl FnMut(&LogRecord) + 'static) -> Self {
        self.log = Some(Rc::new(Log::new(level, closure)));
        self
    }

    /// Makes it: starts the helper.
    pub fn build(self) -> Result<Runner> {
        let policy = self.policy.map_or_else(Policy::system, Ok)?;
        let event_loop = self.event_loop.map_or_else(Loop::new, Ok)?;
        let helper_path = self.helper_path.transpose()?;
        let opts = sys::agentd_runner_opts {
            size: size_of::<sys::agentd_runner_opts>() as u32,
            // SAFETY: the loop lives.
            event_base: unsafe { sys::agentd_loop_event_base(event_loop.as_ptr()) },
            policy: policy.as_ptr(),
            log: self.log.as_ref().and(Some(on_log)),
            log_userdata: self.log.as_ref().map_or(ptr::null_mut(), |log| Rc::as_ptr(log) as _),
            log_level: self.log.as_ref().map_or(0, |log| log.level.to_raw()),
            max_running: self.max_running,
            max_queued: self.max_queued,
            sandbox_prewarm: match self.prewarm {
                None => 0,
                Some(0) => u32::MAX,
                Some(count) => count,
            },
            helper_path: helper_path.as_ref().map_or(ptr::null(), |path| path.as_ptr()),
            ..Default::default()
        };
        // SAFETY: all that opts points to lives during the call; base and log longer.
        let handle = make(|ret, err| unsafe { sys::agentd_runner_new(&opts, ret, err) })?;
        Ok(Runner(Rc::new(Inner { handle, policy, event_loop, log: self.log })))
    }
}
