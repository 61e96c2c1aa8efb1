// SPDX-License-Identifier: MIT
use std::cell::RefCell;
use std::ffi::CString;
use std::mem::size_of;
use std::os::raw::c_char;
use std::path::Path;
use std::ptr;
use std::rc::Rc;
use std::time::Duration;

use crate::context::Context;
use crate::error::{c_string, check, make, make_text, milliseconds, Error, ErrorCode, Result};
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

/// How to make a [`Runner`]. Its numbers are above 0, but for that of sandboxes kept ready.
#[derive(Debug, Default)]
pub struct RunnerBuilder {
    policy: Option<Policy>,
    event_loop: Option<Loop>,
    helper_path: Text,
    prewarm: Option<u32>,
    microvm_image: Text,
    microvm_monitor: Text,
    microvm_guest: Text,
    net_resolver: Text,
    heartbeat: Option<Duration>,
    drain: Option<Duration>,
    log: Option<Rc<Log>>,
    /// What needs no translation.
    opts: sys::agentd_runner_opts,
    /// The first of these that was set to 0, which stands for something else in C.
    zero: Option<&'static str>,
}

/// For C; what it cannot be is told when the runner is made.
type Text = Option<Result<CString>>;

fn raw(text: &Option<CString>) -> *const c_char {
    text.as_ref().map_or(ptr::null(), |text| text.as_ptr())
}

/// Of a member that has 32 bits; what is longer is as long as can be.
fn short(pointer: &str, duration: Option<Duration>) -> Result<u32> {
    let ms = duration.map_or(Ok(0), |duration| milliseconds(pointer, duration))?;
    Ok(ms.try_into().unwrap_or(u32::MAX))
}

impl RunnerBuilder {
    fn check_number<T: Default + PartialEq>(&mut self, pointer: &'static str, value: T) {
        if value == T::default() {
            self.zero.get_or_insert(pointer);
        }
    }

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
        self.check_number("/max_running", count);
        self.opts.max_running = count;
        self
    }

    /// Commands that wait for a place; 64 unless set.
    pub fn max_queued(mut self, count: u32) -> Self {
        self.check_number("/max_queued", count);
        self.opts.max_queued = count;
        self
    }

    /// Sandboxes that are kept ready, of each policy; 1 unless set.
    pub fn sandbox_prewarm(mut self, count: u32) -> Self {
        self.prewarm = Some(count);
        self
    }

    /// Size of the /tmp of each sandbox; 1 GiB unless set.
    pub fn sandbox_tmp_bytes(mut self, bytes: u64) -> Self {
        self.check_number("/sandbox_tmp_bytes", bytes);
        self.opts.sandbox_tmp_bytes = bytes;
        self
    }

    /// Whom commands run as outside of their sandbox when the program is root's.
    pub fn sandbox_user(mut self, uid: u32, gid: u32) -> Self {
        self.check_number("/sandbox_uid", uid);
        self.check_number("/sandbox_gid", gid);
        self.opts.sandbox_uid = uid;
        self.opts.sandbox_gid = gid;
        self
    }

    /// Directory of what virtual machines boot from, which scripts/build-image makes;
    /// /var/cache/agentd, or agentd in the user's cache, unless set.
    pub fn microvm_image(mut self, path: impl AsRef<Path>) -> Self {
        self.microvm_image = Some(c_string("/microvm_image", path.as_ref()));
        self
    }

    /// QEMU.
    pub fn microvm_monitor(mut self, path: impl AsRef<Path>) -> Self {
        self.microvm_monitor = Some(c_string("/microvm_monitor", path.as_ref()));
        self
    }

    /// agentd-guest, where it is not beside the helper.
    pub fn microvm_guest(mut self, path: impl AsRef<Path>) -> Self {
        self.microvm_guest = Some(c_string("/microvm_guest", path.as_ref()));
        self
    }

    /// Memory of each virtual machine; 512 MiB unless set, more where a limit asks for it.
    pub fn microvm_memory_bytes(mut self, bytes: u64) -> Self {
        self.check_number("/microvm_memory_bytes", bytes);
        self.opts.microvm_memory_bytes = bytes;
        self
    }

    /// Most that a working directory may hold, which a virtual machine works on a copy of;
    /// 256 MiB unless set.
    pub fn microvm_workdir_bytes(mut self, bytes: u64) -> Self {
        self.check_number("/microvm_workdir_bytes", bytes);
        self.opts.microvm_workdir_bytes = bytes;
        self
    }

    /// Whom QEMU runs as when the program is root's; nobody else should.
    pub fn microvm_user(mut self, uid: u32, gid: u32) -> Self {
        self.check_number("/microvm_uid", uid);
        self.check_number("/microvm_gid", gid);
        self.opts.microvm_uid = uid;
        self.opts.microvm_gid = gid;
        self
    }

    /// Commands in virtual machines get a clone of one that was booted once, also without a
    /// session.
    pub fn snapshots(mut self) -> Self {
        self.opts.flags |= sys::AGENTD_RUNNER_SNAPSHOTS;
        self
    }

    /// Name server that alone is asked for the addresses of allowed hosts: `ADDRESS` or
    /// `ADDRESS:PORT`; the machine's unless set.
    pub fn net_resolver(mut self, address: &str) -> Self {
        self.net_resolver = Some(c_string("/net_resolver", address));
        self
    }

    /// Time between the records that a command is still running; 5 seconds unless set.
    pub fn heartbeat(mut self, time: Duration) -> Self {
        self.heartbeat = Some(time);
        self
    }

    /// How long output is waited for after a command's end; 250 ms unless set.
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = Some(time);
        self
    }

    /// What commands write to standard error is not repeated in the log.
    pub fn no_stderr_log(mut self) -> Self {
        self.opts.flags |= sys::AGENTD_RUNNER_NO_STDERR_LOG;
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
        if let Some(pointer) = self.zero {
            return Err(Error::invalid(pointer, "it must be above 0"));
        }
        let policy = self.policy.map_or_else(Policy::system, Ok)?;
        let event_loop = self.event_loop.map_or_else(Loop::new, Ok)?;
        let helper_path = self.helper_path.transpose()?;
        let microvm_image = self.microvm_image.transpose()?;
        let microvm_monitor = self.microvm_monitor.transpose()?;
        let microvm_guest = self.microvm_guest.transpose()?;
        let net_resolver = self.net_resolver.transpose()?;
        let opts = sys::agentd_runner_opts {
            size: size_of::<sys::agentd_runner_opts>() as u32,
            // SAFETY: the loop lives.
            event_base: unsafe { sys::agentd_loop_event_base(event_loop.as_ptr()) },
            policy: policy.as_ptr(),
            log: self.log.as_ref().and(Some(on_log)),
            log_userdata: self.log.as_ref().map_or(ptr::null_mut(), |log| Rc::as_ptr(log) as _),
            log_level: self.log.as_ref().map_or(0, |log| log.level.to_raw()),
            heartbeat_ms: short("/heartbeat", self.heartbeat)?,
            drain_ms: short("/drain", self.drain)?,
            sandbox_prewarm: match self.prewarm {
                None => 0,
                Some(0) => u32::MAX,
                Some(count) => count,
            },
            helper_path: raw(&helper_path),
            microvm_image: raw(&microvm_image),
            microvm_monitor: raw(&microvm_monitor),
            microvm_guest: raw(&microvm_guest),
            net_resolver: raw(&net_resolver),
            ..self.opts
        };
        // SAFETY: all that opts points to lives during the call; base and log longer.
        let handle = make(|ret, err| unsafe { sys::agentd_runner_new(&opts, ret, err) })?;
        Ok(Runner(Rc::new(Inner { handle, policy, event_loop, log: self.log })))
    }
}
