//! `cargo xtask soak`: the soak of the integration tests, for as long as is asked for and with a seed that is told.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

/// The test that it runs.
const TEST: &str = "soak::devices_that_come_go_and_misbehave_leave_nothing_behind";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Soak {
    minutes: u64,
    seed: Option<u64>,
}

impl Soak {
    /// Reads what follows the word `soak`: `--minutes N`, and `--seed S` where a run is to be repeated.
    ///
    /// # Errors
    /// If it is anything else.
    pub(crate) fn parse(arguments: &[&str]) -> Result<Soak> {
        let (pairs, rest) = arguments.as_chunks::<2>();
        let mut minutes = None;
        let mut seed = None;
        for [name, value] in pairs {
            let place = match *name {
                "--minutes" => &mut minutes,
                "--seed" => &mut seed,
                _ => bail!("soak has no argument {name}"),
            };
            *place = Some(value.parse().with_context(|| format!("{name} {value}"))?);
        }
        if let [name] = rest {
            bail!("{name} of soak has no value");
        }
        Ok(Soak {
            minutes: minutes.context("soak needs --minutes N")?,
            seed,
        })
    }

    /// Runs it and returns whether every answer was right and nothing was left over.
    ///
    /// # Errors
    /// If cargo cannot be started.
    pub(crate) fn run(&self, root: &Path) -> Result<bool> {
        let seed = self.seed.unwrap_or_else(seed_of_now);
        let status = Command::new(env!("CARGO"))
            .args(["test", "--quiet", "--locked", "--package", "portcullis"])
            .args(["--test", "integration", "--", TEST])
            .args(["--exact", "--nocapture"])
            .env("PORTCULLIS_SOAK_SECONDS", (self.minutes * 60).to_string())
            .env("PORTCULLIS_SOAK_SEED", seed.to_string())
            .current_dir(root)
            .status()
            .context("cargo test")?;
        Ok(status.success())
    }
}

/// Another one each time.
fn seed_of_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| u64::from(now.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_needed_and_the_seed_is_not() {
        let soak = |minutes, seed| Soak { minutes, seed };
        let parsed = Soak::parse(&["--minutes", "10"]).expect("parses");
        assert_eq!(parsed, soak(10, None));
        let parsed = Soak::parse(&["--seed", "7", "--minutes", "1"]).expect("parses");
        assert_eq!(parsed, soak(1, Some(7)));
        for (arguments, want) in [
            (&[][..], "soak needs --minutes N"),
            (&["--minutes"], "--minutes of soak has no value"),
            (&["--hours", "1"], "soak has no argument --hours"),
            (&["--minutes", "x"], "--minutes x"),
        ] {
            let error = Soak::parse(arguments).expect_err("refused");
            assert_eq!(error.to_string(), want);
        }
    }
}
