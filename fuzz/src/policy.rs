//! Policies in minijail's language, whatever their author meant.

use jail::Arch;
use jail::Policy;
use jail::Violation;

/// The bytes are a policy file.
///
/// For each architecture it loads or is refused with reasons; a reason names a line of the file. What loads compiles to the same
/// program each time, or is refused by the compiler with a reason.
///
/// # Panics
/// If one of these is not so.
pub fn policy(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("fuzz.policy");
    std::fs::write(&path, data).expect("a file");
    let lines = data.split(|&byte| byte == b'\n').count();
    for arch in [Arch::X86_64, Arch::Aarch64, Arch::Riscv64] {
        match Policy::load(&path, arch) {
            Ok(policy) => {
                let compile = || match policy.compile(Violation::Trap) {
                    Ok(filters) => format!("{:?}", filters.programs()),
                    Err(diagnostic) => diagnostic.to_string(),
                };
                assert_eq!(compile(), compile());
            }
            Err(diagnostics) => {
                assert!(!diagnostics.is_empty(), "refused without a reason");
                for diagnostic in diagnostics {
                    let line = usize::try_from(diagnostic.origin.line).expect("a line");
                    assert!(line <= lines, "{diagnostic} of {lines} lines");
                    assert!(!diagnostic.problem.to_string().is_empty());
                }
            }
        }
    }
}
