//! The calls to ONNX Runtime that the `ort` crate does not wrap: its version, where it placed a graph's nodes, and tensors
//! in memory of ours.
//!
//! Invariant: nothing here outlives its call but [`Lasting`], which outlives the sessions that read it. It must not know what
//! a session is for.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use libloading::{Library, Symbol};
use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::sys::{OrtApiBase, OrtStatusPtr};
use ort::value::{DynValue, PrimitiveTensorElementType};

use super::huge::HugeBytes;
use super::nodes::Nodes;
use super::operator;

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

/// Constants of a graph on huge pages. The runtime takes a constant from outside only in memory that is not its own.
#[derive(Default)]
pub struct Lasting {
    /// By their names in the graph; each reads one of the blocks.
    constants: Vec<(String, Arc<DynValue>)>,
    blocks: Vec<HugeBytes>,
}

impl Lasting {
    /// Adds a copy of `raw`, values of `T` row-major in `shape` and little-endian, as the constant `name`.
    ///
    /// # Errors
    /// The shape does not fit the values, the runtime refuses it, or there is no memory.
    pub fn add<T: PrimitiveTensorElementType + 'static>(
        &mut self,
        name: String,
        shape: &[i64],
        raw: &[u8],
    ) -> Result<(), String> {
        const { assert!(cfg!(target_endian = "little"), "the runtime reads the bytes as they are") };
        let bytes = raw.len();
        let mut block = HugeBytes::zeroed(bytes).map_err(|error| error.to_string())?;
        let place = block.as_mut_ptr();
        // SAFETY: the block holds as many bytes and is new.
        unsafe { ptr::copy_nonoverlapping(raw.as_ptr(), place, bytes) };
        let mut made = ptr::null_mut();
        // SAFETY: the runtime keeps the block's address and neither writes to it nor frees it; it refuses a shape of more
        // bytes. The block begins on a page, as any element may. The shape is borrowed for the call, and the place for the value is written to.
        checked(unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                MemoryInfo::default().ptr(),
                place.cast(),
                bytes,
                shape.as_ptr(),
                shape.len(),
                T::into_tensor_element_type().into(),
                &mut made,
            )
        })?;
        let made = NonNull::new(made).ok_or("the runtime made no tensor")?;
        // SAFETY: a tensor that was made for this caller alone. No allocator made it; `ort` only keeps the one it is told of.
        let value = unsafe { DynValue::from_ptr(made, Some(&Allocator::default())) };
        self.constants.push((name, Arc::new(value)));
        self.blocks.push(block);
        Ok(())
    }

    /// Gives the constants, and the operators that read them, to the sessions that `builder` builds. The operators hold the
    /// constants' memory, and a session holds its operators until it is gone.
    ///
    /// # Errors
    /// The runtime refuses an operator or a constant.
    pub fn give(self: &Arc<Self>, builder: SessionBuilder) -> Result<SessionBuilder, String> {
        let operators = operator::domain(Arc::clone(self)).map_err(|error| error.to_string())?;
        let builder = builder.with_operators(operators).map_err(|error| error.to_string())?;
        self.constants.iter().try_fold(builder, |builder, (name, value)| {
            let given = builder.with_initializer(name, Arc::clone(value));
            given.map_err(|error| error.to_string())
        })
    }
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
