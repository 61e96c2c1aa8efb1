// SPDX-License-Identifier: MIT
use std::ffi::OsStr;
use std::ops::{BitOr, RangeInclusive};
use std::path::Path;

use crate::error::{c_string, check, make, make_text, Error, Result};
use crate::handle::{Handle, Object};
use crate::limits::Limits;
use crate::sys;

impl Object for sys::agentd_policy {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_policy_unref(object) }
    }
}

/// What a command may do with a path; combined by `|`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access(pub(crate) u32);

impl Access {
    /// Read files, list directories.
    pub const READ: Self = Self(sys::AGENTD_ACCESS_READ);
    /// Change, make and remove.
    pub const WRITE: Self = Self(sys::AGENTD_ACCESS_WRITE);
    /// Execute files.
    pub const EXEC: Self = Self(sys::AGENTD_ACCESS_EXEC);
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How much of the network a command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Net {
    /// Nothing.
    None,
    /// The hosts that are allowed.
    Allowlist,
    /// All that the host program has.
    Full,
}

/// The least isolation that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// None at all: for the backend `host`.
    None,
    /// Namespaces, Landlock, a system call filter, limits.
    Sandbox,
    /// A virtual machine.
    Vm,
}

/// How strictly one layer of protection is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strictness {
    /// Without it nothing runs.
    Required,
    /// Run without it, and say so in the receipt.
    Degradable,
    /// Not wanted.
    Off,
}

/// Directories of the system's programs.
const SYSTEM: [&str; 8] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt"];

/// What is allowed. It does not change any more, and is shared by cloning it.
#[derive(Debug)]
pub struct Policy(Handle<sys::agentd_policy>);

// SAFETY: it is frozen, which makes it immutable and safe to share between threads.
unsafe impl Send for Policy {}
// SAFETY: as above.
unsafe impl Sync for Policy {}

impl Policy {
    /// Begins with one that denies everything and asks for a sandbox.
    pub fn builder() -> Result<PolicyBuilder> {
        // SAFETY: both pointers are written to during the call only.
        make(|ret, err| unsafe { sys::agentd_policy_new(ret, err) }).map(PolicyBuilder)
    }

    /// From the members of agentd_policy(5).
    pub fn from_json(json: &str) -> Result<Self> {
        // SAFETY: the text lives during the call.
        make(|ret, err| unsafe {
            sys::agentd_policy_from_json(json.as_ptr().cast(), json.len(), ret, err)
        })
        .map(PolicyBuilder)
        .map(PolicyBuilder::build)
    }

    /// A sandbox in which the system's programs can be run.
    pub fn system() -> Result<Self> {
        let mut builder = Self::builder()?;
        for path in SYSTEM.iter().filter(|path| Path::new(path).is_dir()) {
            builder.allow_path(path, Access::READ | Access::EXEC)?;
        }
        Ok(builder.build())
    }

    /// Accepts no isolation: for the backend `host`.
    pub fn none() -> Result<Self> {
        let mut builder = Self::builder()?;
        builder.min_isolation(Isolation::None)?;
        Ok(builder.build())
    }

    /// In the form that [`Policy::from_json`] takes.
    pub fn to_json(&self) -> Result<String> {
        // SAFETY: the policy lives as long as self.
        make_text(|ret, len, err| unsafe {
            sys::agentd_policy_to_json(self.as_ptr(), ret, len, err)
        })
    }

    /// For what only [`sys`](crate::sys) has: borrowed, and of this thread unless its header says
    /// otherwise.
    pub fn as_ptr(&self) -> *mut sys::agentd_policy {
        self.0.as_ptr()
    }
}

impl Clone for Policy {
    fn clone(&self) -> Self {
        // SAFETY: ref takes any living object and returns it with one more reference.
        let copy = unsafe { Handle::from_raw(sys::agentd_policy_ref(self.as_ptr())) };
        Self(copy.expect("ref returns its argument"))
    }
}

/// A policy that is still being written.
#[derive(Debug)]
pub struct PolicyBuilder(Handle<sys::agentd_policy>);

// SAFETY: nobody else refers to it until it is frozen.
unsafe impl Send for PolicyBuilder {}

impl PolicyBuilder {
    /// Allows access to an absolute path and what is beneath it.
    pub fn allow_path(&mut self, path: impl AsRef<Path>, access: Access) -> Result<&mut Self> {
        let path = c_string("/paths", path.as_ref())?;
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_policy_allow_path(self.0.as_ptr(), path.as_ptr(), access.0, err)
        })?;
        Ok(self)
    }

    /// Hides an absolute path and what is beneath it, whatever is allowed.
    pub fn deny_path(&mut self, path: impl AsRef<Path>) -> Result<&mut Self> {
        let path = c_string("/paths", path.as_ref())?;
        // SAFETY: both live during the call.
        check(|err| unsafe { sys::agentd_policy_deny_path(self.0.as_ptr(), path.as_ptr(), err) })?;
        Ok(self)
    }

    /// Keeps commands from changing a name relative to a writable directory, such as
    /// `.git/hooks`.
    pub fn protect_name(&mut self, name: impl AsRef<Path>) -> Result<&mut Self> {
        let name = c_string("/protect_names", name.as_ref())?;
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_policy_protect_name(self.0.as_ptr(), name.as_ptr(), err)
        })?;
        Ok(self)
    }

    /// How much of the network there is.
    pub fn net(&mut self, net: Net) -> Result<&mut Self> {
        let mode = match net {
            Net::None => sys::AGENTD_NET_NONE,
            Net::Allowlist => sys::AGENTD_NET_ALLOWLIST,
            Net::Full => sys::AGENTD_NET_FULL,
        };
        // SAFETY: it lives during the call.
        check(|err| unsafe { sys::agentd_policy_set_net(self.0.as_ptr(), mode as i32, err) })?;
        Ok(self)
    }

    /// Allows connections to a host, with [`Net::Allowlist`]: a name, `*.` and a name, an
    /// address or a CIDR block. No ports: all of them.
    pub fn allow_host(
        &mut self,
        pattern: &str,
        ports: Option<RangeInclusive<u16>>,
    ) -> Result<&mut Self> {
        let pattern = c_string("/net/allow", pattern)?;
        // What stands for every port in C.
        if ports == Some(0..=0) {
            return Err(Error::invalid("/net/allow", "there is no port 0"));
        }
        let (first, last) = ports.map_or((0, 0), RangeInclusive::into_inner);
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_policy_allow_host(self.0.as_ptr(), pattern.as_ptr(), first, last, err)
        })?;
        Ok(self)
    }

    /// Denies connections to a host, whatever is allowed.
    pub fn deny_host(&mut self, pattern: &str) -> Result<&mut Self> {
        let pattern = c_string("/net/deny", pattern)?;
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_policy_deny_host(self.0.as_ptr(), pattern.as_ptr(), err)
        })?;
        Ok(self)
    }

    /// How strictly a layer is meant; agentd_policy(5) has their names.
    pub fn protection(&mut self, layer: &str, strictness: Strictness) -> Result<&mut Self> {
        let layer = c_string("/protections", layer)?;
        let strictness = match strictness {
            Strictness::Required => sys::AGENTD_PROTECTION_REQUIRED,
            Strictness::Degradable => sys::AGENTD_PROTECTION_DEGRADABLE,
            Strictness::Off => sys::AGENTD_PROTECTION_OFF,
        };
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_policy_set_protection(
                self.0.as_ptr(),
                layer.as_ptr(),
                strictness as i32,
                err,
            )
        })?;
        Ok(self)
    }

    /// Refuses a virtual machine that is only emulated.
    pub fn require_kvm(&mut self) -> Result<&mut Self> {
        // SAFETY: it lives during the call.
        check(|err| unsafe { sys::agentd_policy_require_kvm(self.0.as_ptr(), err) })?;
        Ok(self)
    }

    /// What a command that was stopped has changed does not come back; a backend that cannot
    /// do that refuses.
    pub fn discard_unfinished(&mut self) -> Result<&mut Self> {
        // SAFETY: it lives during the call.
        check(|err| unsafe { sys::agentd_policy_discard_unfinished(self.0.as_ptr(), err) })?;
        Ok(self)
    }

    /// Lets variables of the host program's environment through; `*` at the end matches the
    /// rest.
    pub fn allow_env(&mut self, pattern: impl AsRef<OsStr>) -> Result<&mut Self> {
        let pattern = c_string("/env", pattern)?;
        // SAFETY: both live during the call.
        check(|err| unsafe {
            sys::agentd_policy_allow_env(self.0.as_ptr(), pattern.as_ptr(), err)
        })?;
        Ok(self)
    }

    /// Ceilings.
    pub fn limits(&mut self, limits: &Limits) -> Result<&mut Self> {
        let limits = limits.to_raw()?;
        // SAFETY: both live during the call.
        check(|err| unsafe { sys::agentd_policy_set_limits(self.0.as_ptr(), &limits, err) })?;
        Ok(self)
    }

    /// The least isolation that is accepted; a sandbox unless set.
    pub fn min_isolation(&mut self, isolation: Isolation) -> Result<&mut Self> {
        let isolation = match isolation {
            Isolation::None => sys::AGENTD_ISOLATION_NONE,
            Isolation::Sandbox => sys::AGENTD_ISOLATION_SANDBOX,
            Isolation::Vm => sys::AGENTD_ISOLATION_VM,
        };
        // SAFETY: it lives during the call.
        check(|err| unsafe {
            sys::agentd_policy_set_min_isolation(self.0.as_ptr(), isolation as i32, err)
        })?;
        Ok(self)
    }

    /// Done: nothing can be changed any more.
    pub fn build(self) -> Policy {
        // SAFETY: it lives; freezing fails for NULL only.
        unsafe { sys::agentd_policy_freeze(self.0.as_ptr()) };
        Policy(self.0)
    }
}
