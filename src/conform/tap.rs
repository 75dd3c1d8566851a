//! The suite's output for programs of the TAP kind: a plan, a line a case, a comment with what was seen.

use std::io;
use std::io::Write;

use super::CaseReport;
use super::Outcome;
use super::Report;
use super::Source;

/// Writes TAP version 13 as the cases end.
#[derive(Debug)]
pub struct Tap<W> {
    out: W,
    number: usize,
}

impl<W: Write> Tap<W> {
    /// Begins the output with a plan of `cases` cases.
    ///
    /// # Errors
    /// What `out` says.
    pub fn new(mut out: W, cases: usize) -> io::Result<Tap<W>> {
        writeln!(out, "TAP version 13\n1..{cases}")?;
        Ok(Tap { out, number: 0 })
    }

    /// Writes one case.
    ///
    /// # Errors
    /// What `out` says.
    pub fn case(&mut self, case: &CaseReport) -> io::Result<()> {
        self.number += 1;
        let source = match case.source {
            Source::Spec => "spec",
            Source::Portcullis => "portcullis",
        };
        let (word, directive) = match case.result {
            Outcome::Pass => ("ok", String::new()),
            Outcome::Fail => ("not ok", String::new()),
            Outcome::NotApplicable => ("ok", format!(" # SKIP {}", case.seen)),
        };
        writeln!(
            self.out,
            "{word} {} - {} [{source}] {}{directive}",
            self.number, case.name, case.rule
        )?;
        if case.result == Outcome::Fail {
            writeln!(self.out, "# seen: {}", case.seen)?;
        }
        Ok(())
    }

    /// Ends the output with the counts.
    ///
    /// # Errors
    /// What `out` says.
    pub fn end(mut self, report: &Report) -> io::Result<()> {
        writeln!(
            self.out,
            "# {} passed, {} failed, {} not applicable",
            report.count(Outcome::Pass),
            report.count(Outcome::Fail),
            report.count(Outcome::NotApplicable)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(result: Outcome) -> CaseReport {
        CaseReport {
            name: "a/b".to_owned(),
            rule: "a rule",
            source: Source::Spec,
            result,
            seen: "something".to_owned(),
        }
    }

    #[test]
    fn cases_come_as_tap() {
        let mut out = Vec::new();
        let mut tap = Tap::new(&mut out, 3).expect("a buffer");
        let mut report = Report {
            peer: super::super::Peer::default(),
            cases: Vec::new(),
        };
        for result in [Outcome::Pass, Outcome::Fail, Outcome::NotApplicable] {
            tap.case(&case(result)).expect("a buffer");
            report.cases.push(case(result));
        }
        tap.end(&report).expect("a buffer");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "TAP version 13\n1..3\nok 1 - a/b [spec] a rule\nnot ok 2 - a/b [spec] a rule\n\
             # seen: something\nok 3 - a/b [spec] a rule # SKIP something\n\
             # 1 passed, 1 failed, 1 not applicable\n"
        );
    }
}
