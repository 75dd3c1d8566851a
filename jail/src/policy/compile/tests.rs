//! Filters against the sources that they were compiled from: a plain interpreter of the kernel's instructions runs the filters, and
//! `Policy::decide` reads the rules. Policies and calls are generated, for all architectures.

use proptest::collection::vec;
use proptest::prelude::ProptestConfig;
use proptest::prelude::any;
use proptest::prop_assert_eq;
use proptest::prop_oneof;
use proptest::proptest;
use proptest::strategy::Just;
use proptest::strategy::Strategy;

use super::*;
use crate::policy::Rule;
use crate::policy::interpreter::Call;
use crate::policy::interpreter::answer;
use crate::policy::interpreter::expected;
use crate::policy::interpreter::run;

fn policy(arch: Arch, rules: &[(&str, &str)]) -> Policy {
    let rules = rules.iter().zip(1..).map(|((name, expression), line)| {
        let text = format!("{name}: {expression}");
        let (statements, diagnostics) = crate::policy::parse::parse(&"p".into(), text.as_bytes());
        assert!(diagnostics.is_empty(), "{}", diagnostics[0]);
        let crate::policy::parse::StatementKind::Rule { name, ref test } = statements[0].kind
        else {
            panic!("{text} is a rule");
        };
        Rule {
            syscall: arch.syscall_by_name(name).expect("the name is known"),
            test: test.clone(),
            origin: Origin {
                file: "p".into(),
                line,
                column: 1,
            },
            text: text.clone(),
        }
    });
    Policy {
        arch,
        rules: rules.collect(),
    }
}

/// Whether `read` with `argument` as its first passes `expression`, by the filter and by the source.
#[track_caller]
fn check(expression: &str, argument: u64, passes: bool) {
    let policy = policy(Arch::NATIVE, &[("read", expression)]);
    let syscall = policy.rules()[0].syscall;
    let filters = policy.compile(Violation::Trap).expect("it compiles");
    let call = Call {
        number: syscall.number,
        arch: Arch::NATIVE.audit_value(),
        arguments: [argument, 0, 0, 0, 0, 0],
    };
    let wanted = if passes {
        libc::SECCOMP_RET_ALLOW
    } else {
        libc::SECCOMP_RET_TRAP
    };
    assert_eq!(
        answer(&filters, &call),
        wanted,
        "filter: {expression} with {argument:#x}"
    );
    let by_source = expected(&policy, Violation::Trap, syscall, &call.arguments);
    assert_eq!(by_source, wanted, "source: {expression} with {argument:#x}");
}

#[test]
fn comparisons_are_unsigned_and_of_64_bits() {
    const HIGH: u64 = 1 << 63;
    check("arg0 == 1", 1, true);
    check("arg0 == 1", 1 | 1 << 32, false);
    check("arg0 != 1", 1 | 1 << 32, true);
    check("arg0 < 2", 1, true);
    check("arg0 < 2", HIGH, false);
    check("arg0 <= 0xffffffff", 0xffff_ffff, true);
    check("arg0 <= 0xffffffff", 1 << 32, false);
    check("arg0 > 0xffffffff", 1 << 32, true);
    check("arg0 > 0xffffffff", 0xffff_ffff, false);
    check("arg0 >= 0x8000000000000000", HIGH, true);
    check("arg0 >= 0x8000000000000000", HIGH - 1, false);
}

#[test]
fn any_bit_is_true_if_one_of_them_is_set() {
    check("arg0 & 6", 2, true);
    check("arg0 & 6", 4, true);
    check("arg0 & 6", 7, true);
    check("arg0 & 6", 1, false);
    check("arg0 & 6", 0, false);
    check("arg0 & 0x8000000000000001", 1 << 63, true);
    check("arg0 & 0x8000000000000001", 1 << 62, false);
}

#[test]
fn in_is_true_if_no_other_bit_is_set() {
    check("arg0 in 6", 0, true);
    check("arg0 in 6", 2, true);
    check("arg0 in 6", 6, true);
    check("arg0 in 6", 1, false);
    check("arg0 in 6", 1 << 63, false);
    check("arg0 in 0", 0, true);
    check("arg0 in 0", 1, false);
    check("arg0 in ~0", u64::MAX, true);
    check("arg0 in ~PROT_EXEC", 4, false);
    check("arg0 in ~PROT_EXEC", 1 << 40 | 3, true);
}

#[test]
fn conjunction_of_two_any_bits_needs_both() {
    check("arg0 & 3 && arg0 & 12", 1 | 4, true);
    check("arg0 & 3 && arg0 & 12", 2 | 8, true);
    check("arg0 & 3 && arg0 & 12", 3, false);
    check("arg0 & 3 && arg0 & 12", 12, false);
}

#[test]
fn other_architecture_and_x32_numbers_do_not_pass() {
    let policy = policy(Arch::X86_64, &[("read", "1"), ("getppid", "return EPERM")]);
    let filters = policy.compile(Violation::Trap).expect("it compiles");
    let call = |number, arch| Call {
        number,
        arch,
        arguments: [0; 6],
    };
    let own = Arch::X86_64.audit_value();
    const I386: u32 = 0x4000_0003;
    const X32: u32 = 0x4000_0000;
    assert_eq!(answer(&filters, &call(0, own)), libc::SECCOMP_RET_ALLOW);
    assert_eq!(
        answer(&filters, &call(0, I386)),
        libc::SECCOMP_RET_KILL_PROCESS
    );
    assert_eq!(answer(&filters, &call(X32, own)), libc::SECCOMP_RET_TRAP);
    assert_eq!(
        answer(&filters, &call(u32::MAX, own)),
        libc::SECCOMP_RET_TRAP
    );
    assert_eq!(
        answer(&filters, &call(110, own)),
        libc::SECCOMP_RET_ERRNO | 1
    );
}

#[test]
fn errno_rules_are_filters_of_their_own_before_the_main_one() {
    let rules = [
        ("read", "1"),
        ("clone3", "return ENOSYS"),
        ("openat", "return ENOENT"),
        ("statx", "return ENOSYS"),
    ];
    let policy = policy(Arch::Riscv64, &rules);
    let filters = policy.compile(Violation::Kill).expect("it compiles");
    assert_eq!(filters.programs().len(), 3);
    for program in &filters.programs()[..2] {
        let call = Call {
            number: 63,
            arch: Arch::Riscv64.audit_value(),
            arguments: [0; 6],
        };
        assert_eq!(run(program, &call), libc::SECCOMP_RET_ALLOW);
    }
}

#[test]
fn empty_policy_lets_nothing_pass() {
    let policy = policy(Arch::NATIVE, &[]);
    let filters = policy.compile(Violation::Kill).expect("it compiles");
    for number in 0..600 {
        let call = Call {
            number,
            arch: Arch::NATIVE.audit_value(),
            arguments: [0; 6],
        };
        assert_eq!(answer(&filters, &call), libc::SECCOMP_RET_KILL_PROCESS);
    }
}

#[test]
fn policy_that_the_kernel_would_not_take_is_refused() {
    let many = "arg0 & ~0 && arg1 & ~0 && arg2 & ~0";
    let policy = policy(Arch::NATIVE, &[("read", many)]);
    let diagnostic = policy
        .compile(Violation::Trap)
        .expect_err("it is too large");
    assert!(matches!(diagnostic.problem, Problem::FilterTooLarge(size) if size > 4096));
}

/// Values around which comparisons change, and others.
fn interesting() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![
        0..4_u64,
        (0..64_u32).prop_map(|bit| 1 << bit),
        Just(0xffff_ffff),
        Just(1 << 32),
        Just(u64::MAX),
        Just(u64::MAX - 1),
        any::<u64>(),
    ]
}

fn atom() -> impl Strategy<Value = String> {
    let operators = ["==", "!=", "<", "<=", ">", ">=", "in"];
    let comparison = (0..6_u8, 0..operators.len(), interesting()).prop_filter_map(
        "never true",
        move |(argument, operator, value)| {
            let operator = operators[operator];
            let never = operator == "<" && value == 0 || operator == ">" && value == u64::MAX;
            (!never).then(|| format!("arg{argument} {operator} {value:#x}"))
        },
    );
    // Few bits, since their alternatives multiply.
    let bits = (0..6_u8, 0..64_u32, 0..64_u32)
        .prop_map(|(argument, a, b)| format!("arg{argument} & {:#x}", 1_u64 << a | 1_u64 << b));
    prop_oneof![4 => comparison, 1 => bits]
}

fn expression() -> impl Strategy<Value = String> {
    let conjunction = vec(atom(), 1..4).prop_map(|atoms| atoms.join(" && "));
    let tests = vec(conjunction, 1..4).prop_map(|alternatives| alternatives.join(" || "));
    prop_oneof![
        2 => Just("1".to_owned()),
        1 => Just("return ENOSYS".to_owned()),
        1 => Just("return EPERM".to_owned()),
        6 => tests,
    ]
}

const NAMES: [&str; 8] = [
    "read", "write", "close", "mmap", "ioctl", "futex", "sendmsg", "clone3",
];

fn generated() -> impl Strategy<Value = Policy> {
    let rules = vec(proptest::option::weighted(0.7, expression()), NAMES.len());
    (0..Arch::ALL.len(), rules).prop_map(|(arch, expressions)| {
        let rules: Vec<_> = NAMES
            .iter()
            .zip(&expressions)
            .filter_map(|(name, expression)| Some((*name, expression.as_deref()?)))
            .collect();
        policy(Arch::ALL[arch], &rules)
    })
}

/// Arguments that are likely to meet the values in the policy: its own, their neighbours, and others.
fn arguments(policy: &Policy) -> impl Strategy<Value = [u64; 6]> + use<> {
    let mut values: Vec<u64> = policy
        .rules()
        .iter()
        .filter_map(|rule| match &rule.test {
            Test::Any(alternatives) => Some(alternatives.iter().flatten()),
            _ => None,
        })
        .flatten()
        .flat_map(|atom| {
            [
                atom.value,
                atom.value.wrapping_add(1),
                atom.value.wrapping_sub(1),
            ]
        })
        .collect();
    values.push(0);
    let own = (0..values.len()).prop_map(move |index| values[index]);
    proptest::array::uniform6(prop_oneof![3 => own, 1 => interesting()])
}

fn policy_and_calls() -> impl Strategy<Value = (Policy, Vec<(usize, [u64; 6])>)> {
    generated().prop_flat_map(|policy| {
        let call = (0..NAMES.len(), arguments(&policy));
        (Just(policy), vec(call, 1..40))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn filter_and_source_give_the_same_answer((policy, calls) in policy_and_calls()) {
        let arch = policy.arch();
        for violation in [Violation::Trap, Violation::Kill, Violation::Log] {
            let filters = policy.compile(violation).expect("it compiles");
            for (name, arguments) in &calls {
                let syscall = arch.syscall_by_name(NAMES[*name]).expect("all have it");
                let call = Call { number: syscall.number, arch: arch.audit_value(), arguments: *arguments };
                prop_assert_eq!(answer(&filters, &call), expected(&policy, violation, syscall, arguments));
            }
        }
    }
}
