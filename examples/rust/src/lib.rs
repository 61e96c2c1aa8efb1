// SPDX-License-Identifier: MIT
//! Runs shell commands on behalf of AI agents: libagentd for Rust.
//!
//! ```no_run
//! # fn main() -> agentd::Result<()> {
//! let result = agentd::run("make 2>&1 | tail")?;
//! println!("{}: {}", result.status(), String::from_utf8_lossy(result.stdout()));
//!
//! let mut exec = agentd::Command::shell("make").start()?;
//! let canceller = exec.canceller(); // for any thread
//! for chunk in &mut exec {
//!     print!("{}", String::from_utf8_lossy(&chunk?.data));
//! }
//! println!("{}", exec.wait()?.status());
//! # Ok(())
//! # }
//! ```
//!
//! There is no thread but the caller's: a [`Runner`] belongs to the thread that made it, as do
//! its [`Loop`] and the [`Exec`]s it starts, and they do something only while that thread waits
//! for one of them. What may go to other threads, [`Policy`], [`Params`], [`Context`],
//! [`ExecResult`], [`Canceller`] and [`Waker`], the compiler knows. A program that wants to run
//! commands from several threads has a runner in each.
//!
//! After fork(2), a child must not use what its parent made.

#![deny(missing_docs, unsafe_op_in_unsafe_fn)]

mod ask;
mod command;
mod context;
mod error;
mod event_loop;
mod exec;
mod handle;
mod limits;
mod log;
mod panics;
mod params;
mod policy;
mod pool;
mod probe;
mod result;
mod runner;
/// The C interface, as its headers declare it.
#[allow(missing_docs, non_camel_case_types, clippy::all)]
pub mod sys;

pub use ask::{Answer, Ask, Question};
pub use command::Command;
pub use context::Context;
pub use error::{Error, ErrorCode, Result};
pub use event_loop::{Loop, Waker};
pub use exec::{Canceller, Chunk, Denial, Exec, ExecOptions, Stream};
pub use limits::Limits;
pub use log::{LogLevel, LogRecord};
pub use params::Params;
pub use policy::{Access, Isolation, Net, Policy, PolicyBuilder, Strictness};
pub use pool::Pool;
pub use probe::{Act, Capability, Probe, ProbeOptions};
pub use result::{Cause, ExecResult, Layer, LayerState, Metric, Status};
pub use runner::{Runner, RunnerBuilder};

use std::ffi::{CStr, OsString};

/// Runs a script in a sandbox with the system's programs and the working directory, and waits
/// for its end. [`Command`] is the same with more to say.
pub fn run(script: impl Into<OsString>) -> Result<ExecResult> {
    Command::shell(script).run()
}

/// Version of the library that was loaded.
pub fn version() -> &'static str {
    // SAFETY: static text.
    let version = unsafe { CStr::from_ptr(sys::agentd_version_string()) };
    version.to_str().expect("a version is ASCII")
}
