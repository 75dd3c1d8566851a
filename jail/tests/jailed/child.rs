//! The jailed process: goes into its jail, prepares what it needs, locks down, and does what the test wants to see.
// UNSAFETY: one action reads memory that is not there, another makes any syscall, to see what becomes of it.
#![expect(unsafe_code, reason = "provokes faults and violations")]

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;

use jail::Filters;
use jail::Jail;
use jail::Limits;
use jail::Sandbox;

use crate::attempts;

/// The argument that makes the program play the jailed process.
pub(crate) const MARK: &str = "--jailed";

/// The code of a child that can't start.
const BROKEN: u8 = 99;

struct Options<'a>(BTreeMap<&'a str, &'a str>);

impl Options<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).copied()
    }

    fn need<T: std::str::FromStr>(&self, name: &str) -> T {
        self.get(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("missing or wrong: {name}"))
    }

    fn descriptor(&self, name: &str) -> Option<OwnedFd> {
        let number = self.get(name)?.parse().expect("a number");
        Some(jail::take_inherited(number).expect("it was passed on"))
    }
}

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let words = arguments.iter().filter(|argument| *argument != MARK);
    let words: Vec<&str> = words.map(String::as_str).collect();
    let options = Options(
        words
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect(),
    );
    let violation = options.need("--seccomp");
    let folder = options.get("--policy-dir").map(PathBuf::from);
    let policy = options.get("--policy").unwrap_or("device");
    let filters = match Filters::for_process(policy, folder.as_deref(), violation) {
        Ok(filters) => filters,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(BROKEN);
        }
    };
    let parent = options.descriptor("--parent-fd").map(File::from);
    let entered = jail::enter(Sandbox {
        name: options.need("--name"),
        level: options.need("--sandbox"),
        report: options.descriptor("--report-fd"),
        listener: options.descriptor("--listener-fd"),
        keep: parent.iter().map(AsRawFd::as_raw_fd).collect(),
        limits: Limits::default(),
    });
    let jail = match entered {
        Ok(jail) => jail,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(BROKEN);
        }
    };
    let action: String = options.need("--action");
    if action == "try" {
        let name: String = options.need("--abstract");
        let parent = parent.expect("a socket to the parent");
        return attempts::main(jail, &filters, parent, &name);
    }
    if action == "try-one" {
        return attempts::one(jail, &filters, options.need::<String>("--attempt").as_str());
    }
    let numbers = options.get("--call").unwrap_or_default().split(',');
    let numbers: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
    act(&action, jail, &filters, parent, &numbers)
}

/// A thread that was started before the filter came on.
struct Worker {
    jobs: mpsc::Sender<fn()>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start() -> Self {
        let (jobs, receiver) = mpsc::channel::<fn()>();
        let (started, is_started) = mpsc::channel();
        let thread = thread::spawn(move || {
            jail::name_thread("worker");
            started.send(()).expect("the main thread waits");
            for job in receiver {
                job();
            }
        });
        // A thread that still starts makes calls that the policy does not have.
        is_started.recv().expect("the thread starts");
        Self { jobs, thread }
    }

    /// Runs `job` and waits for the end of the thread.
    fn run_and_end(self, job: fn()) -> bool {
        self.jobs.send(job).expect("the thread is waiting");
        drop(self.jobs);
        self.thread.join().is_ok()
    }
}

fn act(
    action: &str,
    jail: Jail,
    filters: &Filters,
    parent: Option<File>,
    numbers: &[u64],
) -> ExitCode {
    if action == "panic-before" {
        panic!("before the filter");
    }
    let worker = Worker::start();
    jail.lock_down(filters)
        .expect("the kernel takes the filters");
    match action {
        "end" => ExitCode::SUCCESS,
        "code" => ExitCode::from(7),
        "hold" => hold(parent),
        "hold-nothing" => loop {
            thread::park();
        },
        "read" => success(io::stdin().read(&mut [0]).is_ok_and(|len| len == 0)),
        "panic" => panic!("on purpose"),
        "abort" => process::abort(),
        "out-of-memory" => out_of_memory(),
        "overflow" => ExitCode::from(overflow(u64::MAX)),
        "fault" => fault(),
        "socket" => ended(UnixStream::pair()),
        "open" => ended(fs::read("/etc/passwd")),
        "connect" => ended(TcpStream::connect("127.0.0.1:1")),
        "listen" => ended(TcpListener::bind("127.0.0.1:0")),
        "thread" => ended(thread::Builder::new().spawn(|| {})),
        "fork" => ended(process::Command::new("/bin/true").spawn()),
        "worker-ends" => success(worker.run_and_end(|| {})),
        "worker-panics" => success(!worker.run_and_end(|| panic!("in the worker"))),
        "worker-aborts" => success(worker.run_and_end(|| process::abort())),
        "worker-overflows" => success(worker.run_and_end(|| {
            overflow(u64::MAX);
        })),
        "worker-socket" => success(worker.run_and_end(|| {
            let _pair = UnixStream::pair();
        })),
        "allocate" => allocate(worker),
        // The worker first: a main thread that ends by `exit` would leave it, and the process with it.
        "call" if worker.run_and_end(|| {}) => call(numbers),
        _ => ExitCode::from(BROKEN),
    }
}

fn success(value: bool) -> ExitCode {
    if value {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// For calls that the policy must not let through: the code says that one came back.
fn ended<T>(result: io::Result<T>) -> ExitCode {
    ExitCode::from(if result.is_ok() { 50 } else { 51 })
}

/// Tells the parent that everything is set up, and stays until it hangs up.
fn hold(parent: Option<File>) -> ExitCode {
    let mut parent = parent.expect("a socket to the parent");
    parent.write_all(b"!").expect("the parent listens");
    let mut byte = [0];
    match parent.read(&mut byte) {
        Ok(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn out_of_memory() -> ExitCode {
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    loop {
        blocks.push(black_box(Vec::with_capacity(16 << 20)));
    }
}

#[expect(unconditional_recursion, reason = "overflows the stack")]
fn overflow(depth: u64) -> u8 {
    let frame = black_box([depth; 512]);
    overflow(frame[0] - 1) + black_box(1)
}

fn fault() -> ExitCode {
    // SAFETY: none; the process is to die of it, and nothing can map this page.
    let byte = unsafe { std::ptr::read_volatile(std::ptr::without_provenance::<u8>(8)) };
    ExitCode::from(byte)
}

/// Makes the syscall `numbers[0]` with the arguments after it. Whatever comes back, it was let through.
fn call(numbers: &[u64]) -> ExitCode {
    let [number, a, b, c, d, e, f] = numbers.try_into().expect("a number and six arguments");
    // SAFETY: the test chooses calls that fail or only harm this process, which has nothing to lose.
    unsafe { libc::syscall(number.cast_signed(), a, b, c, d, e, f) };
    ExitCode::SUCCESS
}

/// The allocator at work in two threads, with blocks small and large that grow and go.
fn allocate(worker: Worker) -> ExitCode {
    fn work() {
        for size in [16, 4 << 10, 200 << 10, 4 << 20] {
            let mut block = black_box(vec![1_u8; size]);
            block.extend(black_box(vec![2_u8; size]));
            let mut small: Vec<Vec<u8>> = (0..200).map(|n| vec![0; n * 64]).collect();
            small.retain(|block| block.len() % 128 == 0);
            black_box((block, small));
        }
        let mut map = std::collections::HashMap::new();
        map.insert(1, "one");
        black_box(map);
    }
    work();
    success(worker.run_and_end(work))
}
