// SPDX-License-Identifier: MIT
use std::mem::size_of;
use std::time::Duration;

use crate::error::{milliseconds, Error, Result};
use crate::sys;

/// Resource limits of a whole process tree. `None`: what others say, the maximum: no limit,
/// as far as the policies allow that. A limit can only be lowered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Wall clock, from when it runs to its exit.
    pub timeout: Option<Duration>,
    /// No output and no input for this long.
    pub idle_timeout: Option<Duration>,
    /// User and system time.
    pub cpu_time: Option<Duration>,
    /// CPU bandwidth: 100 is one whole processor.
    pub cpu_ms_per_100ms: Option<u32>,
    /// Tasks (threads count) alive at once.
    pub pids_max: Option<u32>,
    /// Memory.
    pub mem_bytes: Option<u64>,
    /// Written to storage.
    pub io_bytes: Option<u64>,
    /// Output that is delivered, both streams together.
    pub output_bytes: Option<u64>,
    /// Largest single file.
    pub file_bytes: Option<u64>,
    /// Descriptors per process.
    pub open_files_max: Option<u32>,
    /// To and from the hosts of the network mode `allow`, both ways together.
    pub net_bytes: Option<u64>,
}

fn number<T: Default + PartialEq>(pointer: &str, value: Option<T>) -> Result<T> {
    match value {
        Some(value) if value == T::default() => {
            Err(Error::invalid(pointer, "a limit must be above 0"))
        }
        value => Ok(value.unwrap_or_default()),
    }
}

fn duration(pointer: &str, value: Option<Duration>) -> Result<u64> {
    value.map_or(Ok(0), |value| milliseconds(pointer, value))
}

impl Limits {
    pub(crate) fn to_raw(&self) -> Result<sys::agentd_limits> {
        Ok(sys::agentd_limits {
            size: size_of::<sys::agentd_limits>() as u32,
            timeout_ms: duration("/limits/timeout_ms", self.timeout)?,
            idle_timeout_ms: duration("/limits/idle_timeout_ms", self.idle_timeout)?,
            cpu_time_ms: duration("/limits/cpu_time_ms", self.cpu_time)?,
            cpu_ms_per_100ms: number("/limits/cpu_ms_per_100ms", self.cpu_ms_per_100ms)?,
            pids_max: number("/limits/pids_max", self.pids_max)?,
            mem_bytes: number("/limits/mem_bytes", self.mem_bytes)?,
            io_bytes: number("/limits/io_bytes", self.io_bytes)?,
            output_bytes: number("/limits/output_bytes", self.output_bytes)?,
            file_bytes: number("/limits/file_bytes", self.file_bytes)?,
            open_files_max: number("/limits/open_files_max", self.open_files_max)?,
            net_bytes: number("/limits/net_bytes", self.net_bytes)?,
        })
    }
}
