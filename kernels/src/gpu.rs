//! Which GPU adapters this machine shows through wgpu.
//!
//! Invariant: it reports what the drivers say and never panics where there is no driver. It only
//! looks: no distance is computed on a GPU, and nothing here chooses a device.

use std::fmt;

use wgpu::{Backend, Backends, DeviceType, Instance, InstanceDescriptor, InstanceFlags};

/// The kind of device behind an adapter, as its driver states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GpuDeviceType {
    /// A card with its own memory.
    Discrete,
    /// Shares the memory of the processor.
    Integrated,
    /// Handed through by a virtual machine.
    Virtual,
    /// A software renderer on the processor, such as llvmpipe.
    Software,
    /// The driver does not say.
    Unknown,
}

impl fmt::Display for GpuDeviceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            GpuDeviceType::Discrete => "discrete",
            GpuDeviceType::Integrated => "integrated",
            GpuDeviceType::Virtual => "virtual",
            GpuDeviceType::Software => "software",
            GpuDeviceType::Unknown => "unknown",
        })
    }
}

/// One adapter. The same device appears once for each backend that reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuAdapter {
    /// The driver's name for the device.
    pub name: String,
    /// The graphics interface it is reached by: `vulkan` or `metal`.
    pub backend: String,
    /// The kind of device.
    pub device_type: GpuDeviceType,
    /// Name and version of the driver; empty where it states none.
    pub driver: String,
    /// Whether it is a software renderer, which serves tests only.
    pub is_software: bool,
}

/// The adapters this machine shows now, in the order the drivers list them.
///
/// Loads the drivers on each call, which takes from milliseconds to a second: call it for a
/// diagnosis, not in a request. Empty where there is no loader, driver or device. Only backends
/// that are compiled in are asked: Vulkan, and Metal on Apple systems.
pub fn adapters() -> Vec<GpuAdapter> {
    // Creating an instance without any backend panics.
    if Instance::enabled_backend_features().is_empty() {
        return Vec::new();
    }
    let mut descriptor = InstanceDescriptor::new_without_display_handle();
    // Validation layers are for those who write shaders and print to stderr.
    descriptor.flags = InstanceFlags::empty();
    let instance = Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(Backends::all()))
        .iter()
        .map(|adapter| describe(adapter.get_info()))
        .collect()
}

fn describe(info: wgpu::AdapterInfo) -> GpuAdapter {
    let device_type = match info.device_type {
        DeviceType::DiscreteGpu => GpuDeviceType::Discrete,
        DeviceType::IntegratedGpu => GpuDeviceType::Integrated,
        DeviceType::VirtualGpu => GpuDeviceType::Virtual,
        DeviceType::Cpu => GpuDeviceType::Software,
        DeviceType::Other => GpuDeviceType::Unknown,
    };
    let driver = [info.driver.trim(), info.driver_info.trim()]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    GpuAdapter {
        name: info.name,
        backend: backend_name(info.backend).to_owned(),
        device_type,
        driver,
        is_software: device_type == GpuDeviceType::Software,
    }
}

fn backend_name(backend: Backend) -> &'static str {
    match backend {
        Backend::Noop => "noop",
        Backend::Vulkan => "vulkan",
        Backend::Metal => "metal",
        Backend::Dx12 => "dx12",
        Backend::Gl => "gl",
        Backend::BrowserWebGpu => "webgpu",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_adapters_works_with_and_without_drivers() {
        let adapters = adapters();
        eprintln!("{} adapter(s): {adapters:#?}", adapters.len());
        for adapter in &adapters {
            assert!(!adapter.name.is_empty());
            let says_software = adapter.device_type == GpuDeviceType::Software;
            assert_eq!(adapter.is_software, says_software);
        }
    }

    #[test]
    fn a_software_renderer_is_marked_and_its_driver_named() {
        let mut info = wgpu::AdapterInfo::new(DeviceType::Cpu, Backend::Vulkan);
        info.name = "llvmpipe (LLVM 15.0.7, 256 bits)".to_owned();
        info.driver = "llvmpipe".to_owned();
        info.driver_info = "Mesa 23.2.1".to_owned();
        let adapter = describe(info);
        assert!(adapter.is_software);
        assert_eq!(adapter.backend, "vulkan");
        assert_eq!(adapter.device_type.to_string(), "software");
        assert_eq!(adapter.driver, "llvmpipe Mesa 23.2.1");
    }

    #[test]
    fn a_card_without_driver_text_is_not_software() {
        let info = wgpu::AdapterInfo::new(DeviceType::DiscreteGpu, Backend::Metal);
        let adapter = describe(info);
        assert!(!adapter.is_software);
        assert_eq!((adapter.backend.as_str(), adapter.driver.as_str()), ("metal", ""));
    }
}
