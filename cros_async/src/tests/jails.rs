//! io_uring is not for jails.

use std::path::Path;

use seccompiler::SeccompAction;
use seccompiler::SeccompFilter;

use crate::Error;
use crate::Executor;
use crate::ExecutorKind;

/// Puts a filter that allows everything on the calling thread.
fn filter_this_thread() {
    let arch = std::env::consts::ARCH.try_into().expect("an architecture");
    let allow = SeccompAction::Allow;
    let filter = SeccompFilter::new([].into(), allow, SeccompAction::KillThread, arch);
    let program: seccompiler::BpfProgram = filter
        .expect("a filter")
        .try_into()
        .expect("the filter compiles");
    seccompiler::apply_filter(&program).expect("the filter is put on");
}

#[test]
fn uring_under_a_seccomp_filter_is_refused_and_epoll_is_not() {
    let thread = std::thread::spawn(|| {
        filter_this_thread();
        let uring = Executor::with_executor_kind(ExecutorKind::Uring);
        assert!(matches!(uring, Err(Error::Filtered)), "{uring:?}");
        let epoll = Executor::with_executor_kind(ExecutorKind::Epoll).expect("an executor");
        assert_eq!(epoll.kind(), ExecutorKind::Epoll);
    });
    thread.join().expect("the thread's assertions hold");
}

#[test]
fn policies_have_no_call_of_io_uring() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seccomp");
    let entries = |folder: &Path| std::fs::read_dir(folder).expect("a folder");
    let policies: Vec<_> = entries(&folder)
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .flat_map(|arch| entries(&arch))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert!(!policies.is_empty(), "{}", folder.display());
    for path in policies {
        let text = std::fs::read_to_string(&path).expect("a policy's text");
        let found = text.lines().find(|line| line.starts_with("io_uring"));
        assert_eq!(found, None, "{}", path.display());
    }
}
