// SPDX-License-Identifier: MIT
//! Asks pkg-config where libagentd is.

use std::env;
use std::process::{exit, Command};

fn main() {
    for name in ["PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "PKG_CONFIG_SYSROOT_DIR"] {
        println!("cargo:rerun-if-env-changed={}", name);
    }
    println!("cargo:rerun-if-changed=build.rs");
    let tool = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let asked = Command::new(&tool).args(["--print-errors", "--libs", "agentd"]).output();
    let libs = match asked {
        Ok(output) if output.status.success() => output.stdout,
        Ok(output) => fail(&String::from_utf8_lossy(&output.stderr)),
        Err(error) => fail(&format!("{}: {}", tool.to_string_lossy(), error)),
    };
    for flag in String::from_utf8_lossy(&libs).split_whitespace() {
        if let Some(dir) = flag.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={}", dir);
        } else if let Some(name) = flag.strip_prefix("-l") {
            println!("cargo:rustc-link-lib={}", name);
        }
    }
}

fn fail(why: &str) -> ! {
    eprintln!("libagentd was not found: {}", why.trim_end());
    exit(1)
}
