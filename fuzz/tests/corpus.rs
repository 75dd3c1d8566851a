//! The fuzz targets over their corpora, and over changes of each entry that are the same in every run.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use fixture::Dice;
    use portcullis_fuzz::TARGETS;

    /// Changes of each entry of the corpus.
    const CHANGES: u64 = 40;

    /// Changes a byte or a bit, cuts, repeats or swaps parts: one to four times.
    fn changed(entry: &[u8], random: &mut Dice) -> Vec<u8> {
        const EDGES: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
        let mut bytes = entry.to_vec();
        let mut below =
            |limit: usize| usize::try_from(random.below(limit.max(1) as u64)).expect("small");
        for _ in 0..=below(4) {
            let place = below(bytes.len());
            match below(6) {
                _ if bytes.is_empty() => bytes.push(EDGES[below(6)]),
                0 => bytes[place] ^= 1 << below(8),
                1 => bytes[place] = EDGES[below(6)],
                2 => bytes.truncate(place),
                3 => {
                    let part = bytes[place..].to_vec();
                    bytes.extend_from_slice(&part[..part.len().min(64)]);
                }
                4 => bytes.insert(place, EDGES[below(6)]),
                _ => drop(bytes.remove(place)),
            }
        }
        bytes
    }

    /// Runs one target over its corpus.
    fn run(name: &str) {
        let (_, target) = TARGETS
            .iter()
            .find(|(known, _)| *known == name)
            .expect("a target of this name");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let mut entries: Vec<_> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        entries.sort();
        assert!(entries.len() >= 5, "{} entries", entries.len());
        let mut random = Dice::new(1);
        for entry in entries {
            let bytes = fs::read(&entry).expect("an entry is read");
            // Said only where the target panics.
            println!("{}", entry.display());
            target(&bytes);
            for _ in 0..CHANGES {
                let bytes = changed(&bytes, &mut random);
                println!("{bytes:02x?}");
                target(&bytes);
            }
        }
    }

    #[test]
    fn policy() {
        run("policy");
    }

    #[test]
    fn replies() {
        run("replies");
    }

    #[test]
    fn server() {
        run("server");
    }

    #[test]
    fn tube() {
        run("tube");
    }

    #[test]
    fn wire() {
        run("wire");
    }

    #[test]
    fn every_target_has_a_corpus_and_a_program() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (name, _) in TARGETS {
            assert!(root.join("corpus").join(name).is_dir(), "{name}");
            let program = root.join("fuzz_targets").join(format!("{name}.rs"));
            assert!(program.is_file(), "{name}");
        }
    }
}
