// SPDX-License-Identifier: MIT
//! What the library calls must not unwind through it.

use std::mem;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Drops what is the program's, and may panic then, where nobody is there to whom that could go on:
/// it is said, by the hook.
pub(crate) fn drop_quietly<T>(value: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // So might this.
        mem::forget(panic);
    }
}
