//! The form in which the guest's programs are written down: a line for each instruction, its bytes in hexadecimal, a bar,
//! and what an assembler makes them from. No assembler is needed to build; the tests use one where it is there.

/// Returns the bytes of a listing.
pub(super) fn assemble(listing: &str) -> Vec<u8> {
    let columns = listing.lines().filter_map(|line| line.split_once('|'));
    columns
        .flat_map(|(bytes, _)| bytes.split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).expect("the listing is in hexadecimal"))
        .collect()
}

/// Compares a listing's bytes with what an assembler makes of its text, on machines that have one.
#[cfg(test)]
pub(super) fn check(listing: &str) {
    use std::process::Command;

    let folder = tempfile::tempdir().unwrap();
    let [source, object, binary] = ["a.s", "a.o", "a.bin"].map(|name| folder.path().join(name));
    let text = listing.lines().filter_map(|line| line.split_once('|'));
    let text: Vec<&str> = text.map(|(_, text)| text).collect();
    std::fs::write(&source, text.join("\n") + "\n").unwrap();
    let assembled = Command::new("as")
        .arg("--64")
        .arg("-o")
        .args([&object, &source])
        .status();
    let copied = Command::new("objcopy")
        .args(["-O", "binary"])
        .args([&object, &binary])
        .status();
    if !(assembled.is_ok_and(|status| status.success())
        && copied.is_ok_and(|status| status.success()))
    {
        eprintln!("skipped: no assembler for x86-64 here (`as` and `objcopy` of binutils)");
        return;
    }
    assert_eq!(std::fs::read(&binary).unwrap(), assemble(listing));
}
