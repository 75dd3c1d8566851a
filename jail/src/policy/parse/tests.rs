//! What the language takes, and the reason for everything that it does not take.

use super::*;

fn parse_text(text: &str) -> (Vec<Statement<'_>>, Vec<Diagnostic>) {
    parse(&"p".into(), text.as_bytes())
}

#[track_caller]
fn accepted(expression: &str) -> Test {
    let line = format!("read: {expression}");
    let (mut statements, diagnostics) = parse_text(&line);
    assert!(diagnostics.is_empty(), "{}", diagnostics[0]);
    match statements.remove(0).kind {
        StatementKind::Rule { test, .. } => test,
        StatementKind::Include(path) => panic!("include of {path}"),
    }
}

#[track_caller]
fn value(text: &str) -> u64 {
    match accepted(&format!("arg0 == {text}")) {
        Test::Any(alternatives) => alternatives[0][0].value,
        other => panic!("{other:?}"),
    }
}

/// `line` is refused at `column` (from 1) for a reason that starts with `reason`.
#[track_caller]
fn refused(line: &str, column: u32, reason: &str) {
    let text = format!("# first\n{line}\nclose: 1");
    let (statements, diagnostics) = parse_text(&text);
    assert_eq!(diagnostics.len(), 1, "{line:?}: {diagnostics:?}");
    let expected = format!("p:2:{column}: {reason}");
    let found = diagnostics[0].to_string();
    assert!(
        found.starts_with(&expected),
        "{line:?}\n{found}\n{expected}"
    );
    assert_eq!(statements.len(), 1, "the next line is still read");
}

/// The expression `text` is refused at `column` (from 1) of the expression.
#[track_caller]
fn refused_expression(text: &str, column: u32, reason: &str) {
    let prefix = "read: ";
    let start = u32::try_from(prefix.len()).expect("it is short");
    refused(&format!("{prefix}{text}"), start + column, reason);
}

fn atoms(test: Test) -> Vec<Vec<(u8, Operator, u64)>> {
    let Test::Any(alternatives) = test else {
        panic!("{test:?}");
    };
    let plain = |atom: Atom| (atom.argument, atom.operator, atom.value);
    alternatives
        .into_iter()
        .map(|conjunction| conjunction.into_iter().map(plain).collect())
        .collect()
}

#[test]
fn empty_file_and_comments_say_nothing() {
    for text in [
        "",
        "\n",
        "\n\n",
        "#",
        "# comment",
        "#comment ümlaut\n",
        "# a: b; c {\n",
    ] {
        let (statements, diagnostics) = parse_text(text);
        assert!(statements.is_empty() && diagnostics.is_empty(), "{text:?}");
    }
}

#[test]
fn simple_rules_are_read() {
    assert_eq!(accepted("1"), Test::Always);
    let name = "ENOSYS".to_owned();
    assert_eq!(accepted("return ENOSYS"), Test::Errno { name, value: 38 });
}

#[test]
fn last_line_needs_no_line_feed() {
    let (statements, diagnostics) = parse_text("read: 1\nwrite: 1");
    assert!(diagnostics.is_empty());
    assert_eq!(statements.len(), 2);
    assert_eq!(statements[1].origin.line, 2);
    assert_eq!(statements[1].text, "write: 1");
}

#[test]
fn include_gives_the_file_name() {
    let (statements, diagnostics) = parse_text("@include ./common-2_a.policy");
    assert!(diagnostics.is_empty());
    assert_eq!(
        statements[0].kind,
        StatementKind::Include("common-2_a.policy")
    );
}

#[test]
fn every_operator_is_read() {
    for (text, operator) in [
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<", Operator::Less),
        ("<=", Operator::LessOrEqual),
        (">", Operator::Greater),
        (">=", Operator::GreaterOrEqual),
        ("&", Operator::AnyBit),
        ("in", Operator::NoOtherBit),
    ] {
        let test = accepted(&format!("arg5 {text} 3"));
        assert_eq!(atoms(test), [[(5, operator, 3)]]);
    }
}

#[test]
fn and_binds_closer_than_or() {
    let test =
        accepted("arg0 == 1 && arg1 == 2 || arg2 == 3 || arg3 == 4 && arg4 == 5 && arg5 == 6");
    let is = |argument, value| (argument, Operator::Equal, value);
    assert_eq!(
        atoms(test),
        [
            vec![is(0, 1), is(1, 2)],
            vec![is(2, 3)],
            vec![is(3, 4), is(4, 5), is(5, 6)],
        ]
    );
}

#[test]
fn atom_keeps_its_text() {
    let Test::Any(alternatives) = accepted("arg2 in PROT_READ|0x2 && arg0 == 1") else {
        panic!("it has tests");
    };
    assert_eq!(alternatives[0][0].text, "arg2 in PROT_READ|0x2");
}

#[test]
fn values_are_64_bits() {
    assert_eq!(value("0"), 0);
    assert_eq!(value("18446744073709551615"), u64::MAX);
    assert_eq!(value("0xffffffffffffffff"), u64::MAX);
    assert_eq!(value("0xABcd"), 0xabcd);
    assert_eq!(value("0x00"), 0);
    assert_eq!(value("~0"), u64::MAX);
    assert_eq!(value("PROT_READ|PROT_WRITE"), 3);
    assert_eq!(value("~PROT_EXEC"), 0xffff_ffff_ffff_fffb);
    assert_eq!(value("1|0x10|MAP_ANONYMOUS"), 0x31);
    assert_eq!(value("~1|1"), u64::MAX);
}

#[test]
fn malformed_numbers_are_refused() {
    refused_expression(
        "arg0 == 010",
        9,
        "`010`: numbers are decimal without leading zeros",
    );
    refused_expression("arg0 == 00", 9, "`00`: numbers");
    refused_expression("arg0 == 0X1", 9, "`0X1`: numbers");
    refused_expression("arg0 == 0x", 9, "`0x`: numbers");
    refused_expression("arg0 == 0x1g", 9, "`0x1g`: numbers");
    refused_expression("arg0 == 1_000", 9, "`1_000`: numbers");
    refused_expression("arg0 == 0b1", 9, "`0b1`: numbers");
    refused_expression("arg0 == 1u", 9, "`1u`: numbers");
    refused_expression("arg0 == 0x+1", 9, "`0x+1`: numbers");
    refused_expression("arg0 == -1", 9, "`-1`: negative numbers");
    refused_expression("arg0 == 1|-1", 11, "`-1`: negative numbers");
    refused_expression(
        "arg0 == 18446744073709551616",
        9,
        "`18446744073709551616` does not fit",
    );
    refused_expression(
        "arg0 == 0x10000000000000000",
        9,
        "`0x10000000000000000` does not fit",
    );
}

#[test]
fn malformed_values_are_refused() {
    refused_expression("arg0 == NO_SUCH", 9, "`NO_SUCH`: unknown constant");
    refused_expression("arg0 == 1|NO_SUCH|2", 11, "`NO_SUCH`: unknown constant");
    refused_expression("arg0 == prot", 9, "`prot`: expected `argN OP VALUE`");
    refused_expression("arg0 == 1|", 11, "``: expected");
    refused_expression("arg0 == |1", 9, "``: expected");
    refused_expression("arg0 == ~", 9, "``: expected");
    refused_expression("arg0 == ~~1", 9, "`~1`: expected");
    refused_expression("arg0 == 1 | 2", 11, "`|`: expected");
}

#[test]
fn tests_that_nothing_passes_are_refused() {
    refused_expression("arg0 & 0", 1, "`arg0 & 0` is never true");
    refused_expression("arg1 == 1 && arg0 < 0", 14, "`arg0 < 0` is never true");
    refused_expression("arg0 > ~0", 1, "`arg0 > ~0` is never true");
    assert_eq!(
        atoms(accepted("arg0 in 0")),
        [[(0, Operator::NoOtherBit, 0)]]
    );
}

#[test]
fn malformed_tests_are_refused() {
    refused_expression(
        "arg6 == 1",
        1,
        "`arg6`: a syscall has the arguments arg0 to arg5",
    );
    refused_expression("arg10 == 1", 1, "`arg10`: a syscall has");
    refused_expression("arg == 1", 1, "`arg == 1`: expected");
    refused_expression("argx == 1", 1, "`argx == 1`: expected");
    refused_expression("arg0 = 1", 6, "`=`: the operators are == != < <= > >= & in");
    refused_expression("arg0 IN 1", 6, "`IN`: the operators");
    refused_expression("arg0", 5, "`arg0`: expected");
    refused_expression("arg0 ==", 8, "`arg0 ==`: expected");
    refused_expression("arg0==1", 1, "`arg0==1`: expected");
    refused_expression("arg0 == 1 &&", 13, "`arg0 == 1 &&`: expected");
    refused_expression("arg0 == 1 and arg1 == 1", 11, "`and`: expected");
    refused_expression("arg0 == 1 || 1", 14, "`arg0 == 1 || 1`: `1` stands alone");
    refused_expression("1 || arg0 == 1", 1, "`1 || arg0 == 1`: `1` stands alone");
    refused_expression("1 1", 1, "`1 1`: `1` stands alone");
    refused_expression("0", 1, "`0`: expected");
    refused_expression("2", 1, "`2`: expected");
}

#[test]
fn spaces_are_exactly_one() {
    refused_expression(" 1", 1, "`read:  1`: exactly one space");
    refused_expression("arg0  == 1", 6, "`arg0  == 1`: exactly one space");
    refused_expression("arg0 ==  1", 9, "`arg0 ==  1`: exactly one space");
    refused_expression(
        "arg0 == 1  && arg1 == 1",
        11,
        "`arg0 == 1  && arg1 == 1`: exactly",
    );
    refused_expression(
        "arg0 == 1 &&  arg1 == 1",
        14,
        "`arg0 == 1 &&  arg1 == 1`: exactly",
    );
    refused("read: 1 ", 8, "the line ends with a space");
    refused(" read: 1", 1, "the line starts with a space");
    refused(" # comment", 1, "the line starts with a space");
    refused("   ", 1, "the line starts with a space");
    refused(
        "read:1",
        6,
        "`read:1`: a rule is `NAME: EXPRESSION`, with one space",
    );
    refused("read : 1", 5, "`read : 1`: a rule is");
}

#[test]
fn other_syntax_of_minijail_is_refused_with_its_reason() {
    refused_expression("allow", 1, "`allow`: action words");
    refused_expression("kill-process", 1, "`kill-process`: action words");
    refused_expression("log", 1, "`log`: action words");
    refused_expression("return", 1, "`return`: action words");
    refused_expression(
        "arg0 == 1; return EPERM",
        10,
        "`; return EPERM`: an action after an expression",
    );
    refused_expression("{ 1 }", 1, "`{ 1 }`: action lists in braces");
    refused_expression("(arg0 == 1)", 1, "`(arg0 == 1)`: parentheses");
    refused_expression("arg0 == 1 && !arg1", 14, "`!arg1`: negation");
    refused_expression(
        "1 # comment",
        3,
        "`# comment`: comments stand on lines of their own",
    );
    refused("read[arch=x86_64]: 1", 5, "`[arch=x86_64]: 1`: attributes");
    refused("read [arch=x86_64]: 1", 5, "`[arch=x86_64]: 1`: attributes");
    refused(
        "@default kill-process",
        1,
        "`@default`: the only directive is",
    );
    refused("@denylist", 1, "`@denylist`: the only directive is");
    refused("@frequency ./f", 1, "`@frequency`: the only directive is");
    refused("@include", 1, "`@include`: the only directive is");
}

#[test]
fn includes_are_next_to_the_file() {
    for path in [
        "common.policy",
        "/etc/common.policy",
        "../common.policy",
        "./../common.policy",
        "./sub/common.policy",
        "./common",
        "./.policy",
        "./..policy",
        "./a b.policy",
        " ./common.policy",
        "./common.policy # comment",
    ] {
        let reason = format!("`{path}`: write the file as ./NAME.policy");
        refused(&format!("@include {path}"), 10, &reason);
    }
}

#[test]
fn rules_without_their_parts_are_refused() {
    refused("read", 5, "`read`: a rule is");
    refused(": 1", 1, "`: 1`: a rule is");
    refused("read-1: 1", 5, "`read-1: 1`: a rule is");
    refused("read:", 6, "`read:` has no expression");
    refused_expression("return NOTHING", 8, "`NOTHING` is not the name of an errno");
    refused_expression("return 38", 8, "`38` is not the name of an errno");
    refused_expression("return  EPERM", 8, "` EPERM` is not the name");
}

#[test]
fn characters_outside_of_the_subset_are_refused() {
    refused("read:\t1", 6, "tab: use one space");
    refused("# comment\twith tab", 10, "tab");
    refused("read: 1\r", 8, "carriage return");
    refused("read: \u{1}", 7, "control character 0x01");
    refused("read: 1\0", 8, "control character 0x00");
    refused("réad: 1", 2, "`é`: only ASCII outside comments");
    refused("\u{feff}read: 1", 1, "`\u{feff}`: only ASCII");
    refused("read: 1\\", 8, "the line ends in a backslash");
    refused("# comment\\", 10, "the line ends in a backslash");
}

#[test]
fn bytes_that_are_not_utf8_are_refused() {
    let (_, diagnostics) = parse(&"p".into(), b"read: 1\n# \xff\n");
    assert_eq!(diagnostics.len(), 1);
    assert_eq!(
        diagnostics[0].to_string(),
        "p:2:3: the file is not UTF-8 text"
    );
}

#[test]
fn every_line_with_an_error_is_reported() {
    let (_, diagnostics) = parse_text("a\nb\nread: 1\nc\n");
    let lines: Vec<_> = diagnostics.iter().map(|d| d.origin.line).collect();
    assert_eq!(lines, [1, 2, 4]);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _either = parse(&"p".into(), &bytes);
    }

    #[test]
    fn any_line_of_the_alphabet_is_read_or_refused(text in "([a-z]{1,5}[: ]{1,3})?(arg[0-9]?|[ &|=<>!~]{1,3}|in|0x[0-9a-f]{0,3}|[0-9]{1,3}|PROT_READ|return|EPERM|@include|[{};#]){0,12}") {
        let (statements, diagnostics) = parse(&"p".into(), text.as_bytes());
        proptest::prop_assert!(statements.len() + diagnostics.len() <= 1);
    }
}
