// SPDX-License-Identifier: MIT
//! As peer_python.py: runs what it is asked for and answers how many us that took.
//!
//! usage: peer_rust std
//!        peer_rust agentd BACKEND WORKDIR POLICY

use std::io::{self, BufRead, Write};
use std::process::{self, Stdio};
use std::time::Instant;

fn by_std(argv: &[&str]) {
    let mut command = process::Command::new(argv[0]);
    let output = command.args(&argv[1..]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
}

/// With a context for each command, as agentd::run() does.
fn by_agentd(runner: &agentd::Runner, backend: &str, workdir: &str, argv: &[&str]) {
    let command = agentd::Command::argv(argv).backend(backend).workdir(workdir);
    assert!(command.run_on(runner).unwrap().is_ok());
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runner = (args[0] == "agentd").then(|| {
        let policy = agentd::Policy::from_json(&args[3]).unwrap();
        agentd::Runner::builder().policy(policy).build().unwrap()
    });
    for line in io::stdin().lock().lines().map(Result::unwrap) {
        if line.is_empty() {
            break;
        }
        let argv: Vec<&str> = line.split('\t').collect();
        let begin = Instant::now();
        match &runner {
            None => by_std(&argv),
            Some(runner) => by_agentd(runner, &args[1], &args[2], &argv),
        }
        println!("{:.3}", begin.elapsed().as_nanos() as f64 / 1e3);
        io::stdout().flush().unwrap();
    }
}
