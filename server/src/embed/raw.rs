//! The calls to ONNX Runtime that the `ort` crate does not wrap: its version, and where it placed a graph's nodes.
//!
//! Invariant: nothing here outlives its call. It must not know what a session is for.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr;

use libloading::{Library, Symbol};
use ort::AsPointer;
use ort::session::Session;
use ort::sys::{OrtApiBase, OrtStatusPtr};

use super::nodes::Nodes;

/// The setting that makes a session keep what [`placement`] reads.
pub const RECORD_PLACEMENT: (&str, &str) = ("session.record_ep_graph_assignment_info", "1");

/// Which provider each node of a session's graph was placed on, when it was partitioned and before it was fused. The
/// session must have been made with [`RECORD_PLACEMENT`].
pub fn placement(session: &Session) -> Result<Nodes, String> {
    let api = ort::api();
    let session = session.ptr();
    let (mut groups, mut count) = (ptr::null(), 0);
    // SAFETY: the session is alive, and both places are written to before the call returns.
    checked(unsafe { (api.Session_GetEpGraphAssignmentInfo)(session, &mut groups, &mut count) })?;
    let mut nodes = Nodes::default();
    // SAFETY: the runtime gave an array of `count` pointers that lives as long as the session, which is borrowed.
    for &group in unsafe { listed(groups, count) } {
        let mut name = ptr::null();
        // SAFETY: `group` is one of the session's, and the place for the name is written to.
        checked(unsafe { (api.EpAssignedSubgraph_GetEpName)(group, &mut name) })?;
        // SAFETY: a string that ends in NUL and lives as long as the session, or null.
        let provider = unsafe { text(name) }?;
        let (mut members, mut count) = (ptr::null(), 0);
        // SAFETY: as for the groups.
        checked(unsafe { (api.EpAssignedSubgraph_GetNodes)(group, &mut members, &mut count) })?;
        // SAFETY: as for the groups.
        for &member in unsafe { listed(members, count) } {
            let mut name = ptr::null();
            // SAFETY: `member` is one of the session's, and the place for the name is written to.
            checked(unsafe { (api.EpAssignedNode_GetOperatorType)(member, &mut name) })?;
            // SAFETY: as for the provider's name.
            nodes.add(&provider, &unsafe { text(name) }?);
        }
    }
    Ok(nodes)
}

fn checked(status: OrtStatusPtr) -> Result<(), String> {
    // SAFETY: a status that the runtime has just returned and nobody else has; it is released once.
    unsafe { ort::Error::<()>::result_from_status(status) }.map_err(|error| error.to_string())
}

/// An array that the runtime gave, which may be null when it is empty.
///
/// # Safety
/// `items` is null, or points to `count` items that live for `'a`.
unsafe fn listed<'a, T>(items: *const T, count: usize) -> &'a [T] {
    if items.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller vouches for it.
    unsafe { std::slice::from_raw_parts(items, count) }
}

/// A copy of a string that the runtime gave.
///
/// # Safety
/// `name` is null, or points to a string that ends in NUL.
unsafe fn text(name: *const c_char) -> Result<String, String> {
    if name.is_null() {
        return Err("the runtime gave a node or provider without a name".into());
    }
    // SAFETY: the caller vouches for it.
    Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

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
