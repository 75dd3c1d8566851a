//! Reads a policy with its includes and resolves names for an architecture.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Diagnostic;
use super::Origin;
use super::Policy;
use super::Problem;
use super::Rule;
use super::builtin;
use super::parse;
use super::parse::StatementKind;
use crate::arch::Arch;

impl Policy {
    /// Reads the policy in file `path`; includes are looked up next to it.
    ///
    /// # Errors
    /// Everything that is wrong with it, in the order of the files.
    pub fn load(path: &Path, arch: Arch) -> Result<Self, Vec<Diagnostic>> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Loader::new(arch, Source::Folder(folder)).run(&name)
    }

    /// Reads the policy `name.policy` that is compiled into this program.
    ///
    /// # Errors
    /// [`Problem::Read`] if there is none of that name.
    pub fn built_in(name: &str, arch: Arch) -> Result<Self, Vec<Diagnostic>> {
        Loader::new(arch, Source::BuiltIn).run(&format!("{name}.policy"))
    }
}

enum Source<'a> {
    Folder(&'a Path),
    BuiltIn,
}

impl Source<'_> {
    /// The name to show for `name`.
    fn display(&self, name: &str, arch: Arch) -> Arc<str> {
        match self {
            Self::Folder(folder) => folder.join(name).to_string_lossy().into(),
            Self::BuiltIn => format!("seccomp/{arch}/{name}").into(),
        }
    }

    fn read(&self, name: &str, arch: Arch) -> io::Result<Cow<'static, [u8]>> {
        match self {
            Self::Folder(folder) => fs::read(folder.join(name)).map(Cow::Owned),
            Self::BuiltIn => builtin::text(arch, name)
                .map(|text| Cow::Borrowed(text.as_bytes()))
                .ok_or_else(|| io::ErrorKind::NotFound.into()),
        }
    }
}

struct Loader<'a> {
    arch: Arch,
    source: Source<'a>,
    rules: Vec<Rule>,
    first_rules: BTreeMap<u32, Origin>,
    /// The files that were read, in order.
    read: Vec<String>,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Loader<'a> {
    fn new(arch: Arch, source: Source<'a>) -> Self {
        Self {
            arch,
            source,
            rules: Vec::new(),
            first_rules: BTreeMap::new(),
            read: Vec::new(),
            diagnostics: Vec::new(),
        }
    }

    fn run(mut self, name: &str) -> Result<Policy, Vec<Diagnostic>> {
        let start = Origin {
            file: self.source.display(name, self.arch),
            line: 1,
            column: 1,
        };
        self.file(name, None, start);
        if self.diagnostics.is_empty() {
            Ok(Policy {
                arch: self.arch,
                rules: self.rules,
            })
        } else {
            Err(self.diagnostics)
        }
    }

    /// Reads file `name`, which `included_by` (if any) names at `at`.
    fn file(&mut self, name: &str, included_by: Option<&str>, at: Origin) {
        let path = self.source.display(name, self.arch);
        let bytes = match self.source.read(name, self.arch) {
            Ok(bytes) => bytes,
            Err(source) => {
                let path = path.to_string();
                return self.report(at, Problem::Read { path, source });
            }
        };
        self.read.push(name.to_owned());
        let (statements, mut diagnostics) = parse::parse(&path, &bytes);
        for statement in statements {
            let problems = diagnostics.extract_if(.., |d| d.origin.line < statement.origin.line);
            self.diagnostics.extend(problems);
            match statement.kind {
                StatementKind::Include(include) => {
                    self.include(name, included_by, include, statement.origin);
                }
                StatementKind::Rule { name, test } => {
                    self.rule(name, test, statement.text, statement.origin);
                }
            }
        }
        self.diagnostics.append(&mut diagnostics);
    }

    fn include(&mut self, name: &str, included_by: Option<&str>, include: &str, at: Origin) {
        let at = Origin {
            column: at.column + u32::try_from("@include ".len()).unwrap_or(0),
            ..at
        };
        let text = format!("./{include}");
        if include == name || included_by == Some(include) {
            self.report(at, Problem::IncludeCycle(text));
        } else if included_by.is_some() {
            self.report(at, Problem::IncludeDepth(text));
        } else if self.read.iter().any(|read| read == include) {
            self.report(at, Problem::IncludeTwice(text));
        } else {
            self.file(include, Some(name), at);
        }
    }

    fn rule(&mut self, name: &str, test: super::Test, text: &str, origin: Origin) {
        let Some(syscall) = self.arch.syscall_by_name(name) else {
            let (name, arch) = (name.to_owned(), self.arch);
            return self.report(origin, Problem::UnknownSyscall { name, arch });
        };
        if let Some(first) = self.first_rules.get(&syscall.number) {
            let (name, first) = (name.to_owned(), first.clone());
            return self.report(origin, Problem::DuplicateRule { name, first });
        }
        self.first_rules.insert(syscall.number, origin.clone());
        self.rules.push(Rule {
            syscall,
            test,
            origin,
            text: text.to_owned(),
        });
    }

    fn report(&mut self, origin: Origin, problem: Problem) {
        self.diagnostics.push(Diagnostic { origin, problem });
    }
}

#[cfg(test)]
mod tests;
