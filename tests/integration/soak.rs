//! Devices come and go, map and unmap, misbehave and are killed, for as long as is asked for; at the end nothing is left.
//!
//! `cargo test` runs a few seconds of it; `cargo xtask soak --minutes N` runs it longer, with a seed that it prints. What
//! is done depends on the seed alone, how much of it on the time. Every answer of the frontend is checked on the way.

mod files;
mod hostile;
mod misbehaviours;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use std::time::Instant;

use fixture::Leftovers;
use fixture::TestVm;
use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressStyle;

use self::files::FilesDevice;
use self::hostile::HostileDevice;
use fixture::Dice;

/// How long it runs if the environment does not say.
const SECONDS: u64 = 3;
/// The seed if the environment does not say.
const SEED: u64 = 7;
/// Lives of each device before anything is counted: the first ones fill what is kept for ever.
const WARM_UP: u32 = 3;
/// So many lives are between two looks at what is left: a leak is found near its cause.
const LIVES_A_LOOK: u64 = 64;
/// By how much a VMM's own memory may differ between two counts: in pages, what was freed can lie between what was not.
const MEMORY_SLACK_KIB: u64 = 256;

/// What was done.
#[derive(Debug, Default)]
struct Tally {
    operations: u64,
    lives: u64,
    faults: BTreeMap<&'static str, u64>,
}

impl Tally {
    fn fault(&mut self, name: &'static str) {
        self.operations += 1;
        *self.faults.entry(name).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let survived: u64 = self.faults.values().sum();
        writeln!(
            f,
            "{} operations, {} device lives, {survived} faults survived:",
            self.operations, self.lives
        )?;
        for (name, count) in &self.faults {
            writeln!(f, "  {count:>8}  {name}")?;
        }
        Ok(())
    }
}

/// What a VMM holds between two lives.
struct Count {
    leftovers: Leftovers,
    memory_kib: u64,
}

impl Count {
    fn of(vm: &TestVm) -> Self {
        Self {
            leftovers: Leftovers::at_rest(vm.process.pid(), || drop(vm.status())),
            memory_kib: fixture::anonymous_memory_kib(vm.process.pid()),
        }
    }

    /// Compares with what the VMM holds now, and returns by how much its own memory has grown.
    #[track_caller]
    fn assert_nothing_left(&self, vm: &TestVm) -> u64 {
        assert_eq!(vm.maps(), [], "mappings");
        Leftovers::settle(vm.process.pid(), &self.leftovers, || {
            vm.status();
        });
        let now = fixture::anonymous_memory_kib(vm.process.pid());
        let growth = now.saturating_sub(self.memory_kib);
        assert!(
            growth <= MEMORY_SLACK_KIB,
            "the VMM's memory: {} KiB, then {now} KiB",
            self.memory_kib
        );
        growth
    }
}

/// Names the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("soak: failed with --seed {}", self.0);
        }
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}"))
    })
}

fn bar(length: Duration) -> ProgressBar {
    // It draws on a terminal only.
    let bar = ProgressBar::with_draw_target(Some(length.as_secs()), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} s {wide_msg}");
    bar.set_style(style.expect("a template"));
    bar
}

#[test]
fn devices_that_come_go_and_misbehave_leave_nothing_behind() {
    let length = Duration::from_secs(from_environment("PORTCULLIS_SOAK_SECONDS", SECONDS));
    let seed = Seed(from_environment("PORTCULLIS_SOAK_SEED", SEED));
    println!("soak: {} s with --seed {}", length.as_secs(), seed.0);
    let mut dice = Dice::new(seed.0);
    let mut tally = Tally::default();
    let mut hostile = HostileDevice::start();
    let mut files = FilesDevice::start();
    for _ in 0..WARM_UP {
        hostile.live(&mut dice, &mut tally);
        files.live(&mut dice, &mut tally);
    }
    let before = (Count::of(hostile.vm()), Count::of(files.vm()));

    let bar = bar(length);
    let begin = Instant::now();
    while begin.elapsed() < length {
        hostile.live(&mut dice, &mut tally);
        if dice.once_in(8) {
            files.live(&mut dice, &mut tally);
        }
        if tally.lives.is_multiple_of(LIVES_A_LOOK) {
            before.0.assert_nothing_left(hostile.vm());
        }
        bar.set_position(begin.elapsed().as_secs());
        bar.set_message(format!("{} lives", tally.lives));
    }
    bar.finish_and_clear();

    let growth = (
        before.0.assert_nothing_left(hostile.vm()),
        before.1.assert_nothing_left(files.vm()),
    );
    print!("soak: {tally}");
    println!(
        "soak: 0 leaks; the VMMs' memory grew by {} and {} KiB",
        growth.0, growth.1
    );
}
