//! Reads one policy file. What is next to it (includes, other rules for the same syscall) is the business of `load`.

use std::str::from_utf8;
use std::sync::Arc;

use super::Atom;
use super::Diagnostic;
use super::Operator;
use super::Origin;
use super::Problem;
use super::Test;
use super::constants;

/// A line of a policy that says something.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statement<'a> {
    pub(super) origin: Origin,
    pub(super) text: &'a str,
    pub(super) kind: StatementKind<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum StatementKind<'a> {
    /// `@include ./FILE`; the file's name without the `./`.
    Include(&'a str),
    Rule {
        name: &'a str,
        test: Test,
    },
}

/// All statements of a file, and everything that is wrong with it (one problem a line).
pub(super) fn parse<'a>(file: &Arc<str>, bytes: &'a [u8]) -> (Vec<Statement<'a>>, Vec<Diagnostic>) {
    let mut statements = Vec::new();
    let mut diagnostics = Vec::new();
    for (index, line) in bytes.split(|&b| b == b'\n').enumerate() {
        let origin = |column: usize| Origin {
            file: Arc::clone(file),
            line: u32::try_from(index + 1).unwrap_or(u32::MAX),
            column: u32::try_from(column + 1).unwrap_or(u32::MAX),
        };
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some((text, kind))) => statements.push(Statement {
                origin: origin(0),
                text,
                kind,
            }),
            Err((column, problem)) => diagnostics.push(Diagnostic {
                origin: origin(column),
                problem,
            }),
        }
    }
    (statements, diagnostics)
}

/// What is wrong, and the offset in the line at which it is.
type At<T> = Result<T, (usize, Problem)>;

fn parse_line(bytes: &[u8]) -> At<Option<(&str, StatementKind<'_>)>> {
    let line = from_utf8(bytes).map_err(|e| (e.valid_up_to(), Problem::NotUtf8))?;
    check_characters(line)?;
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    if line.starts_with(' ') {
        return Err((0, Problem::LeadingSpace));
    }
    if line.ends_with(' ') {
        return Err((line.trim_end().len(), Problem::TrailingSpace));
    }
    let kind = if line.starts_with('@') {
        StatementKind::Include(include(line)?)
    } else {
        let (name, test) = rule(line)?;
        StatementKind::Rule { name, test }
    };
    Ok(Some((line, kind)))
}

fn check_characters(line: &str) -> At<()> {
    for (column, c) in line.char_indices() {
        let problem = match c {
            '\t' => Problem::Tab,
            '\r' => Problem::CarriageReturn,
            c if c.is_ascii_control() => Problem::ControlCharacter(c as u8),
            c if !c.is_ascii() && !line.starts_with('#') => Problem::NotAscii(c),
            _ => continue,
        };
        return Err((column, problem));
    }
    if line.ends_with('\\') {
        return Err((line.len() - 1, Problem::Backslash));
    }
    Ok(())
}

fn include(line: &str) -> At<&str> {
    let Some(path) = line.strip_prefix("@include ") else {
        let word = line.split(' ').next().unwrap_or(line);
        return Err((0, Problem::UnknownDirective(word.to_owned())));
    };
    let start = line.len() - path.len();
    path.strip_prefix("./")
        .filter(|name| is_file_name(name))
        .ok_or_else(|| (start, Problem::IncludePath(path.to_owned())))
}

fn is_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    name.strip_suffix(".policy")
        .is_some_and(|stem| !stem.is_empty())
        && !name.starts_with('.')
        && name.chars().all(plain)
}

fn rule(line: &str) -> At<(&str, Test)> {
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if rest.trim_start().starts_with('[') {
        return Err((end, Problem::Attribute(rest.trim_start().to_owned())));
    }
    if name.is_empty() || !rest.starts_with(':') {
        return Err((end, Problem::MissingColon(line.to_owned())));
    }
    let expression = &rest[1..];
    if expression.is_empty() {
        return Err((end + 1, Problem::EmptyExpression(name.to_owned())));
    }
    let Some(expression) = expression.strip_prefix(' ') else {
        return Err((end + 1, Problem::MissingColon(line.to_owned())));
    };
    let start = end + 2;
    if expression.starts_with(' ') {
        return Err((start, Problem::Spaces(line.to_owned())));
    }
    let test = test(expression).map_err(|(column, problem)| (start + column, problem))?;
    Ok((name, test))
}

fn test(expression: &str) -> At<Test> {
    refuse_foreign_syntax(expression)?;
    if expression == "1" {
        return Ok(Test::Always);
    }
    if let Some(name) = expression.strip_prefix("return ") {
        let value = constants::errno(name)
            .ok_or_else(|| ("return ".len(), Problem::UnknownErrno(name.to_owned())))?;
        return Ok(Test::Errno {
            name: name.to_owned(),
            value,
        });
    }
    Cursor::new(expression).alternatives().map(Test::Any)
}

/// What one of minijail's readers takes and this one refuses, so that the reason is a better one than "expected".
fn refuse_foreign_syntax(expression: &str) -> At<()> {
    const WORDS: [&str; 9] = [
        "allow",
        "kill",
        "kill-process",
        "kill-thread",
        "log",
        "trace",
        "trap",
        "user-notify",
        "return",
    ];
    let rest = |column: usize| expression[column..].to_owned();
    for (column, c) in expression.char_indices() {
        let problem = match c {
            '#' => Problem::TrailingComment(rest(column)),
            ';' => Problem::ReturnAfterExpression(rest(column)),
            '{' | '}' => Problem::Braces(rest(column)),
            '(' | ')' => Problem::Parentheses(rest(column)),
            '[' | ']' => Problem::Attribute(rest(column)),
            '!' if !expression[column..].starts_with("!=") => Problem::Negation(rest(column)),
            _ => continue,
        };
        return Err((column, problem));
    }
    if WORDS.contains(&expression) {
        return Err((0, Problem::ActionWord(expression.to_owned())));
    }
    Ok(())
}

/// Walks over an expression and knows where it is.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// Up to the next space or the end.
    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let word = rest.split(' ').next().unwrap_or(rest);
        self.at += word.len();
        word
    }

    fn space(&mut self) -> At<()> {
        let start = self.at;
        if !self.take(" ") {
            return Err((start, Problem::UnreadableTest(self.text.to_owned())));
        }
        if self.rest().starts_with(' ') {
            return Err((self.at, Problem::Spaces(self.text.to_owned())));
        }
        Ok(())
    }

    fn alternatives(mut self) -> At<Vec<Vec<Atom>>> {
        let mut alternatives = vec![vec![self.atom()?]];
        while !self.rest().is_empty() {
            self.space()?;
            let start = self.at;
            match self.word() {
                "||" => alternatives.push(Vec::new()),
                "&&" => {}
                other => return Err((start, Problem::UnreadableTest(other.to_owned()))),
            }
            self.space()?;
            let atom = self.atom()?;
            if let Some(last) = alternatives.last_mut() {
                last.push(atom);
            }
        }
        Ok(alternatives)
    }

    fn atom(&mut self) -> At<Atom> {
        let start = self.at;
        let argument = self.argument()?;
        self.space()?;
        let operator = self.operator()?;
        self.space()?;
        let value = self.value()?;
        let text = self.text[start..self.at].to_owned();
        let never = match operator {
            Operator::AnyBit | Operator::Less => value == 0,
            Operator::Greater => value == u64::MAX,
            _ => false,
        };
        if never {
            return Err((start, Problem::NeverTrue(text)));
        }
        Ok(Atom {
            argument,
            operator,
            value,
            text,
        })
    }

    fn argument(&mut self) -> At<u8> {
        let start = self.at;
        let word = self.word();
        if word == "1" {
            return Err((start, Problem::ConstantInExpression(self.text.to_owned())));
        }
        let Some(number) = word.strip_prefix("arg") else {
            return Err((
                start,
                Problem::UnreadableTest(self.text[start..].to_owned()),
            ));
        };
        match number.as_bytes() {
            [digit @ b'0'..=b'5'] => Ok(digit - b'0'),
            [b'0'..=b'9', ..] if number.bytes().all(|b| b.is_ascii_digit()) => {
                Err((start, Problem::ArgumentNumber(word.to_owned())))
            }
            _ => Err((
                start,
                Problem::UnreadableTest(self.text[start..].to_owned()),
            )),
        }
    }

    fn operator(&mut self) -> At<Operator> {
        let start = self.at;
        match self.word() {
            "==" => Ok(Operator::Equal),
            "!=" => Ok(Operator::NotEqual),
            "<" => Ok(Operator::Less),
            "<=" => Ok(Operator::LessOrEqual),
            ">" => Ok(Operator::Greater),
            ">=" => Ok(Operator::GreaterOrEqual),
            "&" => Ok(Operator::AnyBit),
            "in" => Ok(Operator::NoOtherBit),
            other => Err((start, Problem::UnknownOperator(other.to_owned()))),
        }
    }

    fn value(&mut self) -> At<u64> {
        let mut start = self.at;
        let mut value = 0;
        for term in self.word().split('|') {
            value |= parse_term(term).map_err(|problem| (start, problem))?;
            start += term.len() + 1;
        }
        Ok(value)
    }
}

fn parse_term(term: &str) -> Result<u64, Problem> {
    match term.strip_prefix('~') {
        Some(inner) => plain_value(inner).map(|value| !value),
        None => plain_value(term),
    }
}

fn plain_value(text: &str) -> Result<u64, Problem> {
    match text.as_bytes() {
        [b'-', ..] => Err(Problem::NegativeNumber(text.to_owned())),
        [b'0'..=b'9', ..] => number(text),
        [b'A'..=b'Z', ..] => {
            constants::constant(text).ok_or_else(|| Problem::UnknownConstant(text.to_owned()))
        }
        _ => Err(Problem::UnreadableTest(text.to_owned())),
    }
}

fn number(text: &str) -> Result<u64, Problem> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let well_formed = !digits.is_empty()
        && digits.chars().all(|c| c.is_digit(radix))
        && (radix == 16 || digits == "0" || !digits.starts_with('0'));
    if !well_formed {
        return Err(Problem::MalformedNumber(text.to_owned()));
    }
    u64::from_str_radix(digits, radix).map_err(|_overflow| Problem::NumberTooLarge(text.to_owned()))
}

#[cfg(test)]
mod tests;
