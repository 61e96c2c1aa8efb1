// SPDX-License-Identifier: MIT
//! Alone in its process, for it counts what that has.

use std::fs;
use std::thread;

use agentd::{Command, Policy, Runner};

fn fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn rss_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn runs(runner: &Runner, count: usize) {
    for i in 0..count {
        let command = Command::argv(["/bin/echo", "hello"]).backend("host").workdir("/");
        let result = match i % 3 {
            0 => command.run_on(runner).unwrap(),
            1 => {
                let mut exec = command.start_on(runner).unwrap();
                assert_eq!(exec.next().unwrap().unwrap().data, b"hello\n");
                exec.wait().unwrap()
            }
            _ => {
                let echoed = std::rc::Rc::new(std::cell::Cell::new(0));
                let count = echoed.clone();
                let command = command.on_output(move |_, data| {
                    count.set(count.get() + data.len());
                    std::ops::ControlFlow::Continue(())
                });
                let result = command.run_on(runner).unwrap();
                assert_eq!((echoed.get(), std::rc::Rc::strong_count(&echoed)), (6, 1));
                result
            }
        };
        assert!(result.is_ok(), "{}", result.to_json().unwrap());
    }
}

#[test]
fn a_thousand_runs_leave_nothing() {
    let begin = fds();
    let runner = Runner::builder().policy(Policy::none().unwrap()).build().unwrap();
    runs(&runner, 100);
    let (open, rss) = (fds(), rss_kib());
    runs(&runner, 1000);
    assert_eq!(fds(), open);
    let growth = rss_kib().saturating_sub(rss);
    assert!(growth < 1024, "{} KiB", growth);
    drop(runner);
    assert_eq!(fds(), begin);
    // What belongs to a thread ends with it.
    for _ in 0..10 {
        thread::spawn(|| assert!(fds() < Runner::of_thread().map(|_| fds()).unwrap()))
            .join()
            .unwrap();
    }
    assert_eq!(fds(), begin);
}
