//! Sizes and region descriptions, as people write them on a command line.
//!
//! Units are powers of two: `K`, `M`, `G` and `T`, with or without `iB` or `B` behind them.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A number of bytes.
///
/// Parses `4096`, `64K`, `1M`, `2GiB`; displays with three significant digits and a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Size(pub u64);

/// Why a text is not a size.
#[remain::sorted]
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// No digits where the number should start.
    #[error("a size starts with a number, such as 4096, 64K or 1G")]
    NoNumber,
    /// More than 64 bits can count.
    #[error("this is more than a size can be")]
    TooLarge,
    /// Something other than a known unit behind the number.
    #[error("the unit is none of K, M, G and T")]
    UnknownUnit,
}

impl FromStr for Size {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(ParseSizeError::NoNumber);
        }
        let number: u64 = number.parse().map_err(|_| ParseSizeError::TooLarge)?;
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(ParseSizeError::UnknownUnit),
        };
        number
            .checked_mul(1 << shift)
            .map(Size)
            .ok_or(ParseSizeError::TooLarge)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return f.pad(&format!("{} B", self.0));
        }
        let mut unit = 0;
        while unit + 1 < UNITS.len() && self.0 >> (10 * (unit + 2)) > 0 {
            unit += 1;
        }
        let shift = 10 * (unit + 1);
        let whole = self.0 >> shift;
        let rest = self.0 & ((1 << shift) - 1);
        let text = if rest == 0 {
            format!("{whole} {}", UNITS[unit])
        } else {
            let tenths = (u128::from(rest) * 10) >> shift;
            format!("{whole}.{tenths} {}", UNITS[unit])
        };
        f.pad(&text)
    }
}

/// Parses a number as programs print them: decimal, hexadecimal behind `0x`, or with a unit.
///
/// # Errors
/// Words for the user, if it is none.
pub fn parse_number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse::<Size>().ok().map(|size| size.0),
    };
    parsed.ok_or_else(|| "expected a number such as 4096, 0x1000 or 4K".to_owned())
}

/// One region of a device whose backend does not describe its regions: `ID=SIZE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionArgument {
    /// The region's id within its device.
    pub shmid: u8,
    /// The region's length in bytes.
    pub len: u64,
}

/// Why a text is not a region description.
#[remain::sorted]
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRegionError {
    /// The id is not a number from 0 to 255.
    #[error("the id is a number from 0 to 255")]
    Id,
    /// No equals sign.
    #[error("a region is written ID=SIZE, such as 0=1G")]
    NoEqualsSign,
    /// The length is zero or no page multiple.
    #[error("a region's size is a multiple of {page} and not zero")]
    Page {
        /// The size of a page.
        page: u64,
    },
    /// The part behind the equals sign is not a size.
    #[error(transparent)]
    Size(#[from] ParseSizeError),
}

impl FromStr for RegionArgument {
    type Err = ParseRegionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (shmid, len) = text.split_once('=').ok_or(ParseRegionError::NoEqualsSign)?;
        let shmid = shmid.trim().parse().map_err(|_| ParseRegionError::Id)?;
        let Size(len) = len.parse()?;
        let page = rustix::param::page_size() as u64;
        if len == 0 || !len.is_multiple_of(page) {
            return Err(ParseRegionError::Page { page });
        }
        Ok(Self { shmid, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_parse(text: &str, want: Result<u64, ParseSizeError>) {
        assert_eq!(text.parse::<Size>().map(|size| size.0), want, "{text:?}");
    }

    #[track_caller]
    fn check_display(bytes: u64, want: &str) {
        assert_eq!(Size(bytes).to_string(), want);
    }

    #[test]
    fn size_with_each_unit_is_parsed() {
        check_parse("0", Ok(0));
        check_parse("4096", Ok(4096));
        check_parse("64K", Ok(65536));
        check_parse("64KiB", Ok(65536));
        check_parse(" 3 mb ", Ok(3 << 20));
        check_parse("2g", Ok(2 << 30));
        check_parse("1T", Ok(1 << 40));
        check_parse("18446744073709551615", Ok(u64::MAX));
    }

    #[test]
    fn size_that_is_none_says_why() {
        check_parse("", Err(ParseSizeError::NoNumber));
        check_parse("-1", Err(ParseSizeError::NoNumber));
        check_parse("K", Err(ParseSizeError::NoNumber));
        check_parse("1X", Err(ParseSizeError::UnknownUnit));
        check_parse("1.5M", Err(ParseSizeError::UnknownUnit));
        check_parse("18446744073709551616", Err(ParseSizeError::TooLarge));
        check_parse("16777216T", Err(ParseSizeError::TooLarge));
    }

    #[test]
    fn size_displays_with_the_largest_unit_that_fits() {
        check_display(0, "0 B");
        check_display(1023, "1023 B");
        check_display(1024, "1 KiB");
        check_display(1536, "1.5 KiB");
        check_display(0x70800, "450 KiB");
        check_display(1 << 30, "1 GiB");
        check_display(u64::MAX, "15.9 EiB");
    }

    #[test]
    fn number_is_decimal_hexadecimal_or_a_size() {
        assert_eq!(parse_number("4096"), Ok(4096));
        assert_eq!(parse_number("0xffffffffffffffff"), Ok(u64::MAX));
        assert_eq!(parse_number("4K"), Ok(4096));
        assert!(matches!(parse_number("0x"), Err(words) if words.contains("0x1000")));
    }

    #[test]
    fn region_with_id_and_size_is_parsed() {
        assert_eq!(
            "3=1G".parse(),
            Ok(RegionArgument {
                shmid: 3,
                len: 1 << 30
            })
        );
    }

    #[test]
    fn region_that_is_none_says_why() {
        let parse = |text: &str| text.parse::<RegionArgument>().expect_err("no region");
        let page = rustix::param::page_size() as u64;
        assert_eq!(parse("1G"), ParseRegionError::NoEqualsSign);
        assert_eq!(parse("256=1G"), ParseRegionError::Id);
        assert_eq!(parse("0=0"), ParseRegionError::Page { page });
        assert_eq!(parse("0=100"), ParseRegionError::Page { page });
        assert_eq!(
            parse("0=1X"),
            ParseRegionError::Size(ParseSizeError::UnknownUnit)
        );
    }
}
