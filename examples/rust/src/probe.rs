// SPDX-License-Identifier: MIT
use std::os::raw::c_void;
use std::path::Path;
use std::ptr;

use crate::error::{c_string, check, make_text, Error, Result};
use crate::handle::{Handle, Object};
use crate::result::{borrowed, Layer, LayerState};
use crate::sys;

impl Object for sys::agentd_probe {
    unsafe fn unref(object: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { sys::agentd_probe_unref(object) }
    }
}

/// What a machine may be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// A sandbox with every layer held, whatever was tried in it.
    Sandbox = sys::AGENTD_CAP_SANDBOX as isize,
    /// User namespaces.
    UserNamespace = sys::AGENTD_CAP_USER_NAMESPACE as isize,
    /// Landlock; the level is the version of its ABI.
    Landlock = sys::AGENTD_CAP_LANDLOCK as isize,
    /// System call filters; the level is that of libseccomp's API.
    Seccomp = sys::AGENTD_CAP_SECCOMP as isize,
    /// Limits are the tree's, and exact.
    Cgroup = sys::AGENTD_CAP_CGROUP as isize,
    /// Writable paths of another owner can be used.
    Idmap = sys::AGENTD_CAP_IDMAP as isize,
}

/// One act that a sandbox is there to refuse. `None`: it was not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Act<'a> {
    /// In words.
    pub name: &'a str,
    /// Whether it was possible without a sandbox. If it was not, it says nothing of the sandbox.
    pub possible_outside: Option<bool>,
    /// Whether it was possible inside of one.
    pub possible_inside: Option<bool>,
    /// How the sandbox refused it, or nothing.
    pub how: &'a str,
}

/// How to look at a machine; all of it can be left as it is.
#[derive(Debug, Default)]
pub struct ProbeOptions {
    no_cache: bool,
    helper_path: Option<Result<std::ffi::CString>>,
    cache_dir: Option<Result<std::ffi::CString>>,
}

impl ProbeOptions {
    /// What is known already is not tried again.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tries, whatever is known already.
    pub fn no_cache(mut self) -> Self {
        self.no_cache = true;
        self
    }

    /// agentd-helper, where it is not installed with the library.
    pub fn helper_path(mut self, path: impl AsRef<Path>) -> Self {
        self.helper_path = Some(c_string("/helper_path", path.as_ref()));
        self
    }

    /// Absolute path of the directory that keeps what was found; in /run unless set.
    pub fn cache_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.cache_dir = Some(c_string("/cache_dir", path.as_ref()));
        self
    }

    /// Looks.
    pub fn probe(self) -> Result<Probe> {
        let helper_path = self.helper_path.transpose()?;
        let cache_dir = self.cache_dir.transpose()?;
        let opts = sys::agentd_probe_opts {
            size: std::mem::size_of::<sys::agentd_probe_opts>() as u32,
            flags: if self.no_cache { sys::AGENTD_PROBE_NO_CACHE } else { 0 },
            helper_path: helper_path.as_ref().map_or(ptr::null(), |path| path.as_ptr()),
            cache_dir: cache_dir.as_ref().map_or(ptr::null(), |path| path.as_ptr()),
            ..Default::default()
        };
        let mut found: Option<Result<Probe>> = None;
        let userdata = &mut found as *mut _ as *mut c_void;
        // SAFETY: all live during the call, in which on_probe() is called: there is no event base.
        check(|err| unsafe { sys::agentd_probe_start(&opts, Some(on_probe), userdata, err) })?;
        found.expect("a probe that was started is over")
    }
}

/// # Safety
///
/// `userdata` is where the answer goes.
unsafe extern "C" fn on_probe(
    probe: *mut sys::agentd_probe,
    err: *const sys::agentd_error,
    userdata: *mut c_void,
) {
    // SAFETY: probe() waits for this; the objects live during the call, the probe with one more
    // reference afterwards, and an error is there where it is not.
    unsafe {
        let found = match Handle::from_raw(sys::agentd_probe_ref(probe)) {
            Some(handle) => Ok(Probe(handle)),
            None => Err(Error::from_object(err)),
        };
        *(userdata as *mut Option<Result<Probe>>) = Some(found);
    }
}

/// What this machine can do, found by trying it.
///
/// ```no_run
/// # fn main() -> agentd::Result<()> {
/// use agentd::{Capability, Probe};
///
/// let probe = Probe::new()?;
/// if probe.level(Capability::Sandbox).is_none() {
///     eprintln!("no sandbox: {}", probe.reason(Capability::Sandbox));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Probe(Handle<sys::agentd_probe>);

// SAFETY: immutable, and everything in agentd/probe.h about it may be called from any thread.
unsafe impl Send for Probe {}
// SAFETY: as above.
unsafe impl Sync for Probe {}

impl Probe {
    /// Looks at this machine, which takes about a second unless it is known already.
    /// [`ProbeOptions`] has more to say.
    pub fn new() -> Result<Self> {
        ProbeOptions::new().probe()
    }

    fn as_ptr(&self) -> *const sys::agentd_probe {
        self.0.as_ptr()
    }

    /// `None` if it is absent; 1 where there is nothing to count.
    pub fn level(&self, capability: Capability) -> Option<u32> {
        // SAFETY: it lives as long as self.
        let level = unsafe { sys::agentd_probe_level(self.as_ptr(), capability as i32) };
        u32::try_from(level).ok().filter(|level| *level > 0)
    }

    /// Why it is absent and what to do about it, or nothing.
    pub fn reason(&self, capability: Capability) -> &str {
        // SAFETY: it lives as long as self, the text too.
        unsafe { borrowed(sys::agentd_probe_reason(self.as_ptr(), capability as i32)) }
    }

    /// It was known already.
    pub fn is_cached(&self) -> bool {
        // SAFETY: it lives as long as self.
        unsafe { sys::agentd_probe_cached(self.as_ptr()) != 0 }
    }

    /// What was tried.
    pub fn acts(&self) -> impl ExactSizeIterator<Item = Act<'_>> {
        // SAFETY: it lives as long as self.
        let count = unsafe { sys::agentd_probe_act_count(self.as_ptr()) };
        (0..count).map(move |i| self.act(i))
    }

    fn act(&self, i: usize) -> Act<'_> {
        let (mut name, mut outside, mut inside, mut how) = (ptr::null(), 0, 0, ptr::null());
        let possible = |act| match act {
            sys::AGENTD_ACT_REFUSED => Some(false),
            sys::AGENTD_ACT_POSSIBLE => Some(true),
            _ => None,
        };
        // SAFETY: i is below their number, so that all four are written; the texts live as long as
        // self.
        unsafe {
            sys::agentd_probe_act_at(
                self.as_ptr(),
                i,
                &mut name,
                &mut outside,
                &mut inside,
                &mut how,
            );
            Act {
                name: borrowed(name),
                possible_outside: possible(outside),
                possible_inside: possible(inside),
                how: borrowed(how),
            }
        }
    }

    /// The layers that the sandbox has here.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = Layer<'_>> {
        // SAFETY: it lives as long as self.
        let count = unsafe { sys::agentd_probe_layer_count(self.as_ptr()) };
        (0..count).map(move |i| self.layer(i))
    }

    fn layer(&self, i: usize) -> Layer<'_> {
        let (mut name, mut state, mut reason) = (ptr::null(), 0, ptr::null());
        // SAFETY: i is below their number, so that all three are written; the texts live as long
        // as self.
        unsafe {
            sys::agentd_probe_layer_at(self.as_ptr(), i, &mut name, &mut state, &mut reason);
            Layer {
                name: borrowed(name),
                state: LayerState::from_raw(state),
                reason: borrowed(reason),
            }
        }
    }

    /// All of it, as docs/probe.schema.json describes.
    pub fn to_json(&self) -> Result<String> {
        // SAFETY: it lives as long as self.
        make_text(|ret, len, err| unsafe {
            sys::agentd_probe_to_json(self.as_ptr(), ret, len, err)
        })
    }
}
