// SPDX-License-Identifier: MIT
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::fmt;
use std::mem::{self, size_of};
use std::ops::ControlFlow;
use std::os::raw::c_void;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::ptr;
use std::rc::Rc;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use crate::ask::Ask;
use crate::context::Context;
use crate::error::{check, from_code, make, milliseconds, text, Result};
use crate::event_loop::Loop;
use crate::handle::{Handle, Object};
use crate::limits::Limits;
use crate::panics::drop_quietly;
use crate::params::Params;
use crate::result::ExecResult;
use crate::runner::Runner;
use crate::sys;

/// Bytes that wait for the iterator before the command has to.
const WINDOW: usize = 1 << 20;

impl Object for sys::agentd_exec {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_exec_unref(object) }
    }
}

impl Object for sys::agentd_sink {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_sink_unref(object) }
    }
}

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    const ALL: [Self; 2] = [Self::Stdout, Self::Stderr];

    fn from_raw(stream: sys::agentd_stream) -> Self {
        if stream == sys::AGENTD_STDERR as sys::agentd_stream {
            Self::Stderr
        } else {
            Self::Stdout
        }
    }

    fn to_raw(self) -> sys::agentd_stream {
        match self {
            Self::Stdout => sys::AGENTD_STDOUT as _,
            Self::Stderr => sys::AGENTD_STDERR as _,
        }
    }
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Where it came from.
    pub stream: Stream,
    /// Its bytes, which may end inside of a character.
    pub data: Vec<u8>,
}

/// Something that a policy stopped, as far as the library sees it: agentd_denial_kind(3).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denial {
    /// `net`, `path` or `syscall`.
    pub kind: String,
    /// What was wanted: `example.org:443`, a path, a system call.
    pub target: String,
    /// What stopped it.
    pub rule: String,
    /// How the operator can allow it, or nothing.
    pub remedy: String,
}

impl Denial {
    /// # Safety
    ///
    /// `denial` lives during the call.
    unsafe fn from_raw(denial: *const sys::agentd_denial) -> Self {
        // SAFETY: as the caller promises; the strings are never NULL.
        unsafe {
            Self {
                kind: text(sys::agentd_denial_kind(denial)),
                target: text(sys::agentd_denial_target(denial)),
                rule: text(sys::agentd_denial_rule(denial)),
                remedy: text(sys::agentd_denial_remedy(denial)),
            }
        }
    }
}

type OutputFn = Box<dyn FnMut(Stream, &[u8]) -> ControlFlow<()>>;
type DeniedFn = Box<dyn FnMut(&Denial)>;

/// How one command is run; all of it can be left as it is.
#[derive(Default)]
pub struct ExecOptions {
    limits: Limits,
    flags: u32,
    grace: Option<Duration>,
    input: Vec<u8>,
    open_input: bool,
    on_output: Option<OutputFn>,
    on_denied: Option<DeniedFn>,
    keep: Option<(usize, usize)>,
    files: [Option<OwnedFd>; 2],
}

impl fmt::Debug for ExecOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecOptions").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl ExecOptions {
    /// Everything as the context and the policies have it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits lower than those of the context.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// From SIGTERM to SIGKILL; 2 seconds unless set.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = Some(grace);
        self
    }

    /// Standard error becomes part of standard output, in the order written.
    pub fn merge_stderr(mut self) -> Self {
        self.flags |= sys::AGENTD_EXEC_MERGE_STDERR;
        self
    }

    /// Ends a command that produces more than `output_bytes`; else what exceeds that is dropped
    /// and counted.
    pub fn kill_on_output(mut self) -> Self {
        self.flags |= sys::AGENTD_EXEC_KILL_ON_OUTPUT;
        self
    }

    /// Standard input, which else is empty.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.flags |= sys::AGENTD_EXEC_STDIN_OPEN;
        self.input = input.into();
        self.open_input = false;
        self
    }

    /// Standard input that [`Exec::write`] gives and [`Exec::close_stdin`] ends.
    pub fn open_stdin(mut self) -> Self {
        self.flags |= sys::AGENTD_EXEC_STDIN_OPEN;
        self.input = Vec::new();
        self.open_input = true;
        self
    }

    /// Of the output that is kept only the first `head` and the last `tail` bytes of each stream:
    /// see [`ExecResult::stdout_omitted`]. Nothing of it is given to the iterator or the closure.
    pub fn keep(mut self, head: usize, tail: usize) -> Self {
        self.keep = Some((head, tail));
        self
    }

    /// Standard output goes to a file, pipe or socket, and nowhere else. When that is full the
    /// command waits.
    pub fn stdout(mut self, file: impl Into<OwnedFd>) -> Self {
        self.files[Stream::Stdout as usize] = Some(file.into());
        self
    }

    /// The same with standard error.
    pub fn stderr(mut self, file: impl Into<OwnedFd>) -> Self {
        self.files[Stream::Stderr as usize] = Some(file.into());
        self
    }

    /// Tells a closure what the policies stop, when they do. It is called on the thread of the
    /// runner, while that is in the loop; a panic is as one of [`ExecOptions::on_output`].
    pub fn on_denied(mut self, closure: impl FnMut(&Denial) + 'static) -> Self {
        self.on_denied = Some(Box::new(closure));
        self
    }

    /// Gives output to a closure, as it comes, instead of keeping it. It is called on the thread
    /// of the runner, while that is in the loop. [`ControlFlow::Break`] cancels the command; so
    /// does a panic, which goes on in whoever waits for the [`Exec`].
    pub fn on_output(
        mut self,
        closure: impl FnMut(Stream, &[u8]) -> ControlFlow<()> + 'static,
    ) -> Self {
        self.on_output = Some(Box::new(closure));
        self
    }
}

/// What the callbacks and the `Exec` share. Only its own thread sees it.
struct State {
    event_loop: Loop,
    /// Absent while it is being called, and for good when there is nobody to call it for.
    on_output: Cell<Option<OutputFn>>,
    /// The same.
    on_denied: Cell<Option<DeniedFn>>,
    /// Output is kept here, not given to a closure.
    keeps: bool,
    chunks: RefCell<VecDeque<Chunk>>,
    waiting: Cell<usize>,
    /// When so many bytes wait the command has to.
    window: Cell<usize>,
    paused: [Cell<bool>; 2],
    /// An iterator runs the loop and wants to know of news.
    iterating: Cell<bool>,
    abandoned: Cell<bool>,
    /// What somebody else than the closure and the iterator gets.
    filed: [bool; 2],
    /// Open until it has finished: who reads them is told of the end then.
    files: Cell<[Option<OwnedFd>; 2]>,
    /// A reader of heads and tails.
    buffer: Option<Handle<sys::agentd_sink>>,
    input: Vec<u8>,
    open_input: bool,
    written: Cell<usize>,
    panic: Cell<Option<Box<dyn Any + Send>>>,
    finished: Cell<bool>,
    result: Cell<Option<Handle<sys::agentd_result>>>,
}

impl State {
    fn new(runner: &Runner, options: &mut ExecOptions) -> Result<Self> {
        Ok(Self {
            event_loop: runner.event_loop().clone(),
            keeps: options.on_output.is_none(),
            on_output: Cell::new(options.on_output.take()),
            on_denied: Cell::new(options.on_denied.take()),
            chunks: RefCell::default(),
            waiting: Cell::new(0),
            window: Cell::new(WINDOW),
            paused: Default::default(),
            iterating: Cell::new(false),
            abandoned: Cell::new(false),
            filed: Stream::ALL.map(|stream| options.files[stream as usize].is_some()),
            files: Cell::new(mem::take(&mut options.files)),
            buffer: options.keep.map(|(head, tail)| new_buffer(head, tail)).transpose()?,
            input: mem::take(&mut options.input),
            open_input: options.open_input,
            written: Cell::new(0),
            panic: Cell::new(None),
            finished: Cell::new(false),
            result: Cell::new(None),
        })
    }

    fn tell(&self) {
        if self.iterating.get() {
            self.event_loop.wake();
        }
    }

    /// What the library is answered.
    fn output(&self, stream: Stream, data: &[u8]) -> i32 {
        if self.abandoned.get() || self.filed[stream as usize] {
            return sys::AGENTD_SINK_CONTINUE as i32;
        }
        if !self.keeps {
            return self.call(stream, data);
        }
        self.chunks.borrow_mut().push_back(Chunk { stream, data: data.to_vec() });
        self.waiting.set(self.waiting.get() + data.len());
        self.tell();
        if self.waiting.get() < self.window.get() {
            return sys::AGENTD_SINK_CONTINUE as i32;
        }
        self.paused[stream as usize].set(true);
        sys::AGENTD_SINK_PAUSE as i32
    }

    fn call(&self, stream: Stream, data: &[u8]) -> i32 {
        let mut closure = match self.on_output.take() {
            Some(closure) => closure,
            None => return sys::AGENTD_SINK_CONTINUE as i32,
        };
        let flow = closure(stream, data);
        if !self.abandoned.get() {
            self.on_output.set(Some(closure));
        }
        match flow {
            ControlFlow::Continue(()) => sys::AGENTD_SINK_CONTINUE as i32,
            ControlFlow::Break(()) => sys::AGENTD_ERR_USER,
        }
    }

    /// For whoever waits, in place of an earlier one.
    fn keep_panic(&self, panic: Box<dyn Any + Send>) {
        drop_quietly(self.panic.replace(Some(panic)));
    }

    fn denied(&self, denial: &Denial) {
        if let Some(mut closure) = self.on_denied.take() {
            closure(denial);
            if !self.abandoned.get() {
                self.on_denied.set(Some(closure));
            }
        }
    }

    /// # Safety
    ///
    /// `exec` lives during the call, which comes from its thread.
    unsafe fn feed(&self, exec: *mut sys::agentd_exec) {
        loop {
            let rest = &self.input[self.written.get()..];
            if rest.is_empty() {
                // SAFETY: as the caller promises.
                unsafe { sys::agentd_exec_close_stdin(exec) };
                return;
            }
            let mut taken = 0;
            // SAFETY: as the caller promises; the bytes live during the call.
            let code =
                unsafe { sys::agentd_exec_write(exec, rest.as_ptr(), rest.len(), &mut taken) };
            if code < 0 {
                // Until more can be taken, or nobody reads it.
                return;
            }
            self.written.set(self.written.get() + taken);
        }
    }

    /// What there is of a stream, and how many bytes are missing.
    fn kept(&self, buffer: &Handle<sys::agentd_sink>, stream: Stream) -> (Vec<u8>, u64) {
        let (mut data, mut len, mut omitted) = (ptr::null(), 0, 0);
        if self.filed[stream as usize] {
            return (Vec::new(), 0);
        }
        // SAFETY: a buffer, of this thread, and one of its streams, so that it does not fail; what
        // it has lives until the copy was made.
        unsafe {
            sys::agentd_sink_buffer_get(
                buffer.as_ptr(),
                stream.to_raw(),
                &mut data,
                &mut len,
                &mut omitted,
            );
            let kept = if len > 0 { slice::from_raw_parts(data, len).to_vec() } else { Vec::new() };
            (kept, omitted)
        }
    }

    fn next_chunk(&self) -> Option<Chunk> {
        let chunk = self.chunks.borrow_mut().pop_front()?;
        self.waiting.set(self.waiting.get() - chunk.data.len());
        Some(chunk)
    }
}

// A panic must not unwind through the library: it is kept until the library has returned.

unsafe extern "C" fn on_output(
    _exec: *mut sys::agentd_exec,
    stream: sys::agentd_stream,
    data: *const u8,
    len: usize,
    state: *mut c_void,
) -> i32 {
    // SAFETY: on_destroy() has not been called; data is valid during the call.
    let (state, data) = unsafe { (&*(state as *const State), slice::from_raw_parts(data, len)) };
    let output = || state.output(Stream::from_raw(stream), data);
    catch_unwind(AssertUnwindSafe(output)).unwrap_or_else(|panic| {
        state.keep_panic(panic);
        sys::AGENTD_ERR_USER
    })
}

unsafe extern "C" fn on_stdin_drained(exec: *mut sys::agentd_exec, state: *mut c_void) {
    // SAFETY: on_destroy() has not been called.
    let state = unsafe { &*(state as *const State) };
    if state.open_input {
        state.tell();
    } else {
        // SAFETY: the library holds exec while it calls.
        unsafe { state.feed(exec) }
    }
}

unsafe extern "C" fn on_denied(
    exec: *mut sys::agentd_exec,
    denial: *const sys::agentd_denial,
    state: *mut c_void,
) {
    // SAFETY: on_destroy() has not been called; the denial is valid during the call.
    let (state, denial) = unsafe { (&*(state as *const State), Denial::from_raw(denial)) };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| state.denied(&denial))) {
        state.keep_panic(panic);
        // SAFETY: the library holds exec while it calls.
        unsafe { sys::agentd_exec_cancel(exec) };
    }
}

unsafe extern "C" fn on_finished(
    _exec: *mut sys::agentd_exec,
    result: *mut sys::agentd_result,
    state: *mut c_void,
) {
    // SAFETY: on_destroy() has not been called; result lives during the call, which is one
    // reference more afterwards.
    let (state, result) =
        unsafe { (&*(state as *const State), Handle::from_raw(sys::agentd_result_ref(result))) };
    state.result.set(result);
    state.finished.set(true);
    drop(state.files.take());
    let (output, denied) = (state.on_output.take(), state.on_denied.take());
    for dropped in [
        catch_unwind(AssertUnwindSafe(|| drop(output))),
        catch_unwind(AssertUnwindSafe(|| drop(denied))),
    ] {
        if let Err(panic) = dropped {
            state.keep_panic(panic);
        }
    }
    state.tell();
}

unsafe extern "C" fn on_destroy(state: *mut c_void) {
    // SAFETY: it is the reference that the sink was given, and the last call for it.
    drop_quietly(unsafe { Rc::from_raw(state as *const State) });
}

/// A command that was started. It moves on while its thread is in here or in its loop.
///
/// As an iterator it gives the output as it comes; whoever reads slowly makes the command
/// wait, and what is not read is in the result of [`Exec::wait`]. Dropping it cancels the
/// command, which ends when the loop is run again, or with the runner.
pub struct Exec {
    handle: Handle<sys::agentd_exec>,
    state: Rc<State>,
    runner: Runner,
    ask: Option<Arc<Ask>>,
    /// The iterator has given the error for which it ends, but not that end.
    broken: bool,
}

impl Exec {
    pub(crate) fn start(
        runner: &Runner,
        context: &Context,
        params: &Params,
        mut options: ExecOptions,
    ) -> Result<Self> {
        let limits = options.limits.to_raw()?;
        let grace = options.grace.map_or(Ok(0), |grace| milliseconds("/grace", grace))?;
        let opts = sys::agentd_exec_opts {
            size: size_of::<sys::agentd_exec_opts>() as u32,
            flags: options.flags,
            limits: &limits,
            grace_ms: grace.try_into().unwrap_or(u32::MAX),
            ..Default::default()
        };
        // Dropped after the sink: a closure that has not been used is dropped here.
        let state = Rc::new(State::new(runner, &mut options)?);
        let sink = new_sink(&state)?;
        // SAFETY: all live during the call, which takes references of what it keeps, and
        // comes from the thread of the runner, for this has no way to another.
        let handle = make(|ret, err| unsafe {
            sys::agentd_exec_start(
                runner.as_ptr(),
                context.as_ptr(),
                params.as_ptr(),
                sink.as_ptr(),
                &opts,
                ret,
                err,
            )
        })?;
        if options.flags & sys::AGENTD_EXEC_STDIN_OPEN != 0 && !options.open_input {
            // SAFETY: the handle keeps it alive.
            unsafe { state.feed(handle.as_ptr()) };
        }
        let ask = context.ask();
        Ok(Self { handle, state, runner: runner.clone(), ask, broken: false })
    }

    /// Waits for the end, which is the end of its input as well. A panic of one of its closures
    /// goes on here.
    pub fn wait(mut self) -> Result<ExecResult> {
        if self.state.open_input {
            self.close_stdin();
        }
        self.run_until_finished(None)?;
        let result = self.state.result.take().expect("a command that finished has a result");
        if let Some(buffer) = &self.state.buffer {
            let kept = Stream::ALL.map(|stream| self.state.kept(buffer, stream));
            return Ok(ExecResult::new(result, kept));
        }
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(mut chunk) = self.state.next_chunk() {
            let kept = match chunk.stream {
                Stream::Stdout => &mut stdout,
                Stream::Stderr => &mut stderr,
            };
            if kept.is_empty() {
                *kept = chunk.data;
            } else {
                kept.append(&mut chunk.data);
            }
        }
        Ok(ExecResult::new(result, [(stdout, 0), (stderr, 0)]))
    }

    /// Gives it input, if it was started with [`ExecOptions::open_stdin`], and waits until that is
    /// taken. Output is kept meanwhile, however much it is. [`ErrorCode::State`]: nobody reads the
    /// input any more.
    ///
    /// [`ErrorCode::State`]: crate::ErrorCode::State
    pub fn write(&mut self, mut data: &[u8]) -> Result<()> {
        self.state.window.set(usize::MAX);
        self.resume();
        while !data.is_empty() {
            let mut taken = 0;
            // SAFETY: the handle keeps it alive; the bytes live during the call.
            let code = unsafe {
                sys::agentd_exec_write(self.as_ptr(), data.as_ptr(), data.len(), &mut taken)
            };
            if code >= 0 {
                data = &data[taken..];
            } else if code == sys::AGENTD_ERR_AGAIN {
                self.run_loop_once()?;
                self.go_on_panicking();
            } else {
                return Err(from_code(code));
            }
        }
        Ok(())
    }

    /// Ends its input after what was written. Nothing if that was done.
    pub fn close_stdin(&self) {
        // SAFETY: the handle keeps it alive.
        unsafe { sys::agentd_exec_close_stdin(self.as_ptr()) };
    }

    /// Waits for the end, but not longer; says whether it has come. Output is kept meanwhile,
    /// however much it is.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<bool> {
        self.run_until_finished(Some(timeout))
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.state.finished.get()
    }

    fn run_until_finished(&mut self, timeout: Option<Duration>) -> Result<bool> {
        if !self.state.finished.get() {
            self.state.window.set(usize::MAX);
            self.resume();
            self.runner.event_loop().run_until(self.handle.as_ptr(), timeout)?;
        }
        self.go_on_panicking();
        Ok(self.state.finished.get())
    }

    /// Asks it to end, and ends it after the grace. Nothing if it has ended.
    pub fn cancel(&self) {
        // SAFETY: the handle keeps it alive.
        unsafe { sys::agentd_exec_cancel(self.handle.as_ptr()) };
    }

    /// Ends it now.
    pub fn kill(&self) {
        // SAFETY: the handle keeps it alive.
        unsafe { sys::agentd_exec_kill(self.handle.as_ptr()) };
    }

    /// Delivers a signal to the command's process group.
    pub fn signal(&self, number: i32) -> Result<()> {
        // SAFETY: the handle keeps it alive.
        check(|err| unsafe { sys::agentd_exec_signal(self.handle.as_ptr(), number, err) })?;
        Ok(())
    }

    /// Ends it from any thread, while its own waits.
    pub fn canceller(&self) -> Canceller {
        Canceller::new(self.handle.as_ptr())
    }

    /// For what only [`sys`](crate::sys) has: borrowed, and of this thread unless its header says
    /// otherwise.
    pub fn as_ptr(&self) -> *mut sys::agentd_exec {
        self.handle.as_ptr()
    }

    fn resume(&self) {
        for stream in Stream::ALL {
            if self.state.paused[stream as usize].replace(false) {
                // SAFETY: the handle keeps it alive.
                unsafe { sys::agentd_exec_resume(self.handle.as_ptr(), stream.to_raw()) };
            }
        }
    }

    fn go_on_panicking(&self) {
        // SAFETY: the handle keeps it alive, and its id.
        let id = unsafe { CStr::from_ptr(sys::agentd_exec_id(self.as_ptr())) };
        if let Some(panic) = self.ask.as_ref().and_then(|ask| ask.panic_of(id)) {
            resume_unwind(panic);
        }
        if let Some(panic) = self.state.panic.take() {
            resume_unwind(panic);
        }
    }

    fn run_loop_once(&mut self) -> Result<()> {
        self.state.iterating.set(true);
        let turn = self.runner.event_loop().run(None);
        self.state.iterating.set(false);
        turn.map(drop)
    }
}

impl Iterator for Exec {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        self.state.window.set(WINDOW);
        loop {
            self.go_on_panicking();
            if let Some(chunk) = self.state.next_chunk() {
                if self.state.waiting.get() < WINDOW / 2 {
                    self.resume();
                }
                return Some(Ok(chunk));
            }
            if self.state.finished.get() || mem::take(&mut self.broken) {
                return None;
            }
            if let Err(error) = self.run_loop_once() {
                self.broken = true;
                return Some(Err(error));
            }
        }
    }
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exec").field("finished", &self.state.finished).finish_non_exhaustive()
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if !self.state.finished.get() {
            self.state.abandoned.set(true);
            self.state.chunks.take();
            self.resume();
            self.cancel();
        }
        drop(self.state.on_output.take());
        drop(self.state.on_denied.take());
        drop(self.state.panic.take());
    }
}

fn new_buffer(head: usize, tail: usize) -> Result<Handle<sys::agentd_sink>> {
    // SAFETY: both pointers are written to during the call only.
    make(|ret, err| unsafe { sys::agentd_sink_new_buffer(head, tail, ret, err) })
}

/// The callbacks' and, if there are such, a buffer and files.
fn new_sink(state: &Rc<State>) -> Result<Handle<sys::agentd_sink>> {
    let mut sink = new_callbacks(state)?;
    if let Some(buffer) = &state.buffer {
        sink = new_tee(&sink, buffer)?;
    }
    if state.filed.contains(&true) {
        let open = state.files.take();
        let fd = |stream: Stream| open[stream as usize].as_ref().map_or(-1, |f| f.as_raw_fd());
        let (stdout, stderr) = (fd(Stream::Stdout), fd(Stream::Stderr));
        state.files.set(open);
        // SAFETY: the state, which the sink of its callbacks holds, keeps them open until it is
        // written to no more.
        let files = make(|ret, err| unsafe { sys::agentd_sink_new_fd(stdout, stderr, ret, err) })?;
        sink = new_tee(&sink, &files)?;
    }
    Ok(sink)
}

fn new_tee(
    one: &Handle<sys::agentd_sink>,
    other: &Handle<sys::agentd_sink>,
) -> Result<Handle<sys::agentd_sink>> {
    // SAFETY: both live, and it takes references.
    make(|ret, err| unsafe { sys::agentd_sink_new_tee(one.as_ptr(), other.as_ptr(), ret, err) })
}

fn new_callbacks(state: &Rc<State>) -> Result<Handle<sys::agentd_sink>> {
    let heard = state.buffer.is_none() && state.filed.contains(&false);
    let ops = sys::agentd_sink_ops {
        size: size_of::<sys::agentd_sink_ops>() as u32,
        output: heard.then_some(on_output as _),
        stdin_drained: Some(on_stdin_drained),
        denied: Some(on_denied),
        finished: Some(on_finished),
        destroy: Some(on_destroy),
        ..Default::default()
    };
    let userdata = Rc::into_raw(state.clone());
    // SAFETY: ops lives during the call, userdata until on_destroy().
    make(|ret, err| unsafe { sys::agentd_sink_new(&ops, userdata as *mut c_void, ret, err) })
        .map_err(|error| {
            // SAFETY: there is no sink that would call on_destroy().
            drop(unsafe { Rc::from_raw(userdata) });
            error
        })
}

/// Ends a command from any thread. It does not keep the command's runner alive, and does nothing
/// when the command has ended.
#[derive(Debug)]
pub struct Canceller(Handle<sys::agentd_exec>);

// SAFETY: cancelling, killing and the counting of references work from any thread.
unsafe impl Send for Canceller {}
// SAFETY: as above.
unsafe impl Sync for Canceller {}

impl Canceller {
    fn new(exec: *mut sys::agentd_exec) -> Self {
        // SAFETY: ref takes any living object and returns it with one more reference.
        let handle = unsafe { Handle::from_raw(sys::agentd_exec_ref(exec)) };
        Self(handle.expect("ref returns its argument"))
    }

    /// Asks it to end, and ends it after the grace.
    pub fn cancel(&self) {
        // SAFETY: the handle keeps it alive.
        unsafe { sys::agentd_exec_cancel(self.0.as_ptr()) };
    }

    /// Ends it now.
    pub fn kill(&self) {
        // SAFETY: the handle keeps it alive.
        unsafe { sys::agentd_exec_kill(self.0.as_ptr()) };
    }
}

impl Clone for Canceller {
    fn clone(&self) -> Self {
        Self::new(self.0.as_ptr())
    }
}
