//! The wire protocol: JSON-RPC 2.0 over newline-delimited frames.
//!
//! Invariant: one table of methods ([`table::Method`]) feeds the dispatcher and the OpenRPC document, so neither can know
//! a method, a parameter or a result that the other does not. Nothing that arrives in a frame can make this module
//! panic, recurse without bound or allocate more than the frame limit allows.
//!
//! It must not know the store, the model, sockets or threads: it turns bytes into typed calls and typed results into
//! bytes. Sources: the JSON-RPC 2.0 specification and the OpenRPC 1.3.2 specification.

mod depth;
pub mod error;
pub mod frame;
pub mod limits;
pub mod openrpc;
pub mod params;
pub mod results;
pub mod table;
pub mod time;

pub use depth::depth;
pub use error::{ErrorCode, RpcError};
pub use limits::Limits;
pub use table::{Call, Method};
