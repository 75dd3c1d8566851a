//! The jail of Portcullis: seccomp policies, the sandbox, and starting a jailed process.
//!
//! * [`policy`] reads and compiles policy files in the common subset of minijail's language.
//! * [`enter`] and [`Jail::lock_down`] take a process into its jail: namespaces, an empty root, no privileges, limits, seccomp.
//! * [`Spawner`] starts such a process from its parent and says how it ended.
//!
//! The crate knows nothing of what the process does in there.

mod arch;
mod descriptors;
mod filter;
mod last_words;
mod log_mode;
mod oom;
pub mod policy;
mod record;
mod sandbox;
mod spawn;
mod violation;

pub use arch::Arch;
pub use arch::Syscall;
pub use arch::UnknownArch;
pub use descriptors::InheritError;
pub use descriptors::take_inherited;
pub use last_words::ABORT_CODE;
pub use last_words::PANIC_CODE;
pub use last_words::name_thread;
pub use log_mode::MissingCall;
pub use oom::NotingAllocator;
pub use policy::Filters;
pub use policy::FiltersError;
pub use policy::Policy;
pub use sandbox::Jail;
pub use sandbox::Limits;
pub use sandbox::Sandbox;
pub use sandbox::SandboxLevel;
pub use sandbox::Step;
pub use sandbox::StepError;
pub use sandbox::UnknownSandboxLevel;
pub use sandbox::enter;
pub use spawn::End;
pub use spawn::ExitReport;
pub use spawn::JailedChild;
pub use spawn::Program;
pub use spawn::SpawnError;
pub use spawn::SpawnRequest;
pub use spawn::Spawner;
pub use spawn::Stderr;
pub use spawn::ViolatingCall;
pub use violation::UnknownViolation;
pub use violation::Violation;

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::path::Path;
    use std::path::PathBuf;

    /// All Rust sources below `folder`.
    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("the folder is there");
        let paths = entries.map(|entry| entry.expect("it can be read").path());
        paths
            .flat_map(|path| {
                if path.is_dir() {
                    sources(&path)
                } else {
                    vec![path]
                }
            })
            .filter(|path| path.extension() == Some(OsStr::new("rs")))
            .collect()
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).expect("it is text")
    }

    /// What stands between backticks in `text`.
    fn quoted(text: &str) -> impl Iterator<Item = &str> {
        text.split('`').skip(1).step_by(2)
    }

    #[test]
    fn readme_names_tests_that_exist() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = [sources(&root.join("src")), sources(&root.join("tests"))].concat();
        let code: String = files.iter().map(|path| read(path)).collect();
        let readme = read(&root.join("README.md"));
        let tests: Vec<_> = quoted(&readme)
            .filter_map(|word| word.split_once("::"))
            .filter(|(module, name)| !module.contains(char::is_uppercase) && !name.is_empty())
            .collect();
        assert!(tests.len() > 25, "{}", tests.len());
        for (module, name) in tests {
            assert!(code.contains(&format!("fn {name}()")), "{module}::{name}");
            let listed = module == "tests" || code.contains(&format!("\"{module}::{name}\""));
            assert!(listed, "{module}::{name}");
        }
    }
}
