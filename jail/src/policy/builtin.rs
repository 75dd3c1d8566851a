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
    X86_64 "x86_64": "common.policy" "device.policy";
};

/// The text of file `name` for `arch`.
pub(super) fn text(arch: Arch, name: &str) -> Option<&'static str> {
    BUILT_IN
        .iter()
        .find(|file| file.arch == arch && file.name == name)
        .map(|file| file.text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn table_holds_the_files_of_the_folder() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seccomp");
        let mut found = BTreeSet::new();
        for arch in Arch::ALL {
            for entry in fs::read_dir(root.join(arch.name())).into_iter().flatten() {
                let name = entry.expect("the folder can be read").file_name();
                found.insert((arch, name.into_string().expect("names are UTF-8")));
            }
        }
        let known: BTreeSet<_> = BUILT_IN
            .iter()
            .map(|file| (file.arch, file.name.to_owned()))
            .collect();
        assert_eq!(known, found);
    }
}
