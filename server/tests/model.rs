//! The embedding pipeline against the published model, over the real runtime, fetched by the real provisioning.
//!
//! The runtime and the model are fetched once into cargo's folder for test files and kept there.

#![allow(clippy::unwrap_used)]

mod model {
    pub mod accuracy;
    pub mod batch;
    pub mod provisioning;
    pub mod support;
    pub mod tiny;
}
