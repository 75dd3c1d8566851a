//! The jail, seen from outside of a process that is in it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use jail::End;
use jail::Limits;
use jail::SandboxLevel;
use jail::Violation;
use rustix::io::FdFlags;
use rustix::process::Resource;
use rustix::process::getrlimit;

use crate::runner::Test;
use crate::spawned::hold;
use crate::spawned::report_of;

pub(crate) const TESTS: &[Test] = &[
    (
        "inside::status_shows_no_privilege",
        status_shows_no_privilege,
    ),
    ("inside::limits_are_low", limits_are_low),
    ("inside::namespaces_differ", namespaces_differ),
    (
        "inside::own_namespaces_are_known_to_the_parent",
        own_namespaces_are_known_to_the_parent,
    ),
    (
        "inside::descriptors_are_the_named_ones",
        descriptors_are_the_named_ones,
    ),
    ("inside::session_is_its_own", session_is_its_own),
    (
        "inside::root_is_empty_and_read_only",
        root_is_empty_and_read_only,
    ),
    ("inside::hang_up_is_seen", hang_up_is_seen),
];

const LEVELS: [SandboxLevel; 2] = [SandboxLevel::Full, SandboxLevel::Seccomp];

fn status_shows_no_privilege() {
    for level in LEVELS {
        let held = hold(level, Violation::Trap);
        let status = fs::read_to_string(format!("/proc/{}/status", held.child.pid()));
        let status = status.expect("/proc is there");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let line = line.unwrap_or_else(|| panic!("no {name}"));
            line[name.len()..].trim_matches([':', ' ', '\t']).to_owned()
        };
        assert_eq!(field("Seccomp:"), "2");
        assert_eq!(field("NoNewPrivs"), "1");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("Groups"), "");
        if level == SandboxLevel::Full || is_root() {
            assert_eq!(field("CapBnd"), "0000000000000000");
        }
        let user = if is_root() { "65534" } else { "1000" };
        let four = [user; 4].join("\t");
        assert_eq!((field("Uid"), field("Gid")), (four.clone(), four));
        if level == SandboxLevel::Full {
            let numbers = field("NSpid");
            assert_eq!(numbers, format!("{}\t1", held.child.pid()));
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn limits_are_low() {
    for level in LEVELS {
        let held = hold(level, Violation::Trap);
        let limits = fs::read_to_string(format!("/proc/{}/limits", held.child.pid()));
        let limits = limits.expect("everybody may look");
        let wanted = Limits::default();
        // No process raises its hard limit.
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        for (name, value) in [
            ("Max file size", 0),
            ("Max core file size", 0),
            ("Max processes", 0),
            ("Max open files", wanted.open_files.min(most)),
            ("Max locked memory", 0),
            ("Max address space", wanted.address_space),
            ("Max msgqueue size", 0),
            ("Max realtime priority", 0),
        ] {
            let line = limits.lines().find_map(|line| line.strip_prefix(name));
            let line = line.unwrap_or_else(|| panic!("no {name}"));
            let both: Vec<_> = line.split_whitespace().take(2).map(str::to_owned).collect();
            assert_eq!(
                both,
                [value.to_string(), value.to_string()],
                "{level} {name}"
            );
        }
    }
}

fn own_namespaces_are_known_to_the_parent() {
    let held = hold(SandboxLevel::Full, Violation::Trap);
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    assert_eq!(held.child.own_namespaces(), names);
    let held = hold(SandboxLevel::Seccomp, Violation::Trap);
    assert!(held.child.own_namespaces().is_empty());
}

fn namespaces_differ() {
    let held = hold(SandboxLevel::Full, Violation::Trap);
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let link = |process: &str| fs::read_link(format!("/proc/{process}/ns/{name}"));
        let ours = link("self").expect("/proc is there");
        let theirs = link(&held.child.pid().to_string()).expect("this process may look");
        assert_ne!(ours, theirs, "{name}");
    }
}

fn descriptors_are_the_named_ones() {
    // One that this program forgot to close on exec.
    let leak = fs::File::open("/dev/null").expect("it is there");
    rustix::io::fcntl_setfd(&leak, FdFlags::empty()).expect("it is open");
    for level in [
        SandboxLevel::Full,
        SandboxLevel::Seccomp,
        SandboxLevel::None,
    ] {
        let held = hold(level, Violation::Trap);
        let folder = fs::read_dir(format!("/proc/{}/fd", held.child.pid()));
        let numbers: BTreeSet<_> = folder
            .expect("this process may look")
            .map(|entry| entry.expect("it is there").file_name().into_string())
            .collect();
        let expected = ["0", "1", "2", "3", "4"].map(|number| Ok(number.to_owned()));
        assert_eq!(numbers, expected.into(), "{level}");
    }
}

fn session_is_its_own() {
    for level in LEVELS {
        let held = hold(level, Violation::Trap);
        assert_ne!(
            session(&held.child.pid().to_string()),
            session("self"),
            "{level}: signals of the terminal are for the parent alone"
        );
    }
}

/// The session of `process`: 0 where its leader lives outside this pid namespace, as a container's
/// first session does. `getsid` of rustix panics on that 0.
fn session(process: &str) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it lives");
    let (_, after_name) = stat.rsplit_once(") ").expect("the name is in parentheses");
    let session = after_name.split(' ').nth(3).expect("a session");
    session.parse().expect("a number")
}

fn root_is_empty_and_read_only() {
    let held = hold(SandboxLevel::Full, Violation::Trap);
    let root = format!("/proc/{}/root/", held.child.pid());
    let entries = fs::read_dir(&root).expect("this process may look").count();
    assert_eq!(entries, 0);
    let error = fs::write(format!("{root}file"), "").expect_err("it is read-only");
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", held.child.pid()));
    let mounts = mounts.expect("this process may look");
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
}

fn hang_up_is_seen() {
    let mut held = hold(SandboxLevel::Full, Violation::Trap);
    assert!(
        held.child
            .try_wait()
            .expect("it can be waited for")
            .is_none()
    );
    held.socket.write_all(b"").expect("nothing is written");
    drop(held.socket);
    let report = report_of(&mut held.child);
    assert_eq!(report.end, End::Exited { code: 0 });
    assert_eq!(
        held.child.try_wait().expect("it was waited for"),
        Some(report)
    );
}
