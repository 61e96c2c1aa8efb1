// SPDX-License-Identifier: MIT
//! Runs a command in a sandbox, prints its output as it comes, and then what the sandbox
//! consisted of: `cargo run --example run -- 'make 2>&1'`

use std::io::{self, Write};
use std::process::ExitCode;

use agentd::{Command, Status, Stream};

fn run(script: String) -> Result<Status, Box<dyn std::error::Error>> {
    let mut exec = Command::shell(script).start()?;
    for chunk in &mut exec {
        let chunk = chunk?;
        match chunk.stream {
            Stream::Stdout => io::stdout().write_all(&chunk.data)?,
            Stream::Stderr => io::stderr().write_all(&chunk.data)?,
        }
    }
    let result = exec.wait()?;
    println!("{}, {} by the backend {}", result.status(), result.cause(), result.backend());
    if let Some(error) = result.error() {
        println!("{}", error);
    }
    for layer in result.layers() {
        println!("  {}: {:?}, {}", layer.name, layer.state, layer.reason);
    }
    Ok(result.status())
}

fn main() -> ExitCode {
    let script = std::env::args().nth(1).unwrap_or_else(|| "echo hello".into());
    match run(script) {
        Ok(Status::Ok) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("run: {}", error);
            ExitCode::FAILURE
        }
    }
}
