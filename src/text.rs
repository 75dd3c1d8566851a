//! How errors are put into words, wherever they end up.

use std::error::Error;

/// An error with all its causes, on one line.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    without_error_numbers(&text)
}

/// Drops the numbers that Rust adds to the system's reasons.
pub fn without_error_numbers(text: &str) -> String {
    const MARK: &str = " (os error ";
    let mut parts = text.split(MARK);
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                plain.push_str(rest);
            }
            _ => {
                plain.push_str(MARK);
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn causes_are_joined_without_the_systems_numbers() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open x")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::from_raw_os_error(2));
        assert_eq!(causes(&error), "cannot open x: No such file or directory");
    }

    #[test]
    fn only_numbers_of_the_system_are_dropped() {
        assert_eq!(
            without_error_numbers("a (os error 12) b (os error x) c (os error 1"),
            "a b (os error x) c (os error 1"
        );
    }
}
