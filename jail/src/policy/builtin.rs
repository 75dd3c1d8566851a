//! The policies of `seccomp/`, compiled into the program.

use crate::arch::Arch;

/// One policy file of `seccomp/`.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    /// The architecture that it is for.
    pub arch: Arch,
    /// The file's name.
    pub name: &'static str,
    /// What it says.
    pub text: &'static str,
}

macro_rules! built_in {
    ($($arch:ident $folder:literal: $($name:literal)*;)*) => {
        &[$($(BuiltIn {
            arch: Arch::$arch,
            name: $name,
            text: include_str!(concat!("../../../seccomp/", $folder, "/", $name)),
        },)*)*]
    };
}

/// All policy files, for all architectures.
pub const BUILT_IN: &[BuiltIn] = built_in! {
    X86_64 "x86_64": "backend.policy" "backend_blobs.policy" "common.policy" "device.policy" "device_minijail0.policy" "memory.policy";
    Aarch64 "aarch64": "backend.policy" "backend_blobs.policy" "common.policy" "device.policy" "device_minijail0.policy" "memory.policy";
    Riscv64 "riscv64": "backend.policy" "backend_blobs.policy" "common.policy" "device.policy" "device_minijail0.policy" "memory.policy";
};

/// The text of file `name` for `arch`.
pub(super) fn text(arch: Arch, name: &str) -> Option<&'static str> {
    BUILT_IN
        .iter()
        .find(|file| file.arch == arch && file.name == name)
        .map(|file| file.text)
}

#[cfg(test)]
mod tests;
