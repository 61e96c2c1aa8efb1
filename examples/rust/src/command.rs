// SPDX-License-Identifier: MIT
use std::env;
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::io::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::context::Context;
use crate::error::{Error, ErrorCode, Result};
use crate::exec::{Denial, Exec, ExecOptions, Stream};
use crate::limits::Limits;
use crate::params::Params;
use crate::policy::Policy;
use crate::result::ExecResult;
use crate::runner::Runner;

#[derive(Debug)]
enum What {
    Shell(OsString),
    Argv(Vec<OsString>),
}

/// A command with everything around it, for those who need neither a [`Context`] nor
/// [`Params`] of their own: in a sandbox with the system's programs, the working directory
/// of the process and no network, unless something else is said.
///
/// ```no_run
/// # fn main() -> agentd::Result<()> {
/// use std::time::Duration;
///
/// let result = agentd::Command::shell("make 2>&1 | tail")
///     .timeout(Duration::from_secs(60))
///     .env("CC", "gcc")
///     .run()?;
/// println!("{}: {}", result.status(), String::from_utf8_lossy(result.stdout()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "it runs when run() or start() is called"]
pub struct Command {
    what: What,
    timeout: Option<Duration>,
    env: Vec<(OsString, OsString)>,
    workdir: Option<PathBuf>,
    backend: Option<String>,
    session: Option<String>,
    policy: Option<Policy>,
    options: ExecOptions,
}

impl Command {
    fn from(what: What) -> Self {
        Self {
            what,
            timeout: None,
            env: Vec::new(),
            workdir: None,
            backend: None,
            session: None,
            policy: None,
            options: ExecOptions::new(),
        }
    }

    /// A script for the shell.
    pub fn shell(script: impl Into<OsString>) -> Self {
        Self::from(What::Shell(script.into()))
    }

    /// A program and its arguments, without a shell.
    pub fn argv(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self::from(What::Argv(argv.into_iter().map(Into::into).collect()))
    }

    /// Wall clock, from when it runs to its exit; 30 seconds unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// A variable of its environment, which is built from nothing.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().into(), value.as_ref().into()));
        self
    }

    /// Working directory; that of the process unless set.
    pub fn workdir(mut self, path: impl AsRef<Path>) -> Self {
        self.workdir = Some(path.as_ref().into());
        self
    }

    /// Backend by name: `host`, `sandbox`, `microvm`. The policy has to accept it.
    pub fn backend(mut self, name: impl Into<String>) -> Self {
        self.backend = Some(name.into());
        self
    }

    /// Runs it in a persistent session of the runner's [`Pool`](crate::Pool): see
    /// [`Context::set_session`].
    pub fn session(mut self, id: impl Into<String>) -> Self {
        self.session = Some(id.into());
        self
    }

    /// What is allowed; the same as of the runner unless set.
    pub fn policy(mut self, policy: &Policy) -> Self {
        self.policy = Some(policy.clone());
        self
    }

    /// Limits of the whole process tree.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.options = self.options.limits(limits);
        self
    }

    /// Standard input, which else is empty.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.options = self.options.stdin(input);
        self
    }

    /// Standard error becomes part of standard output, in the order written.
    pub fn merge_stderr(mut self) -> Self {
        self.options = self.options.merge_stderr();
        self
    }

    /// Standard input that the [`Exec`] is given: see [`ExecOptions::open_stdin`].
    pub fn open_stdin(mut self) -> Self {
        self.options = self.options.open_stdin();
        self
    }

    /// Keeps only the head and the tail of its output: see [`ExecOptions::keep`].
    pub fn keep(mut self, head: usize, tail: usize) -> Self {
        self.options = self.options.keep(head, tail);
        self
    }

    /// Standard output goes to a file: see [`ExecOptions::stdout`].
    pub fn stdout(mut self, file: impl Into<OwnedFd>) -> Self {
        self.options = self.options.stdout(file);
        self
    }

    /// Standard error goes to a file.
    pub fn stderr(mut self, file: impl Into<OwnedFd>) -> Self {
        self.options = self.options.stderr(file);
        self
    }

    /// Tells a closure what the policies stop: see [`ExecOptions::on_denied`].
    pub fn on_denied(mut self, closure: impl FnMut(&Denial) + 'static) -> Self {
        self.options = self.options.on_denied(closure);
        self
    }

    /// From SIGTERM to SIGKILL; 2 seconds unless set.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.options = self.options.grace(grace);
        self
    }

    /// Ends it when it produces more than `output_bytes`: see [`ExecOptions::kill_on_output`].
    pub fn kill_on_output(mut self) -> Self {
        self.options = self.options.kill_on_output();
        self
    }

    /// Gives output to a closure: see [`ExecOptions::on_output`].
    pub fn on_output(
        mut self,
        closure: impl FnMut(Stream, &[u8]) -> ControlFlow<()> + 'static,
    ) -> Self {
        self.options = self.options.on_output(closure);
        self
    }

    /// Runs it on this thread's runner and waits for its end.
    pub fn run(self) -> Result<ExecResult> {
        self.start()?.wait()
    }

    /// Starts it on this thread's runner.
    pub fn start(self) -> Result<Exec> {
        self.start_on(&Runner::of_thread()?)
    }

    /// Runs it on a runner and waits for its end.
    pub fn run_on(self, runner: &Runner) -> Result<ExecResult> {
        self.start_on(runner)?.wait()
    }

    /// Starts it on a runner.
    pub fn start_on(self, runner: &Runner) -> Result<Exec> {
        let params = match &self.what {
            What::Shell(script) => Params::shell(script, self.timeout)?,
            What::Argv(argv) => Params::argv(argv, self.timeout)?,
        };
        let mut context = Context::new()?;
        context.set_policy(self.policy.as_ref().unwrap_or_else(|| runner.policy()))?;
        context.set_workdir(self.workdir.map_or_else(current_dir, Ok)?)?;
        if let Some(backend) = &self.backend {
            context.set_backend(backend)?;
        }
        context.set_session(self.session.as_deref())?;
        for (name, value) in &self.env {
            context.set_env(name, value)?;
        }
        runner.start(&context, &params, self.options)
    }
}

fn current_dir() -> Result<PathBuf> {
    env::current_dir()
        .map_err(|error| Error::new(ErrorCode::System, format!("working directory: {}", error)))
}
