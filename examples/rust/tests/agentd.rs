// SPDX-License-Identifier: MIT
//! With whatever libagentd pkg-config and the loader find.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, panic_any, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process;
use std::rc::Rc;
use std::sync::{mpsc, Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use agentd::{
    Access, Answer, Ask, Canceller, Capability, Cause, Command, Context, ErrorCode, Exec,
    ExecOptions, ExecResult, Isolation, LayerState, Limits, LogLevel, LogRecord, Loop, Metric, Net,
    Params, Policy, PolicyBuilder, Pool, Probe, ProbeOptions, Question, Runner, RunnerBuilder,
    Status, Stream, Strictness, Waker,
};

fn runner() -> Runner {
    Runner::builder().policy(Policy::none().unwrap()).build().unwrap()
}

/// Without isolation, for what is about these bindings, and without the user's profile.
fn host(script: &str) -> Command {
    Command::shell(script).backend("host").workdir("/").env("HOME", "/")
}

fn summary(result: &ExecResult) -> (Status, Cause, Option<i32>, Option<i32>) {
    (result.status(), result.cause(), result.exit_code(), result.signal())
}

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("agentd-rust-{}-{}", process::id(), name));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl TempDir {
    /// A file that a command can wait for with `wait_for`.
    fn gate(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

fn wait_for(gate: &Path) -> String {
    format!("until [ -e {} ]; do sleep 0.01; done", gate.display())
}

impl Drop for TempDir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// On a machine that can host one: the library says why not.
fn has_sandbox() -> bool {
    let result = agentd::run("true").unwrap();
    if result.cause() == Cause::Isolation {
        eprintln!("SKIP-CANNOT: {}", result.error().unwrap());
    }
    result.cause() != Cause::Isolation
}

// ---- how commands end

#[test]
fn sandboxed_by_default() {
    if !has_sandbox() {
        return;
    }
    let dir = TempDir::new("sandbox");
    let (secret, workdir) = (dir.0.join("secret"), dir.0.join("work"));
    fs::create_dir(&workdir).unwrap();
    fs::write(&secret, "secret").unwrap();
    let script = format!("echo made >file; cat {}", secret.display());
    let result = Command::shell(&script).workdir(&workdir).run().unwrap();
    assert_eq!(summary(&result), (Status::Error, Cause::Exited, Some(1), None));
    assert_eq!((result.backend(), result.stdout()), ("sandbox", &b""[..]));
    assert_eq!(fs::read(workdir.join("file")).unwrap(), b"made\n");
    let layers: Vec<_> = result.layers().collect();
    for name in ["userns", "mountns", "landlock", "seccomp"] {
        let layer = layers.iter().find(|layer| layer.name == name).unwrap();
        assert_eq!(layer.state, LayerState::Enforced, "{:?}", layer);
        assert!(result.to_json().unwrap().contains(name));
    }
    // It is there for a command without a sandbox.
    let result = host(&script).workdir(&workdir).run_on(&runner()).unwrap();
    assert!(result.is_ok() && result.stdout() == b"secret");
}

#[test]
fn one_call() {
    if !has_sandbox() {
        return;
    }
    let result = agentd::run("echo hello; echo oops >&2").unwrap();
    assert_eq!(summary(&result), (Status::Ok, Cause::Exited, Some(0), None));
    assert_eq!((result.stdout(), result.stderr()), (&b"hello\n"[..], &b"oops\n"[..]));
    assert!(result.duration().unwrap() > Duration::ZERO);
    assert_eq!(result.metric(Metric::StdoutBytes), Some(6));
    assert_eq!(result.metric(Metric::NetConnections), None);
    assert!(result.error().is_none() && result.limit().is_none() && !result.is_truncated());
}

#[test]
fn exit_status_and_signal() {
    let runner = runner();
    let result = host("exit 3").run_on(&runner).unwrap();
    assert_eq!(summary(&result), (Status::Error, Cause::Exited, Some(3), None));
    let result = host("kill -USR1 $$").run_on(&runner).unwrap();
    assert_eq!(summary(&result), (Status::Error, Cause::Signaled, None, Some(10)));
    assert_eq!(
        (result.status().to_string(), result.cause().to_string()),
        ("error".into(), "signaled".into())
    );
}

#[test]
fn timeout() {
    let begin = Instant::now();
    let result = host("sleep 60").timeout(Duration::from_millis(200)).run_on(&runner()).unwrap();
    assert_eq!((result.status(), result.cause()), (Status::Timeout, Cause::Timeout));
    assert!(begin.elapsed() < Duration::from_secs(30));
}

#[test]
fn limit_of_output() {
    let limits = Limits { output_bytes: Some(1000), ..Default::default() };
    let result = host("head -c 5000 /dev/zero").limits(limits).run_on(&runner()).unwrap();
    assert!(result.is_ok() && result.is_truncated());
    assert_eq!(result.stdout().len(), 1000);
    assert_eq!(result.metric(Metric::DroppedBytes), Some(4000));
}

#[test]
fn environment_workdir_and_arguments() {
    let runner = runner();
    let result = host("echo $GREETING; pwd").env("GREETING", "hello").run_on(&runner).unwrap();
    assert_eq!(result.stdout(), b"hello\n/\n");
    let argv = Command::argv(["/bin/echo", "$HOME; a  b"]).backend("host");
    assert_eq!(argv.run_on(&runner).unwrap().stdout(), b"$HOME; a  b\n");
}

#[test]
fn denied_is_a_result() {
    let runner = Runner::new().unwrap();
    let result = host("echo hello").run_on(&runner).unwrap();
    assert_eq!((result.status(), result.cause()), (Status::Denied, Cause::Isolation));
    assert!(result.stdout().is_empty() && result.duration().is_none());
    let error = result.error().unwrap();
    assert_eq!(error.code(), ErrorCode::Denied);
    assert!(!error.message().is_empty());
}

#[test]
fn cannot_be_started_is_a_result() {
    let result = Command::argv(["/nonexistent"]).backend("host").run_on(&runner()).unwrap();
    assert_eq!((result.status(), result.cause()), (Status::Error, Cause::Spawn));
    let error = result.error().unwrap();
    assert_eq!(error.os_error().unwrap().kind(), std::io::ErrorKind::NotFound);
}

// ---- errors

#[test]
fn errors_name_the_input() {
    let error = Policy::from_json(r#"{"limits": {"mem_bytes": "much"}}"#).unwrap_err();
    assert_eq!((error.code(), error.pointer()), (ErrorCode::Invalid, "/limits/mem_bytes"));
    assert!(error.to_string().ends_with("(at /limits/mem_bytes)"), "{}", error);
    Policy::from_json(r#"{"limits": {"mem_bytes": 1000000}}"#).unwrap();

    let error = Params::from_json(r#"{"command": 7}"#).unwrap_err();
    assert_eq!((error.code(), error.pointer()), (ErrorCode::Invalid, "/command"));
    Params::from_json(r#"{"command": "true"}"#).unwrap();

    let error = Context::from_json(r#"{"workdir": "here"}"#).unwrap_err();
    assert_eq!((error.code(), error.pointer()), (ErrorCode::Invalid, "/workdir"));
    Context::from_json(r#"{"workdir": "/here"}"#).unwrap();
}

#[test]
fn errors_of_these_bindings_do_too() {
    let runner = runner();
    let none = Limits { mem_bytes: Some(0), ..Default::default() };
    for (command, pointer) in [
        (host("true").limits(none), "/limits/mem_bytes"),
        (host("true").timeout(Duration::ZERO), "/timeout_ms"),
        (host("true").env("NAME", "a\0b"), "/env"),
        (host("true\0"), "/command"),
    ] {
        let error = command.run_on(&runner).unwrap_err();
        assert_eq!((error.code(), error.pointer()), (ErrorCode::Invalid, pointer), "{}", error);
    }
    let short = host("sleep 60").timeout(Duration::from_nanos(1)).run_on(&runner).unwrap();
    assert_eq!(short.status(), Status::Timeout);
}

#[test]
fn a_backend_that_does_not_exist() {
    let error = host("true").backend("nothing").run_on(&runner()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(error.message().contains("nothing"), "{}", error);
}

#[test]
fn a_helper_that_does_not_exist() {
    let error = Runner::builder().helper_path("/var/nonexistent/helper").build().unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(error.message().contains("/var/nonexistent/helper"), "{}", error);
}

#[test]
fn explain() {
    let mut context = Context::new().unwrap();
    context.set_workdir("/").unwrap().set_backend("host").unwrap();
    let params = Params::shell("true", None).unwrap();
    assert!(runner().explain(&context, &params).unwrap().contains(r#""host""#));
    assert!(params.to_json().unwrap().contains("30000"));
}

// ---- output

#[test]
fn output_comes_as_it_is_written() {
    let dir = TempDir::new("stream");
    let gates = [dir.gate("second"), dir.gate("third"), dir.gate("nothing")];
    let script = format!(
        "echo one; {}; echo two >&2; {}; echo three",
        wait_for(&gates[0]),
        wait_for(&gates[1])
    );
    let mut exec = host(&script).start_on(&runner()).unwrap();
    let mut seen = Vec::new();
    for chunk in &mut exec {
        let chunk = chunk.unwrap();
        fs::write(&gates[seen.len()], "").unwrap();
        seen.push((chunk.stream, String::from_utf8(chunk.data).unwrap()));
    }
    let wanted =
        [(Stream::Stdout, "one\n"), (Stream::Stderr, "two\n"), (Stream::Stdout, "three\n")];
    assert!(seen.iter().map(|(stream, text)| (*stream, text.as_str())).eq(wanted), "{:?}", seen);
    assert!(exec.is_finished() && exec.next().is_none());
    let result = exec.wait().unwrap();
    assert!(result.is_ok() && result.stdout().is_empty());
}

#[test]
fn what_the_iterator_leaves_is_in_the_result() {
    let dir = TempDir::new("rest");
    let gate = dir.gate("rest");
    let script = format!("echo one; {}; echo two; echo three >&2", wait_for(&gate));
    let mut exec = host(&script).start_on(&runner()).unwrap();
    assert_eq!(exec.next().unwrap().unwrap().data, b"one\n");
    fs::write(&gate, "").unwrap();
    let result = exec.wait().unwrap();
    assert_eq!(result.into_output(), (b"two\n".to_vec(), b"three\n".to_vec()));
}

#[test]
fn a_slow_reader_makes_the_command_wait() {
    const SIZE: usize = 8 << 20;
    let script = format!("head -c {} /dev/zero", SIZE);
    let runner = runner();
    let event_loop = runner.event_loop();

    let mut exec = host(&script).start_on(&runner).unwrap();
    let mut size = exec.next().unwrap().unwrap().data.len();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(300) {
        event_loop.run(Some(Duration::from_millis(50))).unwrap();
    }
    assert!(!exec.is_finished());
    for chunk in &mut exec {
        size += chunk.unwrap().data.len();
    }
    assert_eq!(size, SIZE);
    assert!(exec.wait().unwrap().is_ok());

    // Whoever waits wants all of it.
    let mut exec = host(&script).start_on(&runner).unwrap();
    assert!(exec.wait_timeout(Duration::from_secs(30)).unwrap());
    assert_eq!(exec.wait().unwrap().stdout().len(), SIZE);
}

#[test]
fn merged_output_is_in_order() {
    let result = host("echo 1; echo 2 >&2; echo 3").merge_stderr().run_on(&runner()).unwrap();
    assert_eq!((result.stdout(), result.stderr()), (&b"1\n2\n3\n"[..], &b""[..]));
}

#[test]
fn closure() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let sink = seen.clone();
    let command = host("echo out; echo err >&2").on_output(move |stream, data| {
        sink.borrow_mut().push((stream, data.to_vec()));
        ControlFlow::Continue(())
    });
    let result = command.run_on(&runner()).unwrap();
    assert!(result.is_ok() && result.stdout().is_empty());
    let wanted = [(Stream::Stdout, b"out\n".to_vec()), (Stream::Stderr, b"err\n".to_vec())];
    assert!(seen.borrow().len() == 2 && wanted.iter().all(|chunk| seen.borrow().contains(chunk)));
    assert_eq!(Rc::strong_count(&seen), 1);
}

#[test]
fn closure_that_refuses_ends_the_command() {
    let runner = runner();
    let command = host("echo hello; sleep 60").on_output(|_, _| ControlFlow::Break(()));
    let result = command.run_on(&runner).unwrap();
    assert_eq!((result.status(), result.cause()), (Status::Killed, Cause::Sink));
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

#[test]
fn a_panic_goes_on_in_whoever_waits() {
    let runner = runner();
    let panicking = || host("echo hello; sleep 60").on_output(|_, data| panic!("{}", data.len()));
    let begin = Instant::now();
    for way in 0..3 {
        let panic = catch_unwind(AssertUnwindSafe(|| {
            let mut exec = panicking().start_on(&runner).unwrap();
            match way {
                0 => drop(exec.wait()),
                1 => drop(exec.next()),
                _ => drop(exec.wait_timeout(Duration::from_secs(30))),
            }
        }));
        assert_eq!(panic.unwrap_err().downcast_ref::<String>().unwrap(), "6");
    }
    let guard = PanicsWhenDropped;
    let command = host("echo hello").on_output(move |_, _| {
        let _held = &guard;
        ControlFlow::Continue(())
    });
    let panic = catch_unwind(AssertUnwindSafe(|| command.run_on(&runner)));
    assert_eq!(*panic.unwrap_err().downcast_ref::<&str>().unwrap(), "dropped");
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!(host("true").run_on(&runner).unwrap().is_ok());
}

#[test]
fn waiting_in_a_closure_is_refused() {
    let runner = runner();
    let refused = Rc::new(Cell::new(None));
    let (inner, told) = (runner.clone(), refused.clone());
    let command = host("echo hello").on_output(move |_, _| {
        told.set(host("true").run_on(&inner).err());
        ControlFlow::Continue(())
    });
    assert!(command.run_on(&runner).unwrap().is_ok());
    assert_eq!(refused.take().unwrap().code(), ErrorCode::Reentrant);
}

#[test]
fn what_was_refused_in_a_closure_goes_on_later() {
    let runner = runner();
    for way in 0..2 {
        let exec = host("cat").open_stdin().start_on(&runner).unwrap();
        let exec = Rc::new(RefCell::new(exec));
        let inner = exec.clone();
        let refused = Rc::new(Cell::new(None));
        let told = refused.clone();
        let command = host("echo hello").on_output(move |_, _| {
            let mut exec = inner.borrow_mut();
            told.set(if way == 0 {
                let error = exec.next().unwrap().err();
                assert!(exec.next().is_none());
                error
            } else {
                exec.write(&[b'x'; 1 << 20]).err()
            });
            ControlFlow::Continue(())
        });
        assert!(command.run_on(&runner).unwrap().is_ok());
        assert_eq!(refused.take().unwrap().code(), ErrorCode::Reentrant);
        let mut exec = Rc::try_unwrap(exec).unwrap().into_inner();
        exec.write(b"end").unwrap();
        exec.close_stdin();
        let mut seen = Vec::new();
        for chunk in &mut exec {
            seen.extend(chunk.unwrap().data);
        }
        assert!(exec.is_finished() && seen.ends_with(b"end"));
        assert!(exec.wait().unwrap().is_ok());
    }
}

#[test]
fn dropping_in_a_closure() {
    let event_loop = Loop::new().unwrap();
    let on_loop = || {
        let builder = Runner::builder().policy(Policy::none().unwrap());
        builder.event_loop(event_loop.clone()).build().unwrap()
    };
    let (runner, mut other) = (on_loop(), Some(on_loop()));
    let mut left = other.as_ref().map(|other| host("sleep 60").start_on(other).unwrap());
    let command = host("echo hello; sleep 0.5; echo again").on_output(move |_, _| {
        drop((left.take(), other.take()));
        ControlFlow::Continue(())
    });
    let begin = Instant::now();
    assert!(command.run_on(&runner).unwrap().is_ok());
    drop((runner, event_loop));
    assert!(begin.elapsed() < Duration::from_secs(30));
}

// ---- input

#[test]
fn input() {
    let runner = runner();
    let input: Vec<u8> = (0..3 << 20).map(|i| (i % 251) as u8).collect();
    let result = host("cat").stdin(input.clone()).run_on(&runner).unwrap();
    assert!(result.is_ok() && result.stdout() == input);
    assert!(host("true").stdin(input).run_on(&runner).unwrap().is_ok());
    for command in [host("cat").stdin(""), host("cat")] {
        assert!(command.run_on(&runner).unwrap().is_ok());
    }
}

#[test]
fn input_bit_by_bit() {
    let runner = runner();
    let script = "while read -r line; do echo got $line; done; echo end";
    let mut exec = host(script).open_stdin().start_on(&runner).unwrap();
    for word in ["one", "two"] {
        exec.write(format!("{}\n", word).as_bytes()).unwrap();
        assert_eq!(exec.next().unwrap().unwrap().data, format!("got {}\n", word).as_bytes());
    }
    exec.write(b"").unwrap();
    exec.write(b"three\n").unwrap();
    // Waiting ends it.
    assert_eq!(exec.wait().unwrap().stdout(), b"got three\nend\n");

    // More than a pipe takes, of a command that writes as much.
    let data: Vec<u8> = (0..5 << 20).map(|i| (i % 251) as u8).collect();
    let mut exec = host("cat").open_stdin().start_on(&runner).unwrap();
    for part in data.chunks(1 << 20) {
        exec.write(part).unwrap();
    }
    exec.close_stdin();
    exec.close_stdin();
    assert_eq!(exec.write(b"more").unwrap_err().code(), ErrorCode::State);
    assert!(exec.wait().unwrap().stdout() == data);
}

#[test]
fn input_that_nobody_reads() {
    let runner = runner();
    let full = vec![0; 4 << 20];
    let script = "exec <&-; echo closed; sleep 60";
    let mut exec = host(script).open_stdin().start_on(&runner).unwrap();
    exec.next().unwrap().unwrap();
    assert_eq!(exec.write(&full).unwrap_err().code(), ErrorCode::State);
    // It ends meanwhile.
    let mut exec = host("sleep 60").open_stdin().start_on(&runner).unwrap();
    let canceller = exec.canceller();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        canceller.kill();
    });
    assert_eq!(exec.write(&full).unwrap_err().code(), ErrorCode::State);
    thread.join().unwrap();
    assert_eq!(exec.wait().unwrap().cause(), Cause::Canceled);
    // It is not open.
    for command in [host("sleep 0.2"), host("sleep 0.2").open_stdin().stdin("all of it")] {
        let mut exec = command.start_on(&runner).unwrap();
        assert_eq!(exec.write(b"more").unwrap_err().code(), ErrorCode::State);
        assert!(exec.wait().unwrap().is_ok());
    }
}

// ---- where output goes

#[test]
fn output_to_files() {
    let runner = runner();
    let dir = TempDir::new("files");
    let create = |name| fs::File::create(dir.0.join(name)).unwrap();
    let read = |name| fs::read(dir.0.join(name)).unwrap();
    let result = host("echo a; echo b >&2").stdout(create("out")).run_on(&runner).unwrap();
    assert!(result.is_ok());
    assert_eq!((result.stdout(), result.stderr()), (&b""[..], &b"b\n"[..]));
    assert_eq!(read("out"), b"a\n");

    let command = host("echo a; echo b >&2").stdout(create("1")).stderr(create("2"));
    let mut exec = command.start_on(&runner).unwrap();
    assert!(exec.next().is_none());
    assert!(exec.wait().unwrap().is_ok());
    assert_eq!((read("1"), read("2")), (b"a\n".to_vec(), b"b\n".to_vec()));

    let seen = Rc::new(RefCell::new(Vec::new()));
    let sink = seen.clone();
    let command =
        host("echo a; echo b >&2").stderr(create("err")).on_output(move |stream, data| {
            sink.borrow_mut().push((stream, data.to_vec()));
            ControlFlow::Continue(())
        });
    assert!(command.run_on(&runner).unwrap().is_ok());
    assert_eq!(*seen.borrow(), [(Stream::Stdout, b"a\n".to_vec())]);
    assert_eq!(read("err"), b"b\n");

    let read_only = fs::File::open(dir.0.join("err")).unwrap();
    let error = host("true").stdout(read_only).run_on(&runner).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Invalid);
}

#[test]
fn files_are_closed_at_the_end() {
    let runner = runner();
    for way in 0..3 {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let mut exec = Some(host("echo hello").stdout(writer).start_on(&runner).unwrap());
        match way {
            0 => assert!(exec.as_mut().unwrap().next().is_none()),
            1 => drop(exec.take().unwrap().wait().unwrap()),
            _ => assert!(exec.as_mut().unwrap().wait_timeout(Duration::from_secs(30)).unwrap()),
        }
        let mut text = String::new();
        reader.set_nonblocking(true).unwrap();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
    }
}

#[test]
fn heads_and_tails() {
    let runner = runner();
    let script = "seq 1 100000; echo few >&2";
    let whole = host(script).run_on(&runner).unwrap();
    assert_eq!((whole.stdout_omitted(), whole.stderr_omitted()), (0, 0));
    let text = whole.stdout();
    let result = host(script).keep(100, 50).run_on(&runner).unwrap();
    assert_eq!(result.stdout(), [&text[..100], &text[text.len() - 50..]].concat());
    assert_eq!(result.stdout_omitted(), text.len() as u64 - 150);
    assert_eq!((result.stderr(), result.stderr_omitted()), (&b"few\n"[..], 0));
    assert!(result.is_ok() && !result.is_truncated());
    assert!(host(script).keep(0, 0).run_on(&runner).unwrap().stdout().is_empty());
    let error = host("true").keep(usize::MAX, 1).run_on(&runner).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Invalid);
}

#[test]
fn too_much_output_can_be_the_end() {
    let limits = Limits { output_bytes: Some(1000), ..Default::default() };
    let result = host("yes").limits(limits).kill_on_output().run_on(&runner()).unwrap();
    assert_eq!((result.status(), result.cause()), (Status::Killed, Cause::Output));
    assert_eq!(result.stdout().len(), 1000);
}

// ---- hosts

/// Asks the proxy for hosts. Nobody serves the runner's name server, so that one that is allowed
/// is 502 and another 403.
fn get(hosts: &[&str]) -> String {
    let asks = r#"
        get() {
            proxy=${http_proxy#http://} && proxy=${proxy%/}
            exec 3<>"/dev/tcp/${proxy%:*}/${proxy##*:}"
            printf 'GET http://%s/ HTTP/1.0\r\n\r\n' "$1" >&3
            read -r _ code _ <&3; echo "$code"
        }"#;
    hosts.iter().fold(asks.into(), |script, host| format!("{}\nget {}", script, host))
}

fn net_policy(hosts: &[&str]) -> Policy {
    let mut builder = Policy::builder().unwrap();
    for path in ["/usr", "/bin", "/lib", "/lib64"].iter().filter(|path| Path::new(path).is_dir()) {
        builder.allow_path(path, Access::READ | Access::EXEC).unwrap();
    }
    builder.net(Net::Allowlist).unwrap();
    for host in hosts {
        builder.allow_host(host, None).unwrap();
    }
    builder.build()
}

fn net_runner() -> Runner {
    let builder = Runner::builder().policy(net_policy(&["*.test"]));
    builder.net_resolver("127.0.0.1:1").build().unwrap()
}

fn net_context(ask: Ask) -> Context {
    let mut context = Context::new().unwrap();
    context.set_policy(&net_policy(&["rule.test"])).unwrap().set_workdir("/usr").unwrap();
    context.set_ask(Some(ask)).unwrap();
    context
}

fn codes(runner: &Runner, context: &Context, hosts: &[&str]) -> String {
    let result = runner.run(context, &Params::shell(get(hosts), None).unwrap()).unwrap();
    String::from_utf8(result.stdout().to_vec()).unwrap().replace('\n', " ")
}

#[test]
fn denials_are_told() {
    if !has_sandbox() {
        return;
    }
    let runner = net_runner();
    let denials = Rc::new(RefCell::new(Vec::new()));
    let told = denials.clone();
    let command = || {
        let command = Command::shell(get(&["rule.test", "denied.test"]) + "; sleep 0.1");
        command.policy(&net_policy(&["rule.test"])).workdir("/usr")
    };
    let result =
        command().on_denied(move |one| told.borrow_mut().push(one.clone())).run_on(&runner);
    assert_eq!(result.unwrap().stdout(), b"502\n403\n");
    let denials = Rc::try_unwrap(denials).unwrap().into_inner();
    let told: Vec<_> = denials.iter().map(|one| (one.kind.as_str(), &*one.target)).collect();
    assert_eq!(told, [("net", "denied.test:80")]);
    assert!(!denials[0].rule.is_empty() && !denials[0].remedy.is_empty());
    let panicking = command().on_denied(|denial| panic!("{}", denial.target));
    let panic = catch_unwind(AssertUnwindSafe(|| panicking.run_on(&runner)));
    assert_eq!(panic.unwrap_err().downcast_ref::<String>().unwrap(), "denied.test:80");
}

#[test]
fn questions() {
    if !has_sandbox() {
        return;
    }
    let runner = net_runner();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let context = net_context(Ask::new(move |question| {
        seen.lock().unwrap().push((question.host().to_string(), question.port()));
        let answer = match question.host() {
            "once.test" => Answer::Once,
            "always.test" => Answer::Context,
            _ => Answer::Deny,
        };
        question.answer(answer).unwrap();
        assert_eq!(question.answer(answer).unwrap_err().code(), ErrorCode::State);
    }));
    let hosts = ["once.test", "once.test", "always.test", "always.test", "no.test:8080"];
    assert_eq!(codes(&runner, &context, &hosts), "502 502 502 502 403 ");
    let wanted = [("once.test", 80), ("once.test", 80), ("always.test", 80), ("no.test", 8080)];
    let named = |(host, port): &(&str, u16)| (host.to_string(), *port);
    assert_eq!(*asked.lock().unwrap(), wanted.iter().map(named).collect::<Vec<_>>());
    // Not of what a rule allows or the runner's policy does not; a second command remembers.
    let hosts = ["rule.test", "else.where", "always.test"];
    assert_eq!(codes(&runner, &context, &hosts), "502 403 502 ");
    assert_eq!(asked.lock().unwrap().len(), 4);
    // What it was asked by goes with it.
    assert_eq!(Arc::strong_count(&asked), 2);
    drop(context);
    assert_eq!(Arc::strong_count(&asked), 1);
}

#[test]
fn questions_answered_later() {
    if !has_sandbox() {
        return;
    }
    let runner = net_runner();
    let (sender, questions) = mpsc::channel::<Question>();
    let sender = Mutex::new(sender);
    let context = net_context(Ask::new(move |question| {
        sender.lock().unwrap().send(question).unwrap();
    }));
    let params = Params::shell(get(&["a.test", "b.test"]), None).unwrap();
    let mut exec = runner.start(&context, &params, ExecOptions::new()).unwrap();
    for (answer, code) in [(Answer::Once, b"502\n"), (Answer::Deny, b"403\n")] {
        let question = loop {
            match questions.try_recv() {
                Ok(question) => break question,
                Err(_) => runner.event_loop().run(Some(Duration::from_millis(10))).unwrap(),
            };
        };
        // Not by another thread, which may see it.
        let question = thread::spawn(move || {
            assert_eq!(question.answer(answer).unwrap_err().code(), ErrorCode::State);
            question
        });
        question.join().unwrap().answer(answer).unwrap();
        assert_eq!(exec.next().unwrap().unwrap().data, code);
    }
    assert!(exec.wait().unwrap().is_ok());
    // One whose command is over, and then its runner.
    let mut exec = runner.start(&context, &params, ExecOptions::new()).unwrap();
    let question = loop {
        match questions.try_recv() {
            Ok(question) => break question,
            Err(_) => exec.wait_timeout(Duration::from_millis(10)).unwrap(),
        };
    };
    exec.kill();
    assert_eq!(exec.wait().unwrap().cause(), Cause::Canceled);
    assert_eq!(question.answer(Answer::Once).unwrap_err().code(), ErrorCode::State);
    drop((runner, context));
    assert_eq!(question.answer(Answer::Once).unwrap_err().code(), ErrorCode::State);
    thread::spawn(move || drop(question)).join().unwrap();
}

#[test]
fn questions_nobody_answers() {
    if !has_sandbox() {
        return;
    }
    let runner = net_runner();
    let soon = Duration::from_millis(100);
    for (fallback, code) in [(Answer::Once, "502 "), (Answer::Deny, "403 ")] {
        let context = net_context(Ask::new(drop).fallback(soon, fallback));
        assert_eq!(codes(&runner, &context, &["a.test"]), code);
    }
    let mut context = Context::new().unwrap();
    for ask in [
        Ask::new(drop).fallback(soon, Answer::Context),
        Ask::new(drop).fallback(Duration::ZERO, Answer::Once),
    ] {
        assert_eq!(context.set_ask(Some(ask)).unwrap_err().code(), ErrorCode::Invalid);
    }
    let mut context = net_context(Ask::new(|_| panic!("nobody is asked any more")));
    context.set_ask(None).unwrap();
    assert_eq!(codes(&runner, &context, &["a.test"]), "403 ");
}

#[test]
fn questions_that_panic() {
    if !has_sandbox() {
        return;
    }
    let runner = net_runner();
    let params = Params::shell(get(&["a.test"]) + "; sleep 60", None).unwrap();
    for answered in [false, true] {
        let context = net_context(Ask::new(move |question| {
            if answered {
                question.answer(Answer::Once).unwrap();
            }
            panic!("{}", question.host());
        }));
        let begin = Instant::now();
        let panic = catch_unwind(AssertUnwindSafe(|| runner.run(&context, &params)));
        assert_eq!(panic.unwrap_err().downcast_ref::<String>().unwrap(), "a.test");
        assert!(begin.elapsed() < Duration::from_secs(30));
        // Nobody waits for this one.
        drop(runner.start(&context, &params, ExecOptions::new()).unwrap());
    }
    // What the closure has panics where it is dropped, and never in C.
    let guarded = || {
        let guard = PanicsWhenDropped;
        net_context(Ask::new(move |_| {
            let _held = &guard;
        }))
    };
    let context = guarded();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(context))).is_err());
    let context = guarded();
    let exec = runner.start(&context, &params, ExecOptions::new()).unwrap();
    drop((exec, context));
    drop(runner);
}

// ---- what there is

#[test]
fn probe() {
    let dir = TempDir::new("probe");
    let path = dir.0.clone();
    let options = move || ProbeOptions::new().cache_dir(&path);
    let probe = options().probe().unwrap();
    assert!(!probe.is_cached() && probe.acts().len() > 0);
    assert_eq!(probe.level(Capability::Sandbox).is_some(), has_sandbox());
    if probe.level(Capability::Sandbox).is_some() {
        assert_eq!(probe.reason(Capability::Sandbox), "");
        assert!(probe.acts().all(|act| act.possible_inside == Some(false)));
        assert!(probe.acts().any(|act| act.possible_outside == Some(true) && !act.how.is_empty()));
        let mut layers = probe.layers();
        assert!(layers.any(|one| one.name == "seccomp" && one.state == LayerState::Enforced));
        assert!(probe.level(Capability::Landlock).unwrap() >= 1);
    }
    assert!(probe.to_json().unwrap().contains(probe.acts().next().unwrap().name));
    let known = thread::spawn(move || options().probe().unwrap()).join().unwrap();
    assert!(known.is_cached() && known.acts().eq(probe.acts()));
    assert!(!ProbeOptions::new().no_cache().probe().unwrap().is_cached());
    for (options, code, what) in [
        (ProbeOptions::new().cache_dir("relative"), ErrorCode::Invalid, "relative"),
        (ProbeOptions::new().cache_dir("a\0b"), ErrorCode::Invalid, "NUL"),
        (
            ProbeOptions::new().no_cache().helper_path("/usr/lib/no-helper"),
            ErrorCode::NotFound,
            "/usr/lib/no-helper",
        ),
    ] {
        let error = options.probe().unwrap_err();
        assert_eq!(error.code(), code, "{}", error);
        assert!(error.message().contains(what), "{}", error);
    }
}

#[test]
fn tools() {
    let schema = Params::schema();
    assert!(schema.contains("\"command\"") && schema.contains("timeout_ms"));
    let mut context = Context::new().unwrap();
    context.set_workdir("/").unwrap().set_backend("host").unwrap();
    context.set_policy(&Policy::none().unwrap()).unwrap();
    context.set_env("HOME", "/").unwrap().unset_env("HOME").unwrap();
    let params = Params::from_json(r#"{"command": "echo ${HOME-none}"}"#).unwrap();
    assert_eq!(runner().run(&context, &params).unwrap().stdout(), b"none\n");
    assert_eq!(context.unset_env("a=b").unwrap_err().code(), ErrorCode::Invalid);
}

#[test]
fn credentials() {
    if !has_sandbox() {
        return;
    }
    let runner = Runner::new().unwrap();
    let mut context = Context::new().unwrap();
    context.set_workdir("/usr").unwrap().set_policy(&Policy::system().unwrap()).unwrap();
    let params = Params::shell("cat $AGENTD_TOKEN_FILE", None).unwrap();
    let later = SystemTime::now() + Duration::from_secs(3600);
    for expires in [None, Some(later)] {
        context.set_credentials("secret", expires).unwrap();
        assert_eq!(runner.run(&context, &params).unwrap().stdout(), b"secret");
    }
    for expires in [SystemTime::UNIX_EPOCH, SystemTime::now()] {
        context.set_credentials("secret", Some(expires)).unwrap();
        assert_eq!(runner.run(&context, &params).unwrap().status(), Status::Denied);
    }
}

#[test]
fn options_of_a_runner() {
    for (builder, what) in [
        (Runner::builder().net_resolver("no address"), "no address"),
        (Runner::builder().microvm_memory_bytes(1), "memory"),
        (Runner::builder().heartbeat(Duration::ZERO), "above 0"),
        (Runner::builder().microvm_image("a\0b"), "NUL"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.code(), ErrorCode::Invalid);
        assert!(error.message().contains(what), "{}", error);
    }
    let records = Rc::new(RefCell::new(Vec::new()));
    let told = records.clone();
    let builder = Runner::builder().policy(Policy::none().unwrap());
    let builder = builder.heartbeat(Duration::from_millis(100)).drain(Duration::from_millis(50));
    let builder = builder.no_stderr_log().sandbox_tmp_bytes(1 << 20).sandbox_user(65530, 65530);
    let builder = builder.snapshots().microvm_user(65531, 65531).microvm_workdir_bytes(1 << 20);
    let runner = builder
        .log(LogLevel::Info, move |record| told.borrow_mut().push(record.message.clone()))
        .build()
        .unwrap();
    assert!(host("echo unheard >&2; sleep 0.5").run_on(&runner).unwrap().is_ok());
    let records = records.borrow();
    assert!(records.iter().any(|message| message.contains("still running")), "{:?}", records);
    assert!(!records.iter().any(|message| message.contains("unheard")), "{:?}", records);
}

// ---- ending

#[test]
fn zero_is_not_the_default() {
    let with = |set: fn(RunnerBuilder) -> RunnerBuilder| {
        set(Runner::builder().policy(Policy::none().unwrap())).build()
    };
    for (made, pointer) in [
        (with(|builder| builder.max_running(0)), "/max_running"),
        (with(|builder| builder.max_queued(0).max_running(0)), "/max_queued"),
        (with(|builder| builder.sandbox_tmp_bytes(0)), "/sandbox_tmp_bytes"),
        (with(|builder| builder.sandbox_user(0, 1)), "/sandbox_uid"),
        (with(|builder| builder.sandbox_user(1, 0)), "/sandbox_gid"),
        (with(|builder| builder.microvm_memory_bytes(0)), "/microvm_memory_bytes"),
        (with(|builder| builder.microvm_workdir_bytes(0)), "/microvm_workdir_bytes"),
        (with(|builder| builder.microvm_user(0, 1)), "/microvm_uid"),
        (with(|builder| builder.microvm_user(1, 0)), "/microvm_gid"),
    ] {
        let error = made.unwrap_err();
        assert_eq!((error.code(), error.pointer()), (ErrorCode::Invalid, pointer));
    }
    // What there may be none of.
    with(|builder| builder.sandbox_prewarm(0).max_running(1).max_queued(1)).unwrap();
}

#[test]
fn cancel_from_a_thread() {
    let runner = runner();
    for kill in [false, true] {
        let mut exec = host("echo started; sleep 60").start_on(&runner).unwrap();
        assert_eq!(exec.next().unwrap().unwrap().data, b"started\n");
        let canceller = exec.canceller().clone();
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            if kill {
                canceller.kill()
            } else {
                canceller.cancel()
            }
            canceller
        });
        let begin = Instant::now();
        let result = exec.wait().unwrap();
        assert_eq!((result.status(), result.cause()), (Status::Killed, Cause::Canceled));
        assert!(begin.elapsed() < Duration::from_secs(30));
        // Of a command that has ended.
        thread.join().unwrap().cancel();
    }
}

#[test]
fn canceller_outlives_the_runner() {
    let runner = runner();
    let exec = host("sleep 60").start_on(&runner).unwrap();
    let canceller = exec.canceller();
    drop((exec, runner));
    thread::spawn(move || canceller.kill()).join().unwrap();
}

#[test]
fn signal() {
    let script = "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    let mut exec = host(script).start_on(&runner()).unwrap();
    assert_eq!(exec.signal(10).unwrap_err().code(), ErrorCode::State);
    assert_eq!(exec.next().unwrap().unwrap().data, b"ready\n");
    assert_eq!(exec.signal(1000).unwrap_err().code(), ErrorCode::Invalid);
    exec.signal(10).unwrap();
    let result = exec.wait().unwrap();
    assert_eq!((result.exit_code(), result.stdout()), (Some(5), &b"caught\n"[..]));
}

/// Whether a process has this word in its command line.
fn runs(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .map(|process| fs::read(process.path().join("cmdline")).unwrap_or_default())
        .any(|line| line.split(|byte| *byte == 0).any(|part| part == word.as_bytes()))
}

#[test]
fn dropping_ends_the_command() {
    let runner = runner();
    let seconds = format!("60.{}", process::id());
    let script = format!("echo ready; sleep {}; :", seconds);
    let mut exec = host(&script).start_on(&runner).unwrap();
    exec.next().unwrap().unwrap();
    while !runs(&seconds) {
        thread::sleep(Duration::from_millis(10));
    }
    drop(exec);
    // The loop is shared with what else the runner does.
    let begin = Instant::now();
    while runs(&seconds) && begin.elapsed() < Duration::from_secs(30) {
        assert!(host("sleep 0.1").run_on(&runner).unwrap().is_ok());
    }
    assert!(!runs(&seconds));
}

#[test]
fn dropping_the_runner_ends_what_is_left() {
    let runner = runner();
    let seconds = format!("61.{}", process::id());
    let mut exec =
        host(&format!("trap '' TERM; echo ready; sleep {}; :", seconds)).start_on(&runner).unwrap();
    exec.next().unwrap().unwrap();
    while !runs(&seconds) {
        thread::sleep(Duration::from_millis(10));
    }
    drop((exec, runner));
    assert!(!runs(&seconds));
}

#[test]
fn an_exec_keeps_its_runner() {
    let exec = host("echo hello").start_on(&runner()).unwrap();
    assert_eq!(exec.wait().unwrap().stdout(), b"hello\n");
}

// ---- threads and loops

#[test]
fn runners_in_two_threads() {
    let run = |number: usize| {
        move || {
            let runner = runner();
            (0..20).all(|i| {
                let result = host(&format!("echo {}", number * 100 + i)).run_on(&runner).unwrap();
                result.stdout() == format!("{}\n", number * 100 + i).as_bytes()
            })
        }
    };
    let threads = [1, 2].map(|number| thread::spawn(run(number)));
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn commands_run_side_by_side() {
    let runner = runner();
    let begin = Instant::now();
    let execs =
        [0, 1, 2, 3].map(|i| host(&format!("sleep 2; echo {}", i)).start_on(&runner).unwrap());
    for (i, exec) in execs.into_iter().enumerate() {
        assert_eq!(exec.wait().unwrap().stdout(), format!("{}\n", i).as_bytes());
    }
    assert!(begin.elapsed() < Duration::from_secs(8));
}

#[test]
fn more_than_can_wait_is_an_error() {
    let builder = Runner::builder().policy(Policy::none().unwrap());
    let runner = builder.max_running(1).max_queued(1).build().unwrap();
    let execs = [(); 2].map(|()| host("sleep 0.1").start_on(&runner).unwrap());
    assert_eq!(host("true").start_on(&runner).unwrap_err().code(), ErrorCode::Limit);
    for exec in execs {
        assert!(exec.wait().unwrap().is_ok());
    }
}

fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

#[test]
fn waiting_takes_no_cpu_time() {
    let runner = runner();
    let mut exec = host("sleep 1").start_on(&runner).unwrap();
    let begin = cpu_time();
    assert!(exec.next().is_none());
    assert!(exec.wait().unwrap().is_ok());
    let taken = cpu_time() - begin;
    assert!(taken < Duration::from_millis(200), "{:?}", taken);
}

#[test]
fn a_waker_ends_the_loop() {
    let event_loop = Loop::new().unwrap();
    assert!(!event_loop.run(Some(Duration::from_millis(10))).unwrap());
    let waker = event_loop.waker();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        waker.wake();
        waker
    });
    assert!(event_loop.run(None).unwrap());
    drop(event_loop);
    thread.join().unwrap().wake();
}

#[test]
fn policies_are_shared() {
    let policy = Policy::none().unwrap();
    let threads = [(); 2].map(|()| {
        let policy = policy.clone();
        thread::spawn(move || {
            let runner = Runner::builder().policy(policy).build().unwrap();
            host("true").run_on(&runner).unwrap().is_ok()
        })
    });
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    let mut builder = Policy::builder().unwrap();
    builder.min_isolation(Isolation::None).unwrap();
    assert_eq!(builder.build().to_json().unwrap(), policy.to_json().unwrap());
}

#[test]
fn objects_by_hand() {
    let runner = runner();
    let mut context = Context::new().unwrap();
    context.set_backend("host").unwrap().set_workdir("/").unwrap();
    context.set_shell(&["sh", "-c"]).unwrap().set_label("agent", "seven").unwrap();
    context.set_policy(runner.policy()).unwrap().set_trace_id("trace").unwrap();
    let params = Params::shell("echo $0 $SMITH_TRACE_ID; sleep 60", None).unwrap();
    let limits = Limits { timeout: Some(Duration::from_millis(300)), ..Default::default() };
    let exec = runner.start(&context, &params, ExecOptions::new().limits(limits)).unwrap();
    // What it started with is what it has.
    context.set_trace_id("another").unwrap();
    let result = exec.wait().unwrap();
    assert_eq!((result.status(), result.stdout()), (Status::Timeout, &b"sh trace\n"[..]));
    assert!(result.to_json().unwrap().contains("seven"));
    assert!(Path::new("/").is_dir() && !agentd::version().is_empty());
}

#[test]
fn a_policy_by_hand_is_that_of_json() {
    let mut builder = Policy::builder().unwrap();
    builder.allow_path("/usr", Access::READ | Access::EXEC).unwrap();
    builder.allow_path("/srv/project", Access::READ | Access::WRITE).unwrap();
    builder.deny_path("/srv/project/secrets").unwrap();
    builder.net(Net::Allowlist).unwrap().allow_host("*.debian.org", Some(443..=443)).unwrap();
    builder.allow_host("example.org", None).unwrap().deny_host("bad.debian.org").unwrap();
    builder.allow_env("LC_*").unwrap().protection("cgroup", Strictness::Degradable).unwrap();
    builder.require_kvm().unwrap().min_isolation(Isolation::Vm).unwrap();
    let timeout = Some(Duration::from_secs(600));
    builder.limits(&Limits { timeout, pids_max: Some(64), ..Default::default() }).unwrap();
    let json = r#"{
        "min_isolation": "vm", "require_kvm": true, "env": ["LC_*"],
        "paths": {"read": ["/usr", "/srv/project"], "write": ["/srv/project"], "exec": ["/usr"],
                  "deny": ["/srv/project/secrets"]},
        "protections": {"cgroup": "degradable"},
        "net": {"mode": "allow", "allow": ["*.debian.org:443", "example.org"],
                "deny": ["bad.debian.org"]},
        "limits": {"timeout_ms": 600000, "pids_max": 64}
    }"#;
    let same = Policy::from_json(json).unwrap();
    assert_eq!(builder.build().to_json().unwrap(), same.to_json().unwrap());
    // This one adds to what there is.
    let mut builder = Policy::builder().unwrap();
    builder.protect_name("Makefile").unwrap();
    assert!(builder.build().to_json().unwrap().contains(r#""Makefile""#));
}

#[test]
fn no_port_is_not_every_port() {
    let mut builder = Policy::builder().unwrap();
    builder.net(Net::Allowlist).unwrap();
    for ports in [0..=0, 0..=80] {
        let error = builder.allow_host("example.org", Some(ports.clone())).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Invalid, "{:?}: {}", ports, error);
    }
    assert!(!builder.build().to_json().unwrap().contains("example.org"));
}

#[test]
fn a_context_by_hand() {
    if !has_sandbox() {
        return;
    }
    let dir = TempDir::new("mount");
    let (mounted, workdir) = (dir.0.join("mounted"), dir.0.join("work"));
    fs::create_dir(&workdir).unwrap();
    fs::create_dir(&mounted).unwrap();
    fs::write(mounted.join("file"), "mounted").unwrap();
    let limits = Limits { pids_max: Some(50), ..Default::default() };
    let mut ceiling = Policy::builder().unwrap();
    ceiling.allow_path("/", Access::READ | Access::EXEC).unwrap();
    let runner = Runner::builder().policy(ceiling.build()).sandbox_prewarm(1).build().unwrap();
    let mut context = Context::new().unwrap();
    context.set_policy(&Policy::system().unwrap()).unwrap().set_workdir(&workdir).unwrap();
    context.set_limits(&limits).unwrap().set_env("NAME", "value").unwrap();
    context.add_mount(&mounted, "/mnt", Access::READ).unwrap();
    let params = Params::shell("cat /mnt/file; printenv NAME; touch /mnt/new", None).unwrap();
    let result = runner.run(&context, &params).unwrap();
    assert_eq!(result.exit_code(), Some(1), "{}", result.to_json().unwrap());
    assert_eq!(result.stdout(), b"mountedvalue\n");
    assert!(runner.explain(&context, &params).unwrap().contains(r#""pids_max":50"#));
    context.set_rootfs("/nonexistent").unwrap();
    let refused = runner.run(&context, &params).unwrap();
    assert!(!refused.is_ok() && refused.duration().is_none() && refused.error().is_some());
}

#[test]
fn ends_by_grace_and_by_output() {
    let runner = runner();
    let mut context = Context::new().unwrap();
    context.set_workdir("/").unwrap().set_backend("host").unwrap().set_env("HOME", "/").unwrap();
    context.set_policy(runner.policy()).unwrap();
    let params = Params::shell("trap '' TERM; echo ready; sleep 60; :", None).unwrap();
    let options = ExecOptions::new().grace(Duration::from_millis(2500));
    let mut exec = runner.start(&context, &params, options).unwrap();
    exec.next().unwrap().unwrap();
    let begin = Instant::now();
    exec.cancel();
    assert_eq!(exec.wait().unwrap().cause(), Cause::Canceled);
    assert!(begin.elapsed() >= Duration::from_millis(2500));
    let params = Params::shell("yes", None).unwrap();
    let limits = Limits { output_bytes: Some(10_000), ..Default::default() };
    let options = ExecOptions::new().limits(limits).kill_on_output();
    let result = runner.start(&context, &params, options).unwrap().wait().unwrap();
    assert_eq!((result.cause(), result.limit()), (Cause::Output, Some("output_bytes")));
}

// ---- sessions

const SESSION: &str = "3fa9c1d2-0b1c-4c5e-9f0a-7d6e5f4a3b2c";

fn session_layer(result: &ExecResult) -> Option<LayerState> {
    result.layers().find(|layer| layer.name == "session").map(|layer| layer.state)
}

#[test]
fn a_session_keeps_its_files() {
    if !has_sandbox() {
        return;
    }
    let dir = TempDir::new("pool");
    let config = format!(
        r#"{{"enabled": true, "backend": "sandbox", "volume_root": "{}"}}"#,
        dir.0.join("volumes").display()
    );
    let runner = Runner::new().unwrap();
    let workdir = dir.0.join("work");
    fs::create_dir(&workdir).unwrap();
    let command = |script: &str| Command::shell(script).workdir(&workdir).session(SESSION);
    // The control: without a pool it is a sandbox in the working directory, and the result says so.
    let result = command("echo lost >note").run_on(&runner).unwrap();
    assert!(result.is_ok() && session_layer(&result) == Some(LayerState::Absent));
    assert_eq!(fs::read(workdir.join("note")).unwrap(), b"lost\n");

    let pool = Pool::new(&runner, &config).unwrap();
    assert_eq!(pool.stop(SESSION).unwrap_err().code(), ErrorCode::NotFound);
    let result = command("ls; echo hello >note; sleep 60 & echo $! >pid").run_on(&runner).unwrap();
    assert!(result.is_ok() && result.stdout().is_empty(), "{}", result.to_json().unwrap());
    assert_eq!(session_layer(&result), Some(LayerState::Enforced));
    let alive = "cat note; test -e /proc/$(cat pid) && echo alive";
    assert_eq!(command(alive).run_on(&runner).unwrap().stdout(), b"hello\nalive\n");
    assert!(pool.to_json().unwrap().contains(SESSION));
    // A session that was just used is not idle.
    pool.maintain().unwrap();
    assert_eq!(command(alive).run_on(&runner).unwrap().stdout(), b"hello\nalive\n");
    pool.stop(SESSION).unwrap();
    assert_eq!(command(alive).run_on(&runner).unwrap().stdout(), b"hello\n");
    // The runner has it still.
    assert_eq!(pool.runner().event_loop().as_ptr(), runner.event_loop().as_ptr());
    drop(pool);
    assert_eq!(command("cat note").run_on(&runner).unwrap().stdout(), b"hello\n");
}

#[test]
fn a_pool_names_what_is_wrong() {
    let runner = runner();
    let error = Pool::new(&runner, r#"{"enabled": true, "volume_roof": "/"}"#).unwrap_err();
    assert_eq!((error.code(), error.pointer()), (ErrorCode::Invalid, "/volume_roof"));
    let mut context = Context::new().unwrap();
    let error = context.set_session(Some("no uuid")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Invalid);
    assert!(error.message().contains("no uuid"), "{}", error);
    context.set_session(Some(SESSION)).unwrap().set_session(None).unwrap();
}

// ---- log

#[test]
fn log_records() {
    let records = Rc::new(RefCell::new(Vec::new()));
    let kept = records.clone();
    let runner = Runner::builder()
        .policy(Policy::none().unwrap())
        .log(LogLevel::Info, move |record: &LogRecord| kept.borrow_mut().push(record.clone()))
        .build()
        .unwrap();
    assert!(host("exit 3").run_on(&runner).unwrap().exit_code() == Some(3));
    drop(runner);
    // It is dropped with the runner.
    let records = Rc::try_unwrap(records).unwrap().into_inner();
    assert!(records.iter().all(|record| record.level <= LogLevel::Info));
    let about = |record: &&LogRecord| record.component == "core" && !record.message.is_empty();
    assert!(records.iter().filter(about).count() >= 2, "{:?}", records);
    let keys = records.iter().flat_map(|record| &record.fields).map(|(key, _)| key.as_str());
    assert!(keys.clone().any(|key| key == "exit_code"), "{:?}", keys.collect::<Vec<_>>());
}

#[test]
fn a_panic_in_a_log_silences_it() {
    let (calls, counted) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let seen = calls.clone();
    let runner = Runner::builder()
        .policy(Policy::none().unwrap())
        .log(LogLevel::Debug, move |_| {
            seen.set(seen.get() + 1);
            panic!("of a log");
        })
        .build()
        .unwrap();
    assert!(host("true").run_on(&runner).unwrap().is_ok());
    assert_eq!(calls.get(), 1);
    // The control: another one hears of more than one.
    let seen = counted.clone();
    let runner = Runner::builder()
        .policy(Policy::none().unwrap())
        .log(LogLevel::Debug, move |_| seen.set(seen.get() + 1))
        .build()
        .unwrap();
    assert!(host("true").run_on(&runner).unwrap().is_ok());
    assert!(counted.get() > 1);
}

#[test]
fn what_panics_when_it_is_dropped_unwinds_through_nothing() {
    // In a log: what it has is dropped with it, and what it panics with.
    for panics in [false, true] {
        let (guard, calls) = (PanicsWhenDropped, Rc::new(Cell::new(0)));
        let seen = calls.clone();
        let log = move |_: &LogRecord| {
            let _held = &guard;
            seen.set(seen.get() + 1);
            if panics {
                panic_any(PanicsWhenDropped);
            }
        };
        let runner = Runner::builder().policy(Policy::none().unwrap()).log(LogLevel::Debug, log);
        let runner = runner.build().unwrap();
        assert!(host("true").run_on(&runner).unwrap().is_ok());
        assert_eq!(calls.get() == 1, panics);
        drop(runner);
        assert_eq!(Rc::strong_count(&calls), 1);
    }
    // In a command that nobody waits for any more.
    let runner = runner();
    let slot = Rc::new(RefCell::new(None::<Exec>));
    let own = slot.clone();
    let command = host("echo hello; sleep 60").on_output(move |_, _| {
        drop(own.borrow_mut().take());
        panic_any(PanicsWhenDropped);
    });
    slot.replace(Some(command.start_on(&runner).unwrap()));
    while slot.borrow().is_some() {
        runner.event_loop().run(Some(Duration::from_millis(10))).unwrap();
    }
    drop(runner);
}

#[test]
fn a_log_may_drop_its_runner() {
    let slot = Rc::new(RefCell::new(None));
    let own = slot.clone();
    let runner = Runner::builder()
        .policy(Policy::none().unwrap())
        .log(LogLevel::Debug, move |_| drop(own.borrow_mut().take()))
        .build()
        .unwrap();
    let event_loop = runner.event_loop().clone();
    // An Exec would hold the runner: this one is cancelled, and its end is logged.
    drop(host("sleep 60").start_on(&runner).unwrap());
    slot.replace(Some(runner));
    let begin = Instant::now();
    while slot.borrow().is_some() && begin.elapsed() < Duration::from_secs(30) {
        event_loop.run(Some(Duration::from_millis(10))).unwrap();
    }
    assert!(slot.borrow().is_none());
    // What is left of it goes on.
    event_loop.run(Some(Duration::from_millis(200))).unwrap();
}

fn sent<T: Send>() {}
fn shared<T: Send + Sync>() {}

/// A call of `found` is ambiguous, and does not compile, for a type that can be sent.
trait NotSent<Marker> {
    fn found() {}
}
struct Sent;
impl<T: ?Sized> NotSent<()> for T {}
impl<T: ?Sized + Send> NotSent<Sent> for T {}

#[test]
fn what_may_go_to_other_threads() {
    shared::<Policy>();
    shared::<Params>();
    shared::<ExecResult>();
    shared::<Canceller>();
    shared::<Waker>();
    shared::<agentd::Error>();
    shared::<Ask>();
    shared::<Probe>();
    shared::<Question>();
    sent::<Context>();
    sent::<PolicyBuilder>();
    <Runner as NotSent<_>>::found();
    <Loop as NotSent<_>>::found();
    <Exec as NotSent<_>>::found();
    <ExecOptions as NotSent<_>>::found();
    <Pool as NotSent<_>>::found();
}
