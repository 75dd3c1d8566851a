//! `portcullis demo`, as a stranger runs it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Output;

use serde_json::Value;

use crate::rig::BINARY;

fn demo(arguments: &[&str], directory: &Path) -> Output {
    Command::new(BINARY)
        .arg("demo")
        .args(arguments)
        .arg(directory)
        .output()
        .expect("portcullis demo")
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("a"), "first").expect("a file");
    fs::write(dir.path().join("b"), vec![0xfe; 12_345]).expect("a file");
    dir
}

#[track_caller]
fn check(document: &Value, guest: &str) {
    assert_eq!(document["ok"], true, "{document:#}");
    let files = document["files"].as_array().expect("a list");
    assert_eq!(files.len(), 2);
    for file in files {
        assert_eq!(file["guest_sum_ok"], true, "{file}");
        assert!(file["map_us"].as_f64().is_some(), "{file}");
    }
    assert_eq!(document["jail"]["seccomp"], 2);
    assert_eq!(document["jail"]["no_new_privs"], 1);
    assert_eq!(document["jail"]["cap_eff"], "0000000000000000");
    let namespaces = document["jail"]["namespaces_differ"].as_array();
    assert!(
        namespaces.is_some_and(|list| list.len() >= 7),
        "{document:#}"
    );
    let refused = document["refused"].as_array().expect("a list");
    let mut errnos: Vec<_> = refused
        .iter()
        .map(|case| case["errno"].as_str().expect("an errno"))
        .collect();
    errnos.sort_unstable();
    assert_eq!(errnos, ["EEXIST", "ENXIO", "EOVERFLOW", "EPERM", "ERANGE"]);
    assert_eq!(document["guest"], guest);
    assert!(document["latency_us"]["p50"].as_f64().is_some());
    assert!(document["latency_us"]["p99"].as_f64().is_some());
    assert_eq!(document["mappings_left"], 0);
}

#[test]
fn demo_without_a_guest_ends_well_and_is_one_document() {
    let dir = directory();
    let output = demo(&["--json", "--guest", "none"], dir.path());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    let document = serde_json::from_slice(&output.stdout).expect("one JSON document");
    check(&document, "none");
}

#[test]
fn demo_with_a_kvm_guest_ends_well() {
    if !crate::guest::has_kvm() {
        return;
    }
    let dir = directory();
    let output = demo(&["--json", "--guest", "kvm"], dir.path());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    let document = serde_json::from_slice(&output.stdout).expect("one JSON document");
    check(&document, "kvm");
}

#[test]
fn demo_for_people_shows_files_jail_and_refusals() {
    let dir = directory();
    let output = demo(&["--guest", "none"], dir.path());
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for word in ["EEXIST", "ERANGE", "EOVERFLOW", "EPERM", "ENXIO", "Seccomp"] {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
}

#[test]
fn demo_of_a_directory_that_is_not_there_fails_in_words() {
    let output = demo(&[], Path::new("/nonexistent/directory"));
    assert_ne!(output.status.code(), Some(0));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/nonexistent/directory"), "{error}");
}
