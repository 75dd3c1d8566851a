//! No rule of the device process's policy is without use: its work is recorded in log mode under a policy that allows nothing,
//! and each of the policy's own rules must be among what was asked for.
//!
//! The rules that it includes are looked at in the crate `jail`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fixture::Script;
use serde_json::json;

use crate::rig::PAGE;
use crate::rig::REGION;
use crate::rig::Rig;

/// The names of the rules that stand in the file itself.
fn own_rules(policy: &str) -> BTreeSet<&str> {
    policy
        .lines()
        .filter(|line| !line.starts_with(['#', '@']))
        .filter_map(|line| line.split_once(": "))
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn every_rule_of_the_devices_policy_is_used() {
    let policies = tempfile::tempdir().expect("a folder");
    fs::write(
        policies.path().join("device.policy"),
        "# Nothing.\nexit: 1\n",
    )
    .expect("a policy");
    let mut rig = Rig::with(Script::one_region(REGION), |vm| {
        vm.arg("--seccomp")
            .arg("log")
            .arg("--seccomp-policy-dir")
            .arg(policies.path())
    });
    rig.assert_serves(0);
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(rig.channel.map(0, PAGE, 0, PAGE, 0, &memory), 0);
    rig.vm.done(&json!({"command": "reset"}));
    rig.assert_serves(0);
    rig.vm.done(&json!({"command": "stop"}));
    let lacks = rig.vm.process.event("policy_lacks");
    let calls = lacks["calls"].as_array().expect("a list");
    let used: BTreeSet<&str> = calls
        .iter()
        .filter_map(|call| call["name"].as_str())
        .collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seccomp")
        .join(std::env::consts::ARCH)
        .join("device.policy");
    let source = fs::read_to_string(source).expect("the device's policy");
    let unused: Vec<&str> = own_rules(&source)
        .into_iter()
        .filter(|name| !used.contains(name))
        .collect();
    assert_eq!(unused, Vec::<&str>::new(), "used: {used:?}");
}
