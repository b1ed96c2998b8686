//! The list of GPU adapters on the machine that runs the tests.
//!
//! Where `FLASHBULB_EXPECT_SOFTWARE_ADAPTER` is set, as in CI with Mesa's llvmpipe, a software adapter must be listed as one.
#![cfg(feature = "gpu")]

use flashbulb_kernels::gpu;

#[test]
fn adapters_are_listed_as_what_they_are() {
    let found = gpu::adapters();
    for a in &found {
        println!("{} ({}, {}, software: {})", a.name, a.backend, a.device_type, a.is_software);
        assert!(!a.name.is_empty() && !a.backend.is_empty());
    }
    let mesa = found.iter().find(|a| a.name.to_lowercase().contains("llvmpipe"));
    assert!(mesa.is_none_or(|a| a.is_software), "llvmpipe is no GPU");
    if std::env::var_os("FLASHBULB_EXPECT_SOFTWARE_ADAPTER").is_some() {
        assert!(mesa.is_some(), "Mesa's software Vulkan is installed and was not found: {found:?}");
    }
}
