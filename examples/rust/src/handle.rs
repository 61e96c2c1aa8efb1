// SPDX-License-Identifier: MIT
//! References to objects of the library.

use std::ptr::NonNull;

/// An object of the library that is counted.
pub(crate) trait Object {
    /// # Safety
    ///
    /// `object` is a reference of the caller's, which is used up.
    unsafe fn unref(object: *mut Self);
}

/// One reference, dropped with it.
#[derive(Debug)]
pub(crate) struct Handle<T: Object>(NonNull<T>);

impl<T: Object> Handle<T> {
    /// # Safety
    ///
    /// `object` is NULL or a reference of the caller's, which goes to the handle.
    pub(crate) unsafe fn from_raw(object: *mut T) -> Option<Self> {
        NonNull::new(object).map(Self)
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T: Object> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: the reference is ours.
        unsafe { T::unref(self.0.as_ptr()) }
    }
}
