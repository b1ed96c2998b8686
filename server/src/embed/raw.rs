//! The one call to ONNX Runtime that the `ort` crate does not wrap: its version.
//!
//! Invariant: nothing here outlives its call. It must not know sessions.

use std::ffi::{CStr, c_char};
use std::path::Path;

use libloading::{Library, Symbol};
use ort::sys::OrtApiBase;

/// The version string of the ONNX Runtime at `path`, which must already be loaded by `ort`.
pub fn version(path: &Path) -> Result<String, String> {
    // SAFETY: the library is loaded already, so no initialiser runs now; opening only counts one more reference.
    let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
    // SAFETY: this is the signature of OrtGetApiBase in onnxruntime_c_api.h; `ort` resolved the same symbol.
    let base: Symbol<'_, unsafe extern "C" fn() -> *const OrtApiBase> =
        unsafe { library.get(b"OrtGetApiBase") }.map_err(|error| error.to_string())?;
    // SAFETY: the function takes nothing and returns a pointer to a static table, or null.
    let base = unsafe { base() };
    if base.is_null() {
        return Err("OrtGetApiBase gave no table".into());
    }
    // SAFETY: not null, and the table is static in the library, which is loaded for the life of the process.
    let get = unsafe { (*base).GetVersionString };
    // SAFETY: the function takes nothing and returns a static string that ends in NUL.
    let text: *const c_char = unsafe { get() };
    // SAFETY: as above; it is copied before the library reference goes.
    let text = unsafe { CStr::from_ptr(text) };
    Ok(text.to_string_lossy().into_owned())
}
