//! `portcullis ctl`: asks a running VMM, and prints the answer for a person or a program.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use anyhow::anyhow;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::time::Timespec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args::ctl::CtlArguments;
use super::args::ctl::CtlCommand;
use super::failure::Failure;
use super::output::print;
use super::output::print_json;
use super::size::Size;
use super::table::Align;
use super::table::Table;
use super::table::printable;
use crate::control::client::ANSWER_DEADLINE;
use crate::control::client::Client;
use crate::control::client::ClientError;
use crate::control::message::MAX_TRANSFER;
use crate::control::message::MappingReport;
use crate::control::message::PeekReport;
use crate::control::message::PokeReport;
use crate::control::message::Request;
use crate::control::message::ResetReport;
use crate::control::message::StatsReport;
use crate::control::message::StatusReport;
use crate::control::message::StopReport;
use crate::control::message::decode_hex;

/// Runs `portcullis ctl`.
///
/// # Errors
/// The VMM can't be reached, or refuses.
pub fn run(arguments: CtlArguments) -> Result<(), Failure> {
    let CtlArguments {
        control,
        json,
        command,
    } = arguments;
    match command {
        CtlCommand::Status => show(&control, json, &Request::Status, status_text),
        CtlCommand::Maps => show(
            &control,
            json,
            &Request::Maps,
            |maps: &Vec<MappingReport>| maps_text(maps),
        ),
        CtlCommand::Stats => show(&control, json, &Request::Stats, stats_text),
        CtlCommand::Peek { shmid, offset, len } => {
            check_len(len)?;
            let request = Request::Peek { shmid, offset, len };
            show(&control, json, &request, peek_text)
        }
        CtlCommand::Poke { shmid, offset, hex } => {
            let bytes = decode_hex(&hex).ok_or_else(|| {
                Failure::usage(anyhow!("'{hex}' is not hexadecimal"))
                    .advise("write two digits a byte, such as 7f454c46")
            })?;
            check_len(bytes.len() as u64)?;
            let request = Request::Poke { shmid, offset, hex };
            show(&control, json, &request, |report: &PokeReport| {
                format!(
                    "{} written by the {}\n",
                    Size(report.len),
                    report.seen_by.name()
                )
            })
        }
        CtlCommand::Reset => show(&control, json, &Request::Reset, |report: &ResetReport| {
            format!(
                "device reset, {} dropped, generation {}\n",
                count(report.dropped, "mapping"),
                report.generation
            )
        }),
        CtlCommand::Stop => stop(&control, json),
    }
}

/// Asks, and prints the answer.
fn show<T: DeserializeOwned + Serialize>(
    control: &Path,
    json: bool,
    request: &Request,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let report: T = connect(control)?.ask(request).map_err(failure)?;
    if json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(())
}

fn stop(control: &Path, json: bool) -> Result<(), Failure> {
    let mut client = connect(control)?;
    let report: StopReport = client.ask(&Request::Stop).map_err(failure)?;
    // The VMM is still there to be looked up: it cleans up before it closes the connection.
    let process = i32::try_from(report.pid)
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    client
        .wait_for_end()
        .context("the VMM does not end")
        .map_err(Failure::from)?;
    if let Some(process) = process {
        // From another pid namespace the process can't be seen; then the closed connection has to do.
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        let timeout = Timespec::try_from(ANSWER_DEADLINE).ok();
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    }
    if json {
        print_json(&report)?;
    } else {
        print(&format!("VMM {} has ended\n", report.pid))?;
    }
    Ok(())
}

fn connect(control: &Path) -> Result<Client, Failure> {
    Client::connect(control).map_err(|error| {
        let what = format!("cannot connect to the control socket {}", control.display());
        Failure::new(anyhow!(error).context(what))
            .advise("is there a VMM that was started with this --control?")
    })
}

/// A refused request's failure, with the VMM's own advice.
fn failure(error: ClientError) -> Failure {
    let advice = match &error {
        ClientError::Refused(refusal) => refusal.advice.clone(),
        _ => None,
    };
    let failure = Failure::new(error);
    match advice {
        Some(advice) => failure.advise(advice),
        None => failure,
    }
}

fn check_len(len: u64) -> Result<(), Failure> {
    if (1..=MAX_TRANSFER as u64).contains(&len) {
        return Ok(());
    }
    Err(Failure::usage(anyhow!("a length of {len} bytes can't be"))
        .advise(format!("ask for 1 to {MAX_TRANSFER} bytes at once")))
}

fn status_text(status: &StatusReport) -> String {
    let mut table = Table::new(&[("", Align::Left), ("", Align::Left)]);
    let process = |pid: Option<u32>| pid.map_or("none".to_owned(), |pid| pid.to_string());
    table.row([
        "device".into(),
        format!("{}, {}", status.device, status.state.name()),
    ]);
    table.row([
        "processes".into(),
        format!(
            "VMM {}, device {}, backend {}",
            status.pids.vmm,
            process(status.pids.device),
            process(status.pids.backend)
        ),
    ]);
    table.row(["backend".into(), status.backend.clone()]);
    table.row(["guest".into(), status.guest.clone()]);
    table.row(["sandbox".into(), status.sandbox.clone()]);
    for region in &status.regions {
        table.row([
            format!("region {}", region.shmid),
            format!("{} at {:#x}", Size(region.len), region.guest_address),
        ]);
    }
    table.row(["mappings".into(), status.mappings.to_string()]);
    if status.restarts > 0 {
        table.row(["restarts".into(), status.restarts.to_string()]);
    }
    if let Some(ended) = &status.ended {
        table.row(["ended".into(), ended.clone()]);
    }
    if let Some(refused) = &status.last_refused {
        table.row([
            "last refused".into(),
            format!(
                "{} of {} at {:#x} in region {}: {}",
                refused.request,
                Size(refused.len),
                refused.offset,
                refused.shmid,
                refused.errno
            ),
        ]);
    }
    table.to_string()
}

fn maps_text(maps: &[MappingReport]) -> String {
    if maps.is_empty() {
        return "no mappings\n".to_owned();
    }
    let mut table = Table::new(&[
        ("device", Align::Left),
        ("shmid", Align::Right),
        ("offset", Align::Right),
        ("length", Align::Right),
        ("prot", Align::Left),
        ("kind", Align::Left),
    ]);
    for map in maps {
        table.row([
            map.device.clone(),
            map.shmid.to_string(),
            format!("{:#x}", map.offset),
            Size(map.len).to_string(),
            map.prot.clone(),
            map.kind.clone(),
        ]);
    }
    table.to_string()
}

fn stats_text(stats: &StatsReport) -> String {
    let mut table = Table::new(&[("", Align::Left), ("", Align::Right)]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("live mappings", stats.mappings.to_string());
    row("mapped", Size(stats.mapped_bytes).to_string());
    row("requests", stats.requests.to_string());
    row("maps", stats.maps.to_string());
    row("unmaps", stats.unmaps.to_string());
    row("batches", stats.batches.to_string());
    row("in flight", stats.in_flight.to_string());
    row("refused", stats.refused.to_string());
    for (errno, number) in &stats.refused_by_service {
        row(&format!("  {errno} by the service"), number.to_string());
    }
    for (rule, number) in &stats.deviations {
        row(&format!("broken: {rule}"), number.to_string());
    }
    table.to_string()
}

fn peek_text(peek: &PeekReport) -> String {
    let bytes = decode_hex(&peek.hex).unwrap_or_default();
    let mut text = hex_dump(peek.offset, &bytes);
    let _ = writeln!(text, "read by the {}", peek.seen_by.name());
    text
}

/// Sixteen bytes a line: where, in hexadecimal, as text.
fn hex_dump(start: u64, bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, chunk) in (0u64..).zip(bytes.chunks(16)) {
        let digits: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain: String = chunk
            .iter()
            .map(|&byte| match byte {
                b' '..=b'~' => char::from(byte),
                _ => '.',
            })
            .collect();
        let offset = start.saturating_add(16 * line);
        let _ = writeln!(text, "{offset:08x}  {:<47}  |{plain}|", digits.join(" "));
    }
    text
}

/// `1 mapping`, `2 mappings`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {}{plural}", printable(noun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_dump_shows_offset_bytes_and_text() {
        let mut bytes: Vec<u8> = (0x41..0x51).collect();
        bytes.extend([0x7f, b'E']);
        assert_eq!(
            hex_dump(0x1000, &bytes),
            "00001000  41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f 50  |ABCDEFGHIJKLMNOP|\n\
             00001010  7f 45                                            |.E|\n"
        );
    }

    #[test]
    fn maps_without_any_say_so() {
        assert_eq!(maps_text(&[]), "no mappings\n");
    }
}
