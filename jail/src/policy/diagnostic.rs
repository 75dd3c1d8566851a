//! What can be wrong with a policy, and where.

use std::fmt;
use std::io;
use std::sync::Arc;

use remain::sorted;
use serde::Serialize;
use serde::Serializer;

use crate::arch::Arch;

/// A place in a policy file. Lines and columns start at 1; columns count bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// The file, as it was named or found.
    #[serde(serialize_with = "as_text")]
    pub file: Arc<str>,
    /// The line.
    pub line: u32,
    /// The column, in bytes.
    pub column: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// One error of a policy: `file:line:column: reason`.
#[derive(Debug, Serialize)]
pub struct Diagnostic {
    /// Where it is.
    #[serde(flatten)]
    pub origin: Origin,
    /// What is wrong, with the offending text.
    #[serde(serialize_with = "as_text", rename = "reason")]
    pub problem: Problem,
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.problem)
    }
}

impl std::error::Error for Diagnostic {}

/// What is wrong with a line of a policy.
///
/// Much of what is refused here is taken by one of minijail's two readers; the text says why it is not taken here.
#[sorted]
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// `allow`, `kill`, `trap`, `log`, `trace`, `user-notify`.
    #[error(
        "`{0}`: action words are read by one of minijail's two readers only; write `1` or `return ERRNO`"
    )]
    ActionWord(String),
    /// `arg6` and the like.
    #[error("`{0}`: a syscall has the arguments arg0 to arg5")]
    ArgumentNumber(String),
    /// An attribute such as `[arch=x86_64]`.
    #[error(
        "`{0}`: attributes such as [arch=...] are read by one of minijail's two readers only; use one file for each architecture"
    )]
    Attribute(String),
    /// A line or comment that ends in a backslash.
    #[error(
        "the line ends in a backslash: one of minijail's two readers joins it with the next line"
    )]
    Backslash,
    /// `{ ... }`.
    #[error("`{0}`: action lists in braces are read by one of minijail's two readers only")]
    Braces(String),
    /// CRLF line ends.
    #[error("carriage return: end lines with a line feed alone")]
    CarriageReturn,
    /// The filter compiler refused the rules.
    #[error("can't compile: {0}")]
    Compile(#[source] seccompiler::BackendError),
    /// A `1` within an expression of argument tests.
    #[error("`{0}`: `1` stands alone; an expression is made of `argN OP VALUE`")]
    ConstantInExpression(String),
    /// A control character.
    #[error("control character {0:#04x}")]
    ControlCharacter(u8),
    /// Two rules for one syscall.
    #[error(
        "`{name}`: second rule for this syscall, the first is at {first}; join the two into one"
    )]
    DuplicateRule {
        /// The syscall.
        name: String,
        /// Where its first rule is.
        first: Origin,
    },
    /// Nothing after the colon.
    #[error("`{0}:` has no expression; write `1`, `return ERRNO` or tests of arguments")]
    EmptyExpression(String),
    /// The filter became larger than the kernel takes.
    #[error(
        "the policy compiles to {0} instructions, the kernel takes no more than 4096; use fewer tests"
    )]
    FilterTooLarge(usize),
    /// A file includes itself by some way.
    #[error("`{0}` is included by itself")]
    IncludeCycle(String),
    /// An included file includes.
    #[error("`{0}`: an included file can't include another one: minijail reads one level only")]
    IncludeDepth(String),
    /// The path of an include is not `./NAME.policy`.
    #[error("`{0}`: write the file as ./NAME.policy, it is looked up next to the including file")]
    IncludePath(String),
    /// One file is included twice.
    #[error("`{0}` is included twice")]
    IncludeTwice(String),
    /// A line starts with a space.
    #[error("the line starts with a space")]
    LeadingSpace,
    /// A number with a leading zero, which means different things to different readers.
    #[error("`{0}`: numbers are decimal without leading zeros, or hexadecimal with 0x")]
    MalformedNumber(String),
    /// No `: ` after the syscall.
    #[error("`{0}`: a rule is `NAME: EXPRESSION`, with one space after the colon")]
    MissingColon(String),
    /// `!`.
    #[error(
        "`{0}`: negation is read by one of minijail's two readers only; use the opposite operator"
    )]
    Negation(String),
    /// `-1`.
    #[error("`{0}`: negative numbers; write the 64-bit value, such as 0xffffffffffffffff or ~0")]
    NegativeNumber(String),
    /// A test that no value passes.
    #[error("`{0}` is never true")]
    NeverTrue(String),
    /// A character outside ASCII outside a comment.
    #[error("`{0}`: only ASCII outside comments")]
    NotAscii(char),
    /// The file is not UTF-8.
    #[error("the file is not UTF-8 text")]
    NotUtf8,
    /// A number above 64 bits.
    #[error("`{0}` does not fit into 64 bits")]
    NumberTooLarge(String),
    /// `( ... )`.
    #[error(
        "`{0}`: parentheses are read by one of minijail's two readers only; write alternatives (`||`) of conjunctions (`&&`)"
    )]
    Parentheses(String),
    /// The file can't be read.
    #[error("can't read `{path}`: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// `expr; return E`.
    #[error("`{0}`: an action after an expression means opposite things to minijail's two readers")]
    ReturnAfterExpression(String),
    /// Not exactly one space.
    #[error("`{0}`: exactly one space between words")]
    Spaces(String),
    /// A tab.
    #[error("tab: use one space")]
    Tab,
    /// A comment after a rule.
    #[error("`{0}`: comments stand on lines of their own")]
    TrailingComment(String),
    /// A line ends with a space.
    #[error("the line ends with a space")]
    TrailingSpace,
    /// A constant that is not in the table.
    #[error(
        "`{0}`: unknown constant; known are those of jail/src/policy/constants.rs, anything else as a number"
    )]
    UnknownConstant(String),
    /// A directive other than `@include`.
    #[error("`{0}`: the only directive is `@include ./NAME.policy`")]
    UnknownDirective(String),
    /// An errno name that is not known.
    #[error("`{0}` is not the name of an errno")]
    UnknownErrno(String),
    /// An operator that does not exist.
    #[error("`{0}`: the operators are == != < <= > >= & in")]
    UnknownOperator(String),
    /// The architecture has no such syscall.
    #[error("`{name}`: {arch} has no such syscall")]
    UnknownSyscall {
        /// The name in the policy.
        name: String,
        /// The architecture of the policy.
        arch: Arch,
    },
    /// Something that starts like a test and goes on like none.
    #[error("`{0}`: expected `argN OP VALUE`")]
    UnreadableTest(String),
}
